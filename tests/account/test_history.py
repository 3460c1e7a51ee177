"""The record of readings: what it keeps, what it gives back, and its files."""

from __future__ import annotations

import copy
import csv
import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import Parameter

from thermoopt import History, Reading, ThermoAdamW
from thermoopt.physics.quantities import QUANTITIES
from thermoopt.physics.terms import Term

SHAPES = ((4, 3), (5,), (2, 2))


def make_optimizer(groups: int = 2, **kwargs: Any) -> ThermoAdamW:
    """Three layers, in one group or in two (``body`` with two of them, ``head``)."""
    generator = torch.Generator().manual_seed(5)
    params = [Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in SHAPES]
    names = [(f"w{i}", p) for i, p in enumerate(params)]
    split = [
        {"params": names[:2], "name": "body"},
        {"params": names[2:], "name": "head", "lr": 0.02, "weight_decay": 0.3},
    ]
    more = {"lr": 0.05, "weight_decay": 0.1, "measure_every": 1, "ema_steps": 1, "backend": "torch"}
    return ThermoAdamW(split if groups == 2 else names, **{**more, **kwargs})


def train(optimizer: ThermoAdamW, steps: int, first: int = 0) -> list[Reading]:
    """Take steps on seeded gradients; return the reading of each."""
    readings = []
    for t in range(first, first + steps):
        generator = torch.Generator().manual_seed(100 + t)
        for i, p in enumerate(p for g in optimizer.param_groups for p in g["params"]):
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64) + 0.2 * (i + 1)
        optimizer.step()
        readings.append(optimizer.reading)
    return readings


def fake(step: int, layers: int = 2, seed: int | None = None, seen: Any = None) -> Reading:
    """A reading of one group with terms that are known: they need not come from an optimizer."""
    rng = np.random.default_rng(step if seed is None else seed)
    return Reading(
        step=step,
        names=tuple(f"layer{i}" for i in range(layers)),
        terms=rng.uniform(1, 2, (len(Term), layers)),
        group_of=np.zeros(layers, dtype=np.int64),
        group_names=("group0",),
        seen=np.ones(layers, dtype=bool) if seen is None else np.asarray(seen),
        skipped={},
    )


def same(actual: float, expected: float, rel: float = 1e-12) -> bool:
    if math.isnan(expected) or math.isinf(expected):
        return repr(float(actual)) == repr(float(expected))
    return math.isclose(actual, expected, rel_tol=rel, abs_tol=1e-15)


# -------------------------------------------------------------------- bounds


def test_only_the_newest_readings_are_kept() -> None:
    history = History(max_readings=5)
    for step in range(1, 13):
        history.append(fake(step))
        assert len(history) == min(step, 5)
    assert history.steps.tolist() == [8, 9, 10, 11, 12]
    assert history.total("sigma").shape == (5,)


def test_many_groups_leave_room_for_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    one = fake(1).group_terms.nbytes
    monkeypatch.setattr("thermoopt.account.history.MAX_BYTES", 3 * one)
    history = History(max_readings=100)
    for step in range(1, 10):
        history.append(fake(step))
    assert history.steps.tolist() == [7, 8, 9]
    # one reading is always kept, however large
    monkeypatch.setattr("thermoopt.account.history.MAX_BYTES", one - 1)
    history.append(fake(10))
    assert history.steps.tolist() == [10]


def test_layers_are_thinned_over_the_whole_run() -> None:
    history = History(max_readings=10_000, max_layer_readings=8)
    distances = []
    for step in range(1, 201):
        history.append(fake(step))
        kept = history.layer_steps
        assert len(kept) < 8
        assert kept[0] == 1
        if step >= 8:
            assert len(kept) >= 4
            distance = int(np.diff(kept).min())
            distances.append(distance)
            assert step - kept[-1] < 2 * distance
    assert sorted(set(distances)) == [2, 4, 8, 16, 32]
    assert distances == sorted(distances)
    assert history.layers("sigma").shape == (len(history.layer_steps), 2)
    assert len(history) == 200  # groups and total are not thinned


