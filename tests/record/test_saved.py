"""Saved runs: the same columns as the run had, whatever happened to the file."""

from __future__ import annotations

import copy
import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest

from tests.support.saved_runs import record
from thermoopt.account.history import MAX_LAYER_READINGS, HistoryLike
from thermoopt.account.reading import SKIP_CAUSES
from thermoopt.physics.quantities import QUANTITIES
from thermoopt.record import SavedRun

LAYERS = ["wte.weight", "mlp.weight", "head.weight", "norm.weight", "norm.bias", "mlp.bias"]


def line(step: int, *, layers: bool = True, loss: float | None = None, **values: float | None) -> str:
    """One line with the quantities given, in a total, a group ``g`` and a layer ``h.weight``."""
    body = {"step": step, "loss": loss, "total": values, "groups": {"g": values}}
    return json.dumps({**body, **({"layers": {"h.weight": values}} if layers else {})})


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(text + "\n" for text in lines))
    return path


DIGITS = 6e-4
"""Half a unit of the fourth digit, of 1."""


def same(name: str, got: np.ndarray, want: np.ndarray, rtol: float = DIGITS) -> None:
    # an infinite ratio is null in JSON; only that of the decay can be told again
    want = want if name == "wd_balance" else np.where(np.isinf(want), np.nan, want)
    np.testing.assert_allclose(got, want, rtol=rtol, err_msg=name)


def test_columns_are_those_of_the_run(tmp_path):
    path = tmp_path / "run.jsonl"
    readings = []
    optimizer = record(path, 12, each=lambda step, o: readings.append(o.reading), lr=5e-2, weight_decay=3.0)
    run = SavedRun.read(path)
    history = run.history
    assert history.steps.tolist() == history.layer_steps.tolist() == list(range(1, 13))
    assert (len(history), run.steps) == (12, 12)
    assert history.group_names == ["decay", "plain"]
    assert history.layer_names == LAYERS
    for name in QUANTITIES:
        same(name, history.total(name), optimizer.history.total(name))
        for index in range(2):
            same(name, history.group(index, name), optimizer.history.group(index, name))
        # layers keep terms of 16 bits: what is a small difference of large ones keeps their rounding
        layers = np.array([r.layer_array(name) for r in readings])
        scale = np.nanmax(np.abs(np.where(np.isfinite(layers), layers, np.nan)), initial=0.0)
        if name not in ("wd_balance", "free_fall", "R_ie"):
            np.testing.assert_allclose(history.layers(name), layers, rtol=1e-3, atol=1e-4 * scale)
    assert np.isinf(history.layers("wd_balance")).any()  # or the exception above is not tried


def test_an_export_reads_like_the_file_of_a_sink(tmp_path):
    optimizer = record(tmp_path / "run.jsonl", 5)
    optimizer.history.export_jsonl(tmp_path / "export.jsonl")
    sink, export = (SavedRun.read(tmp_path / f"{name}.jsonl").history for name in ("run", "export"))
    for name in QUANTITIES:
        same(name, sink.total(name), export.total(name))
        # a history keeps the layers' terms in float32, and differences of them lose digits
        same(name, export.layers(name), optimizer.history.layers(name), rtol=1e-6)


def test_an_infinite_balance_survives_json(tmp_path):
    lines = [
        line(1, wd_balance=None, free_fall=1.5),  # no source holds against decay
        line(2, wd_balance=None, free_fall=None),  # no decay
        line(3, wd_balance=0.5, free_fall=-1.0),
    ]
    history = SavedRun.read(write(tmp_path / "r.jsonl", *lines)).history
    assert history.total("wd_balance").tolist()[::2] == [math.inf, 0.5]
    assert math.isnan(history.total("wd_balance")[1])
    assert history.layers("wd_balance")[0, 0] == math.inf


def test_start_norms_and_layers_of_two_dimensions(tmp_path):
    path = tmp_path / "run.jsonl"
    optimizer = record(path, 3, lr=0.0, weight_decay=0.0)  # nothing moves: the norms are those of the start
    run = SavedRun.read(path)
    held = {n: p for g in optimizer.param_groups for n, p in zip(g["param_names"], g["params"], strict=True)}
    assert set(run.start_norms) == set(held)
    for name, p in held.items():
        assert run.start_norms[name] == pytest.approx(float(p.detach().double().square().sum()), rel=2e-5), (
            name
        )
    assert run.matrices == {name for name, p in held.items() if p.ndim > 1}
    assert run.layer_types == {
        "wte.weight": "embedding",
        "mlp.weight": "mlp",
        "head.weight": "head",
        "norm.weight": "norm",
        "norm.bias": "norm",
        "mlp.bias": "mlp",
    }
    assert run.frozen == frozenset()


