"""Tables of text, courses in characters, and what a saved run's tables say."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from tests.support.saved_runs import record
from thermoopt.inspection.run_tables import layer_table, total_table, type_table
from thermoopt.inspection.tables import FLAT, Table, course
from thermoopt.record import SavedRun


def test_lines_are_aligned():
    table = Table("Title", ("name", "n"), [("a", "1"), ("bcdefg", "10")], note="a note")
    assert table.lines(80) == [
        "Title",
        "  name     n",
        "  ──────  ──",
        "  a        1",
        "  bcdefg  10",
        "  a note",
    ]


def test_a_narrow_terminal_leaves_out_the_last_columns_and_says_so():
    table = Table("Title", ("name", "first", "second", "third"), [("x" * 10, "1", "2", "3")])
    for width in range(20, 60):
        lines = table.lines(width)
        rows = [text for text in lines if text.startswith("  ") and "wider" not in text]
        assert all(len(text) <= width for text in rows), width
        left_out = [word for word in table.head if word not in lines[1]]
        assert lines[-1] == f"  (a wider terminal also shows {', '.join(left_out)})" or not left_out
    assert table.lines(80)[1].split() == list(table.head)
    assert table.lines(1)[1].split() == ["name", "first"]  # two columns at least


def test_a_course_goes_from_least_to_largest():
    assert course(np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]), 8) == "▁▂▃▄▅▆▇█"  # by ratio
    assert course(np.arange(8.0) - 3, 8) == "▁▂▃▄▅▆▇█"  # by difference where signs change
    assert course(np.repeat([3.0, 1.0], 50), 4) == "██▁▁"


def test_a_course_is_flat_where_nothing_happens_and_open_where_nothing_is_known():
    assert len(set(course(np.array([1.0, 1.0 + FLAT / 8] * 4), 8))) <= 2
    assert set(course(np.full(9, 0.0), 9)) <= set("▄▅")
    assert course(np.array([1.0, np.nan, np.inf, 2.0]), 4) == "▁  █"
    assert course(np.full(5, np.nan), 4) == ""
    assert course(np.zeros(0), 4) == ""


def test_a_course_takes_medians():
    values = np.ones(40)
    values[5] = 1e9  # one reading out of ten
    assert len(set(course(values, 4))) == 1


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[SavedRun, dict]:
    """A run of 24 steps, and its last line as JSON has it."""
    path = tmp_path_factory.mktemp("tables") / "run.jsonl"
    record(path.with_name("sink.jsonl"), 24).history.export_jsonl(path)
    return SavedRun.read(path), json.loads(path.read_text().splitlines()[-1])


def test_total_table_holds_last_halfway_and_first(run):
    saved, last = run
    table = total_table(saved)
    assert table.head == ("quantity", "last", "trend", "halfway", "first")
    cells = {row[0].split(",")[0]: row for row in table.rows}
    assert cells["σ"][1] == f"{last['total']['sigma']:+.2e}"
    assert cells["‖θ‖"][3] == f"{saved.history.total('param_norm')[11]:.4g}"
    assert cells["r"][4] == f"{saved.history.total('r')[0]:.2f}"
    assert all(len(row[2]) <= 24 for row in table.rows)
    assert not any("θ₀" in row[0] for row in table.rows)  # was not tracked
    assert "loss" not in cells  # none was reported


def test_total_table_begins_with_the_loss_and_where_one_begins_to_look(tmp_path):
    def report(step, optimizer):
        optimizer.report_loss(10.0 - 0.25 * step)

    record(tmp_path / "run.jsonl", 24, each=report)
    table = total_table(SavedRun.read(tmp_path / "run.jsonl", since=13))
    assert [table.rows[0][i] for i in (0, 1, 3, 4)] == ["loss", "4.25", "5.75", "7"]


def test_layer_table_holds_the_last_reading(run):
    saved, last = run
    table = layer_table(saved)
    assert [row[0] for row in table.rows] == list(last["layers"])
    for row in table.rows:
        values = last["layers"][row[0]]
        cells = dict(zip(table.head, row, strict=True))
        assert cells["r"] == f"{values['r']:.2f}"
        assert cells["N1/d"] == f"{values['gaussianity']:.3f}"
        assert cells["‖θ‖"] == f"{values['param_norm']:.3g}"
        assert cells["R_wd"] == f"{values['wd_balance']:.2f}"


def test_a_terminal_gets_the_layers_furthest_from_equilibrium(run):
    saved, last = run
    far = sorted(last["layers"], key=lambda name: -abs(math.log(last["layers"][name]["r"])))[:3]
    table = layer_table(saved, most=3, name_width=6)
    assert table.title == "By layer, last reading: the 3 of 6 furthest from r = 1"
    order = [name for name in last["layers"] if name in far]
    assert [row[0] for row in table.rows] == ["…" + name[-5:] for name in order]


def test_type_table_adds_what_adds_and_takes_medians_of_the_rest(run):
    saved, last = run
    table = type_table(saved)
    rows = {row[0]: dict(zip(table.head, row, strict=True)) for row in table.rows}
    assert list(rows) == ["embedding", "mlp", "norm", "head"]  # in the order of the types
    own = [last["layers"][name] for name in ("norm.weight", "norm.bias")]
    assert rows["norm"]["layers"] == "2"
    assert rows["norm"]["σ"] == f"{sum(x['sigma'] for x in own):+.1e}"
    assert rows["norm"]["‖θ‖"] == f"{math.hypot(*(x['param_norm'] for x in own)):.3g}"
    assert rows["norm"]["r"] == f"{sum(x['r'] for x in own) / 2:.2f}"
    shares = [float(row["share of σ"].removesuffix(" %")) for row in rows.values()]
    assert sum(shares) == pytest.approx(100, abs=2)  # rounded to whole numbers


def test_a_run_without_layers_has_empty_tables(tmp_path):
    record(tmp_path / "r.jsonl", 2, layers=False)
    saved = SavedRun.read(tmp_path / "r.jsonl")
    assert list(layer_table(saved).rows) == list(type_table(saved).rows) == []
    assert layer_table(saved).lines(80) == ["By layer, last reading: nothing on record"]


def test_what_is_not_a_number_has_a_sign(tmp_path):
    values = {"R_ie": None, "wd_balance": None, "free_fall": 1.5, "r": 1.0}
    record_ = {"step": 1, "total": values, "groups": {}, "layers": {"h.weight": values}}
    (tmp_path / "r.jsonl").write_text(json.dumps(record_) + "\n")
    table = layer_table(SavedRun.read(tmp_path / "r.jsonl"))
    cells = dict(zip(table.head, table.rows[0], strict=True))
    assert (cells["R_ie"], cells["R_wd"], cells["r"]) == ("-", "∞", "1.00")