@pytest.mark.parametrize("limit", [3, 4, 7, 8, 256])
def test_layers_lie_at_equal_distance(limit: int) -> None:
    history = History(max_layer_readings=limit)
    for step in range(1, 3 * limit):
        history.append(fake(step))
        distances = np.diff(history.layer_steps)
        assert len(set(distances.tolist())) <= 1, history.layer_steps


def test_layers_lie_at_equal_distance_after_a_rewind() -> None:
    history = History(max_layer_readings=7)
    for step in range(1, 38):
        history.append(fake(step))
    history.rewind(19)
    for step in range(20, 80):
        history.append(fake(step))
        distances = np.diff(history.layer_steps)
        assert len(set(distances.tolist())) <= 1, history.layer_steps


def test_limits_are_checked() -> None:
    with pytest.raises(ValueError, match="max_readings must be >= 1, got 0"):
        History(max_readings=0)
    with pytest.raises(ValueError, match="max_layer_readings must be >= 2, got 1"):
        History(max_layer_readings=1)
    assert len(History(1, 2)) == 0


@pytest.mark.parametrize(
    ("ema_steps", "measure_every", "expected"),
    [(1, 1, [1, 2, 3]), (50, 1, [1, 11, 21]), (50, 3, [3, 14, 25]), (12, 1, [1, 4, 7]), (1, 7, [7, 14, 22])],
)
def test_five_readings_an_average_are_recorded(ema_steps: int, measure_every: int, expected: list) -> None:
    optimizer = make_optimizer(ema_steps=ema_steps, measure_every=measure_every)
    train(optimizer, 30)
    assert optimizer.history.steps[:3].tolist() == expected


# -------------------------------------------------------------------- values


def test_sigma_over_time_is_gradient_times_displacement() -> None:
    """From parameters before and after alone: sigma = <g, theta (1 - lr wd) - theta'>."""
    optimizer = make_optimizer()
    expected = []
    for t in range(6):
        before = [[p.detach().clone() for p in g["params"]] for g in optimizer.param_groups]
        train(optimizer, 1, t)
        expected.append(
            [
                float((p.grad * (b * (1 - g["lr"] * g["weight_decay"]) - p.detach())).sum())
                for g, bs in zip(optimizer.param_groups, before, strict=True)
                for p, b in zip(g["params"], bs, strict=True)
            ]
        )
    layers = np.array(expected)
    history = optimizer.history
    assert history.steps.tolist() == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(history.total("sigma"), layers.sum(axis=1), rtol=1e-10)
    np.testing.assert_allclose(history.group(0, "sigma"), layers[:, :2].sum(axis=1), rtol=1e-10)
    np.testing.assert_allclose(history.group(1, "sigma"), layers[:, 2], rtol=1e-10)
    np.testing.assert_allclose(history.layers("sigma"), layers, rtol=1e-6)  # layers are kept in float32
    np.testing.assert_allclose(history.group(1, "lr_eff"), 0.02)
    np.testing.assert_allclose(history.total("wd_eff"), (17 * 0.1 + 4 * 0.3) / 21)


def test_ratios_are_formed_after_adding() -> None:
    optimizer = make_optimizer()
    norms = []
    for t in range(4):
        params = [p for g in optimizer.param_groups for p in g["params"]]
        before = float(sum((p.detach() ** 2).sum() for p in params))
        train(optimizer, 1, t)
        norms.append((float(sum((p.grad**2).sum() for p in params)) / before) ** 0.5)
    np.testing.assert_allclose(optimizer.history.total("grad_param_ratio"), norms, rtol=1e-12)


@pytest.mark.parametrize("name", QUANTITIES)
def test_every_quantity_is_that_of_the_readings(name: str) -> None:
    optimizer = make_optimizer(ema_steps=4)
    readings = train(optimizer, 9)
    history = optimizer.history
    assert history.steps.tolist() == [r.step for r in readings]
    for i, reading in enumerate(readings):
        assert same(history.total(name)[i], getattr(reading.total, name))
        for index, group in enumerate(reading.groups):
            assert same(history.group(index, name)[i], getattr(group, name))
    assert history.layer_names == ["w0", "w1", "w2"]
    assert history.layer_steps.tolist() == [r.step for r in readings]
    for row, reading in zip(history.layers(name), readings, strict=True):
        scale = max(abs(getattr(reading.total, part)) for part in ("sigma", "d_iS_noise", "d_iS_momentum"))
        for value, layer in zip(row, history.layer_names, strict=True):
            expected = getattr(reading.layers[layer], name)
            # float32 terms: what is a small difference of large ones keeps their rounding
            assert same(value, expected, rel=1e-4) or abs(value - expected) < 1e-6 * scale


