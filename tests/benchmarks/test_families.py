"""The benchmark over families: ratios by hand, choices that leave a family out, rows, laws in words."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")

from tests.support.processes import forked_pools
from thermoopt.benchmarks.families import (
    DEVELOPMENT,
    LRS,
    SEEDS,
    Case,
    family,
    leave_family_out,
    ratios,
    summary,
)
from thermoopt.benchmarks.families.__main__ import _cells, _parser, main
from thermoopt.benchmarks.families.laws import law, law_method
from thermoopt.benchmarks.families.ratios import chosen_lrs, reported
from thermoopt.benchmarks.families.report import choice_table, law_table, report
from thermoopt.benchmarks.families.runs import case_of, run, run_all
from thermoopt.benchmarks.workloads import FURTHER, HELD_OUT, WORKLOADS


def row(workload, method, lr, seed, score, initial=2.0, told=True, steps=None, **more):
    steps = steps or WORKLOADS[workload].horizons[0]
    kept = {"workload": workload, "steps": steps, "method": method, "lr": lr, "seed": seed, "told": told}
    return kept | {"score": score, "initial": initial, "diverged": False, "source": None} | more


def grid(workload, method, seed, best):
    """Rows of every learning rate, whose score grows by 1 a place away from ``best``."""
    at = LRS.index(best)
    return [row(workload, method, lr, seed, 1.0 + abs(i - at)) for i, lr in enumerate(LRS)]


def test_the_development_side_has_twelve_families_of_24_workloads_and_nothing_that_is_held_out():
    assert len(DEVELOPMENT) >= 24
    assert len({family(name) for name in DEVELOPMENT}) >= 12
    assert not set(DEVELOPMENT) & set(HELD_OUT)
    assert not {family(name) for name in DEVELOPMENT} & {family(name) for name in HELD_OUT}


def test_ratios_are_of_means_over_shared_seeds_with_a_floor_of_a_hundredth_of_the_start():
    cell = ("wine", 300)
    own = {cell: {0: row("wine", "a", None, 0, 0.3), 1: row("wine", "a", None, 1, 0.5), 7: {}}}
    reference = {cell: {0: row("wine", "b", 1e-3, 0, 0.1), 1: row("wine", "b", 1e-3, 1, 0.1)}}
    assert ratios(own, reference) == {cell: pytest.approx((0.4 + 0.02) / (0.1 + 0.02))}
    assert ratios(own, {}) == {}
    short = summary({("wine", 300): 2.0, ("cancer", 300): 0.5, ("gru", 400): 4.0})
    assert short.mean == pytest.approx(4 ** (1 / 3))
    assert (short.worst, short.of) == (4.0, ("gru", 400))
    assert short.families == {"small tables": pytest.approx(1.0), "recurrent": 4.0}
    with pytest.raises(ValueError, match="at least one ratio, got none"):
        summary({})


def test_a_seed_is_reported_at_the_rate_that_other_seeds_choose():
    rows = grid("wine", "adamw linear", 0, 1e-1) + grid("wine", "adamw linear", 1, 1e-3)
    cell = ("wine", 300)
    assert chosen_lrs(rows, "adamw linear", 0) == {cell: 1e-3}
    assert chosen_lrs(rows, "adamw linear", 1) == {cell: 1e-1}
    found = reported(rows, "adamw linear", True)
    assert {seed: r["lr"] for seed, r in found[cell].items()} == {0: 1e-3, 1: 1e-1}
    alone = [*grid("wine", "adamw linear", 100, 0.03), row("wine", "adamw linear", 0.03, 2, 0.7)]
    assert chosen_lrs(alone[1:], "adamw linear", 2) == {}  # one rate is not there yet
    assert reported(alone, "adamw linear", True)[cell][2]["score"] == 0.7
    assert chosen_lrs(alone, "adamw linear", 100) == {}


def test_the_variant_that_a_family_gets_is_chosen_on_the_others():
    wine, cancer, gru, mlp = ("wine", 300), ("cancer", 300), ("gru", 400), ("mlp", 500)
    variants = {
        "a": {wine: 0.1, cancer: 0.1, gru: 1.5, mlp: 1.5},  # far the best, by its tables alone
        "b": {wine: 2.0, cancer: 3.0, gru: 1.0, mlp: 1.0},
    }
    chosen, judged = leave_family_out(variants)
    assert chosen == {"small tables": "b", "recurrent": "a", "perceptrons": "a"}
    assert judged == {wine: 2.0, cancer: 3.0, gru: 1.5, mlp: 1.5}
    table = choice_table(variants)
    assert f"| small tables | b | {math.sqrt(6):.3f} | 3.000 |" in table
    assert f"| **all** |  | {(2 * 3 * 1.5**2) ** 0.25:.3f} | 3.000 |" in table
    assert f"| b | {6**0.25:.3f} | 3.000 |" in table
    assert "| small tables | cancer | 0.100 | 3.000 |" in table
    later = {name: {cell: 10 * x for cell, x in own.items()} for name, own in variants.items()}
    again, reported_later = leave_family_out(variants, later)
    assert again == chosen
    assert reported_later[wine] == 20.0
    with pytest.raises(ValueError, match="at least 2 families, got 1"):
        leave_family_out({"a": {wine: 1.0, cancer: 1.0}})
    with pytest.raises(ValueError, match="at least 2 families, got 0"):
        leave_family_out({})


def test_methods_and_laws_are_chosen_among_by_the_first_seed_and_reported_with_all(tmp_path, capsys):
    names, methods, law_rows = ("wine", "mlp", "gru"), [], []
    for name in names:
        methods += grid(name, "adamw linear", 100, 1e-2)
        methods += [row(name, "adamw linear", 1e-2, seed, 0.98) for seed in SEEDS]
        methods += [row(name, "autotune", None, seed, 1.0 + 2 * seed, told=False) for seed in SEEDS]
        law_rows += [row(name, "mine", None, 0, 1.98, told=False)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in methods))
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(r) + "\n" for r in law_rows))
    main(["choose", "mine", "autotune", "--out", str(tmp_path), "--laws", str(tmp_path)])
    said = capsys.readouterr().out
    assert "| **all** |  | 3.020 | 3.020 |" in said  # mean of three seeds of the one that the first chose
    assert "| autotune | 1.020 | 1.020 |" in said
    assert "| mine | 2.000 | 2.000 |" in said


def test_tables_hold_what_the_rows_say():
    rows = grid("wine", "adamw linear", 100, 1e-2)
    rows += [row("wine", "adamw linear", 1e-2, 0, 0.5), row("wine", "prodigy", None, 0, 1.0)]
    rows += [row("wine", "autotune", None, 0, 0.25, told=told) for told in (False, True)]
    text = report(rows)
    assert f"| prodigy | wine | {1.02 / 0.52:.3f} | {1.02 / 0.52:.2f} | 1 of 1 | 1 |" in text
    assert f"| autotune (no loss) | wine | {0.27 / 0.52:.3f} |" in text
    assert "| wine | 0.01 |" in text
    assert "Held out" not in text
    assert "Further networks" not in text
    for name in ("surface", "flow", "wine"):
        rows += [*grid(name, "adamw linear", 100, 1e-2), row(name, "adamw linear", 1e-2, 0, 0.5)]
    heads = [line for line in report(rows).splitlines() if line.startswith("#")]
    assert heads[:3] == ["## Development workloads", "## Further networks", "## Held out"]
    assert "no ratios" in law_table({False: {}})


def test_a_run_is_the_loop_that_it_says_and_a_bad_one_has_the_untrained_score():
    case = Case("wine", 5, "adamw constant", None, 0, True)
    made = run(case)
    task = WORKLOADS["wine"].build(0)
    assert made["initial"] == task.evaluate()
    optimizer = torch.optim.AdamW(task.model.parameters(), 1e-3, weight_decay=0.01, fused=True)
    for _ in range(5):
        optimizer.zero_grad()
        task.loss().backward()
        optimizer.step()
    assert made["score"] == pytest.approx(task.evaluate(), rel=1e-6)
    assert case_of(made) == case
    bad = run(Case("wine", 40, "adamw constant", 100.0, 0, True))
    assert bad["diverged"]
    assert bad["score"] == bad["initial"] < bad["final"]


def test_a_law_in_words_is_the_controller_and_unreadable_ones_are_named():
    made = law("lambda steps: autotune(steps)")(50)
    assert type(made).__name__ == type(law("thermoopt:autotune")(50)).__name__
    assert law_method("mine", "lambda steps: autotune(steps)").tunables == ("decay",)
    for bad in ("lambda steps autotune", "no_such_name", "thermoopt:no_such_name", "no_such_module:f"):
        with pytest.raises(ValueError, match="cannot be read"):
            law(bad)
    with pytest.raises(ValueError, match=r"callable with the number of steps, got '3'"):
        law("3")
    own = run(Case("wine", 20, "mine", None, 0, False), "lambda steps: autotune(steps)")
    assert own["source"] == "lambda steps: autotune(steps)"
    assert own["score"] < own["initial"]


def test_methods_are_run_on_all_seeds_and_workloads_are_chosen_by_side():
    for _ in range(2):
        assert _parser().parse_args(["methods"]).seeds == [0, 1, 2]
        assert _parser().parse_args(["law", "mine", "autotune"]).seeds == [0]
    assert _parser().parse_args(["methods", "--seeds", "5"]).seeds == [5]
    chosen = {flag: _cells(_parser().parse_args(["methods", *flag.split()])) for flag in ("", "--further")}
    assert [name for name, _ in chosen[""]] == list(DEVELOPMENT)
    assert [name for name, _ in chosen["--further"]] == list(FURTHER)


@pytest.mark.slow
@forked_pools()
def test_rows_are_kept_and_not_run_again(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    cases = [Case("wine", 5, "adamw constant", None, seed, True) for seed in (0, 1)]
    rows = run_all(path, cases[:1], 1)
    path.write_text(path.read_text() + '{"workload": "wi')  # torn by a crash
    again = run_all(path, cases, 1)
    assert "1 runs are done, 1 to do" in capsys.readouterr().out
    assert again[0] == rows[0]
    lines = path.read_text().splitlines()
    assert [json.loads(line)["seed"] for line in (lines[0], lines[2])] == [0, 1]
    before = path.read_text()
    assert len(run_all(path, cases, 1)) == 2
    assert path.read_text() == before
    assert len(run_all(path, cases[:1], 1, "lambda steps: autotune(steps)")) == 3  # of another source


@pytest.mark.slow
@forked_pools()
def test_the_command_runs_a_law_and_prints_its_ratios(tmp_path, capsys):
    rows = [*grid("wine", "adamw linear", 100, 0.01), row("wine", "adamw linear", 0.01, 0, 0.1, 1.1)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    where = ["--out", str(tmp_path), "--laws", str(tmp_path / "laws")]
    main(["law", "mine", "lambda steps: autotune(steps)", "--workloads", "wine", "--workers", "1", *where])
    said = capsys.readouterr().out
    assert "no loss: geometric mean" in said
    assert "loss reported: geometric mean" in said
    assert len((tmp_path / "laws" / "mine.jsonl").read_text().splitlines()) == 2
    with pytest.raises(SystemExit, match="cannot be read"):
        main(["law", "mine", "nonsense", *where])
    with pytest.raises(SystemExit, match=r"has no rows: run `law other` first"):
        main(["choose", "other", *where])
    main(["report", *where])
    assert "| small tables | wine |" in (tmp_path / "families.md").read_text()
    assert set(SEEDS) == {0, 1, 2}


def test_the_committed_rows_can_be_resumed(tmp_path):
    """Every file of rows says of each run which law it was of, and holds no run twice."""
    results = Path(__file__).parents[2] / "benchmarks" / "results" / "families"
    files = [results / "rows.jsonl", *sorted((results / "laws").glob("*.jsonl"))]
    assert len(files) > 1
    for file in files:
        rows = run_all(Path(shutil.copy(file, tmp_path)), [], 1)
        cases = [(case_of(row), row["source"]) for row in rows]
        assert len(set(cases)) == len(cases) > 0, file.name
