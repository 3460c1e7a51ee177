"""Every CPU optimizer of torch and of the packages of the development set-up, under everything we have.

``python -m tests.integrations.test_other_optimizers`` writes the table of docs/optimizers.md anew.
"""

import warnings
from pathlib import Path

import pytest
import torch

from thermoopt import Observer, diagnose
from thermoopt.benchmarks.others.catalogue import cases
from thermoopt.benchmarks.others.checks import check
from thermoopt.benchmarks.others.table import BEGIN, END, put, table

PACKAGES = ("torch", "schedulefree", "prodigyopt", "transformers")
STEPS = 120
"""Twelve readings of an observer as people make it: enough for every kind of finding."""

PAGE = Path(__file__).parents[2] / "docs" / "optimizers.md"
CASES = {f"{case.package} {case.name}": case for case in cases(PACKAGES)}
ROWS = {}


def row_of(name):
    if name not in ROWS:
        ROWS[name] = check(CASES[name], [CASES[name].lr], STEPS)
    return ROWS[name]


def lines_of(page):
    made = page.split(BEGIN)[1].split(END)[0]
    return {line.split("|")[1].strip(): line for line in made.splitlines() if line.startswith("| ")}


@pytest.mark.parametrize("name", CASES)
def test_nothing_goes_wrong_and_the_table_says_what_there_is(name):
    row = row_of(name)
    assert row.wrong == []
    assert row.unusable == ""
    assert row.loss[1] < 0.75 * row.loss[0]  # a healthy run
    expected = lines_of(f"{BEGIN}\n{table([row])}\n{END}")[name]
    assert lines_of(PAGE.read_text(encoding="utf-8"))[name] == expected


def test_the_table_holds_no_other():
    packages = {case.package for case in CASES.values()}
    listed = set(lines_of(PAGE.read_text(encoding="utf-8"))) - {"optimizer", "---"}
    assert {name for name in listed if name.split()[0] in packages} == set(CASES)


def test_every_optimizer_of_torch_is_here():
    classes = {name for name, x in vars(torch.optim).items() if isinstance(x, type) and name != "Optimizer"}
    assert classes - {"SparseAdam"} <= {case.name for case in CASES.values() if case.package == "torch"}


def test_sparse_gradients_are_left_out():
    runs = []
    for watched in (False, True):
        torch.manual_seed(0)
        table = torch.nn.Embedding(10, 4, sparse=True)
        optimizer = torch.optim.SparseAdam(table.parameters(), lr=0.1)
        observer = Observer(table, optimizer, log_every=1) if watched else None
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for t in range(5):
                optimizer.zero_grad()
                table(torch.tensor([t, t + 1])).square().sum().backward()
                optimizer.step()
        runs.append(table.weight)
        if observer is not None:
            assert observer.steps == 5
            assert observer.skipped["no_gradients"] == 5
            assert observer.reading is None
            assert "sparse gradients are not measured" in str(diagnose(observer))
            ours = [str(w.message) for w in told if "not measured" in str(w.message)]
            assert len(ours) == 1
            assert ours[0].endswith("missing from readings and totals: weight")
    assert torch.equal(*runs)


if __name__ == "__main__":
    PAGE.write_text(
        put(PAGE.read_text(encoding="utf-8"), table([row_of(name) for name in CASES])), encoding="utf-8"
    )
    print("\n".join(f"{name}: {row.wrong}" for name, row in ROWS.items() if row.wrong or row.unusable))