def test_empty_history() -> None:
    history = make_optimizer().history
    assert len(history) == 0
    assert history.total("sigma").shape == (0,)
    assert history.layers("sigma").shape == (0, 0)
    assert history.layer_names == []
    assert list(history.records()) == []


@pytest.mark.parametrize("filled", [False, True], ids=["empty", "filled"])
def test_unknown_quantities_and_groups(filled: bool) -> None:
    optimizer = make_optimizer()
    train(optimizer, 2 * filled)
    history = optimizer.history
    for ask in (history.total, history.layers):
        with pytest.raises(KeyError, match="no quantity named 'entropy'; the names are sigma, "):
            ask("entropy")
    for index in (-1, 2):
        with pytest.raises(
            IndexError, match=rf"group must be >= 0 and < \d+, the number with readings, got {index}"
        ):
            history.group(index, "sigma")
    if filled:
        with pytest.raises(KeyError, match="no quantity named 'entropy'"):
            history.group(0, "entropy")


def test_a_group_added_in_mid_run_is_nan_before() -> None:
    optimizer = make_optimizer(groups=1)
    train(optimizer, 3)
    total_before = optimizer.history.total("sigma")
    late = Parameter(torch.ones(3, dtype=torch.float64))
    optimizer.add_param_group({"params": [("late", late)], "name": "late"})
    readings = train(optimizer, 2, first=3)
    history = optimizer.history
    group = history.group(1, "sigma")
    assert np.isnan(group).tolist() == [True, True, True, False, False]
    assert group[3:].tolist() == [r.groups[1].sigma for r in readings]
    np.testing.assert_array_equal(history.total("sigma")[:3], total_before)
    np.testing.assert_array_equal(history.group(0, "sigma")[:3], total_before)
    assert history.layer_names == ["w0", "w1", "w2", "late"]
    layers = history.layers("sigma")
    assert np.isnan(layers[:3, 3]).all()
    assert np.isfinite(layers[:, :3]).all()
    assert np.isfinite(layers[3:, 3]).all()


def test_layers_never_seen_are_nan() -> None:
    history = History()
    history.append(fake(1, layers=3, seen=[True, False, True]))
    assert np.isnan(history.layers("numel")).tolist() == [[False, True, False]]
    (record,) = history.records()
    assert list(record["layers"]) == ["layer0", "layer2"]


# -------------------------------------------------------------------- going back, copies


def test_rewind() -> None:
    history = History(max_layer_readings=100)
    for step in range(1, 11):
        history.append(fake(step))
    history.rewind(20)
    assert len(history) == 10
    history.rewind(4)
    assert history.steps.tolist() == [1, 2, 3, 4]
    assert history.layer_steps.tolist() == [1, 2, 3, 4]
    history.append(fake(5, seed=99))
    assert history.steps.tolist() == [1, 2, 3, 4, 5]
    assert history.total("sigma")[-1] == fake(5, seed=99).total.sigma
    history.rewind(0)
    assert len(history) == 0


def test_loading_a_checkpoint_rewinds_and_the_run_repeats_itself() -> None:
    optimizer = make_optimizer(ema_steps=5)
    train(optimizer, 4)
    params = [p for g in optimizer.param_groups for p in g["params"]]
    state, values = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for p in params]
    train(optimizer, 5, first=4)
    first = list(optimizer.history.records())
    assert [r["step"] for r in first] == list(range(1, 10))
    optimizer.load_state_dict(state)
    assert optimizer.history.steps.tolist() == [1, 2, 3, 4]
    with torch.no_grad():
        for p, value in zip(params, values, strict=True):
            p.copy_(value)
    train(optimizer, 5, first=4)
    assert list(optimizer.history.records()) == first