def test_losses_are_those_on_record(tmp_path):
    lines = [line(2, loss=3.0), line(4, loss=None), line(6, loss=2.5)]
    run = SavedRun.read(write(tmp_path / "r.jsonl", *lines))
    assert run.losses.steps.tolist() == [2, 6]
    assert run.losses.values.tolist() == [3.0, 2.5]
    np.testing.assert_array_equal(run.history.losses, [3.0, np.nan, 2.5])


def test_a_resumed_run_is_one_trajectory(tmp_path):
    path = tmp_path / "run.jsonl"
    kept = {}

    def keep(step: int, optimizer) -> None:
        if step == 3:
            kept.update(copy.deepcopy(optimizer.state_dict()))

    record(path, 6, each=keep)
    first = SavedRun.read(path).history.total("sigma")
    second = record(path, 2, state=kept)  # its steps 4 and 5 go on where step 3 ended
    run = SavedRun.read(path)
    assert run.history.steps.tolist() == run.history.layer_steps.tolist() == [1, 2, 3, 4, 5]
    same("sigma", run.history.total("sigma"), [*first[:3], *second.history.total("sigma")])


def test_what_a_rewind_forgets(tmp_path):
    old = json.dumps(
        {"step": 5, "loss": 9.0, "total": {}, "groups": {}, "layers": {"gone.weight": {"param_norm": 2.0}}}
    )
    run = SavedRun.read(
        write(
            tmp_path / "r.jsonl",
            line(1, param_norm=3.0),
            old,
            line(4, loss=1.0),
            line(6, layers=False, r=2.0),
        )
    )
    assert run.history.steps.tolist() == [1, 4, 6]
    assert run.history.layer_steps.tolist() == [1, 4]
    assert run.history.layer_names == ["h.weight"]
    assert run.start_norms == {"h.weight": 9.0}
    assert run.losses.steps.tolist() == [4]


def test_layers_are_thinned_as_a_history_thins_them_and_the_newest_is_kept(tmp_path):
    n = 2 * MAX_LAYER_READINGS + 3
    path = write(tmp_path / "r.jsonl", *(line(s, r=float(s)) for s in range(1, n + 1)))
    history = SavedRun.read(path).history
    assert len(history.steps) == n
    assert len(history.layer_steps) <= MAX_LAYER_READINGS
    *even, newest = history.layer_steps.tolist()
    assert len(set(np.diff(even))) == 1
    assert newest == n
    np.testing.assert_array_equal(history.layers("r")[:, 0], history.layer_steps)


def test_old_files_lack_what_is_new(tmp_path):
    history = SavedRun.read(write(tmp_path / "r.jsonl", line(1, sigma=2.0), line(2, sigma=1.0))).history
    assert history.total("sigma").tolist() == [2.0, 1.0]
    assert np.isnan(history.total("rho_momentum")).all()
    assert np.isnan(history.layers("distance")).all()


def test_a_quantity_of_a_newer_version_is_left_out(tmp_path):
    history = SavedRun.read(write(tmp_path / "r.jsonl", line(1, sigma=2.0, unheard_of=1.0))).history
    assert history.total("sigma").tolist() == [2.0]
    with pytest.raises(KeyError, match="unheard_of"):
        history.total("unheard_of")


def test_files_without_layers(tmp_path):
    path = tmp_path / "run.jsonl"
    record(path, 3, layers=False)
    run = SavedRun.read(path)
    assert run.history.layer_names == run.history.layer_steps.tolist() == []
    assert run.history.layers("r").shape == (0, 0)
    assert (run.layer_types, run.start_norms, run.matrices) == ({}, {}, frozenset())