@pytest.mark.parametrize(
    "copier", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deep", "pickle"]
)
def test_copies_have_their_own_history(copier: Any) -> None:
    optimizer = make_optimizer(ema_steps=5)
    train(optimizer, 4)
    expected = list(optimizer.history.records())
    twin = copier(optimizer)
    assert list(twin.history.records()) == expected
    train(twin, 3, first=4)
    assert len(twin.history) == 7
    assert list(optimizer.history.records()) == expected
    train(optimizer, 3, first=4)
    assert list(optimizer.history.records()) == list(twin.history.records())


# -------------------------------------------------------------------- files


def to_json(value: float) -> float | None:
    return value if math.isfinite(value) else None


@pytest.fixture
def undefined() -> tuple[ThermoAdamW, list[Reading]]:
    """A run without decay: ``wd_balance`` is 0 or NaN and ``free_fall`` NaN throughout."""
    optimizer = make_optimizer(groups=1, weight_decay=0.0, ema_steps=3)
    return optimizer, train(optimizer, 5)


def test_jsonl_export_holds_the_readings(tmp_path: Path, undefined: Any) -> None:
    optimizer, readings = undefined
    path = tmp_path / "run.jsonl"
    optimizer.history.export_jsonl(path)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    lines = path.read_text().splitlines()
    records = [json.loads(line, parse_constant=refuse) for line in lines]
    assert [r["step"] for r in records] == [r.step for r in readings]
    for record, reading in zip(records, readings, strict=True):
        assert record["total"] == {name: to_json(v) for name, v in vars(reading.total).items()}
        assert record["groups"] == {
            "group0": {name: to_json(v) for name, v in vars(reading.groups[0]).items()}
        }
        assert list(record["total"]) == list(QUANTITIES)
        assert record["total"]["free_fall"] is None
        assert list(record["layers"]) == ["w0", "w1", "w2"]
        for name, layer in record["layers"].items():
            assert layer["sigma"] == pytest.approx(reading.layers[name].sigma, rel=1e-6)
            assert layer["numel"] == reading.layers[name].numel
            assert layer["free_fall"] is None


def test_csv_export_holds_the_readings(tmp_path: Path, undefined: Any) -> None:
    optimizer, readings = undefined
    path = tmp_path / "run.csv"
    optimizer.history.export_csv(path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "scope", *QUANTITIES]
    expected = [
        (r.step, scope, q) for r in readings for scope, q in (("total", r.total), ("group0", r.groups[0]))
    ]
    assert len(rows) == len(expected)
    for row, (step, scope, quantity) in zip(rows, expected, strict=True):
        assert (int(row["step"]), row["scope"]) == (step, scope)
        for name, value in vars(quantity).items():
            assert row[name] == ("" if not math.isfinite(value) else repr(value)), name
        assert row["free_fall"] == ""


def test_exports_name_groups_and_thin_layers(tmp_path: Path) -> None:
    optimizer = make_optimizer()
    history = History(max_layer_readings=2)
    for reading in train(optimizer, 5):
        history.append(reading)
    history.export_jsonl(tmp_path / "a.jsonl")
    records = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [list(r["groups"]) for r in records] == [["body", "head"]] * 5
    assert [r["step"] for r in records if "layers" in r] == history.layer_steps.tolist()
    assert len(history.layer_steps) < 5


def test_exports_overwrite_and_name_a_bad_path(tmp_path: Path) -> None:
    optimizer = make_optimizer()
    train(optimizer, 2)
    path = tmp_path / "run.jsonl"
    optimizer.history.export_jsonl(str(path))
    optimizer.history.export_jsonl(path)
    assert len(path.read_text().splitlines()) == 2
    for export in (optimizer.history.export_jsonl, optimizer.history.export_csv):
        with pytest.raises(OSError, match=r"run\.jsonl"):
            export(path / "below")


def test_a_group_may_be_called_total(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    a, b = (Parameter(torch.randn(3, generator=generator, dtype=torch.float64)) for _ in range(2))
    groups = [{"params": [a], "name": "total"}, {"params": [b]}]
    optimizer = ThermoAdamW(groups, measure_every=1, ema_steps=1)
    (reading,) = train(optimizer, 1)
    optimizer.history.export_csv(tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert len({row["scope"] for row in rows}) == 3
    assert float(rows[0]["sigma"]) == reading.total.sigma