def test_groups_added_later_and_layers_seen_later(tmp_path):
    late = json.dumps(
        {
            "step": 2,
            "total": {"r": 3.0},
            "groups": {"g": {"r": 1.0}, "late": {"r": 5.0}},
            "layers": {"new": {"r": 7.0}, "h.weight": {"r": 1.5}},
        }
    )
    history = SavedRun.read(write(tmp_path / "r.jsonl", line(1, r=2.0), late)).history
    assert history.group_names == ["g", "late"]
    np.testing.assert_array_equal(history.group(1, "r"), [np.nan, 5.0])
    np.testing.assert_array_equal(history.layers("r"), [[np.nan, 2.0], [7.0, 1.5]])
    with pytest.raises(IndexError, match="group must be >= 0 and < 2, the number with readings, got 2"):
        history.group(2, "r")


def test_skipped_steps_are_those_of_the_last_line(tmp_path):
    path = tmp_path / "run.jsonl"
    record(path, 1)
    assert SavedRun.read(path).skipped == dict.fromkeys(SKIP_CAUSES, 0)
    write(path, json.dumps({**json.loads(line(1)), "skipped": {"nonfinite": 3}}), line(2))
    assert SavedRun.read(path).skipped == {"nonfinite": 3}


@pytest.mark.parametrize("torn", [b'{"step": 3, "tot', b'{"step": "\xc3'], ids=["JSON", "UTF-8"])
def test_a_torn_line_is_passed_over_and_named(tmp_path, torn):
    path = write(tmp_path / "r.jsonl", line(1, r=1.0), line(2, r=2.0))
    with path.open("ab") as file:
        file.write(torn)
    with pytest.warns(RuntimeWarning, match=r"r.jsonl: line 3 is torn: skipped") as warned:
        run = SavedRun.read(path)
    assert len(warned) == 1
    assert run.history.total("r").tolist() == [1.0, 2.0]
    with pytest.warns(RuntimeWarning, match="holds a run already"):
        record(path, 4)  # a sink that goes on ends the torn line first
    with pytest.warns(RuntimeWarning, match="line 3 is torn"), pytest.warns(match="another run"):
        assert SavedRun.read(path).history.steps.tolist() == [1, 2, 3, 4]


def test_of_one_step_the_later_line_is_valid(tmp_path):
    path = write(tmp_path / "r.jsonl", line(1, r=1.0), line(2, r=2.0), line(2, r=3.0))
    history = SavedRun.read(path).history
    assert history.steps.tolist() == history.layer_steps.tolist() == [1, 2]
    assert history.total("r").tolist() == history.layers("r")[:, 0].tolist() == [1.0, 3.0]


def test_whole_files_give_no_warning(tmp_path):
    path = write(tmp_path / "r.jsonl", line(1), "", line(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert SavedRun.read(path).steps == 2


GOOD = {"step": 1, "total": {}, "groups": {}}


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ([1], "a list"),
        ({"step": 1}, "total is missing"),
        ({**GOOD, "step": "1"}, "step is '1'"),
        ({**GOOD, "step": True}, "step is True"),
        ({**GOOD, "step": -1}, "step is -1"),
        ({**GOOD, "groups": [1]}, r"groups is \[1\]"),
        ({**GOOD, "layers": None}, "layers is missing"),
        ({**GOOD, "total": {"r": "high"}}, "r of total is 'high'"),
        ({**GOOD, "layers": {"a": 3}}, "a is 3"),
        ({**GOOD, "layers": {"a": {"r": [1]}}}, r"r of a is \[1\]"),
        ({**GOOD, "loss": "low"}, "loss is 'low'"),
        ({**GOOD, "skipped": {"dry": "x"}}, "dry is 'x'"),
    ],
)
def test_what_is_no_reading_is_named_with_its_line(tmp_path, record, words):
    path = write(tmp_path / "r.jsonl", line(1), json.dumps(record))
    with pytest.raises(ValueError, match=f"r.jsonl, line 2: {words}, so it is not a reading"):
        SavedRun.read(path)


@pytest.mark.parametrize(("text", "words"), [("", "the file is empty"), ("a,b\n1,2\n", "none of 2 lines")])
def test_files_without_a_reading(tmp_path, text, words):
    path = tmp_path / "r.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"r.jsonl: {words}"):
        SavedRun.read(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        SavedRun.read(tmp_path / "none.jsonl")


def test_its_history_is_what_plots_read(tmp_path):
    history: HistoryLike = SavedRun.read(write(tmp_path / "r.jsonl", line(1))).history
    assert all(hasattr(history, name) for name in ("steps", "layer_steps", "layer_names", "total", "layers"))
