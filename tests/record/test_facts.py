"""What a record says of a run besides its readings: diagnosis from file sees what it sees in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from thermoopt import CSVSink, JSONLSink, Observer, ThermoAdamW, diagnose
from thermoopt.record import SavedRun
from thermoopt.sinks import ParquetSink


def trained(sink: Any, lr: float, bad_step: int = 0, steps: int = 150) -> Observer:
    """A regression; at ``bad_step`` a gradient is not a number, and so is everything after it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 2))
    model[0].bias.requires_grad_(False)
    x = torch.randn(64, 6)
    y = torch.stack([x[:, 0] * x[:, 1], x[:, 2]], dim=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    observer = Observer(model, optimizer, sinks=[sink], log_every=1, ema_steps=10)
    for step in range(1, steps + 1):
        batch = torch.randint(0, 64, (16,))
        loss = (model(x[batch]) - y[batch]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if step == bad_step:
            model[0].weight.grad[0, 0] = float("nan")
        optimizer.step()
        observer.step(loss=loss)
        if step % 50 == 0:  # the queue never fills, however busy the machine
            observer.sinks.flush()
    return observer


def found(run: Any) -> dict[str, str]:
    return {f.kind: f.confidence for f in diagnose(run).findings if f.confidence != "LOW"}


@pytest.mark.parametrize(("kind", "name"), [(JSONLSink, "run.jsonl.gz"), (ParquetSink, "run.parquet")])
@pytest.mark.parametrize(
    ("lr", "bad_step", "finding"), [(30.0, 0, "learning_rate_runaway"), (0.01, 60, "non_finite_steps")]
)
def test_diagnosis_from_file_is_that_from_memory(
    tmp_path: Path, kind: Any, name: str, lr: float, bad_step: int, finding: str
) -> None:
    if kind is ParquetSink:
        pytest.importorskip("pyarrow")
    sink = kind(tmp_path / name, **({"every": 16} if kind is ParquetSink else {}))
    observer = trained(sink, lr, bad_step)
    run = SavedRun.read(tmp_path / name)
    assert finding in found(observer)
    assert found(run) == found(observer)
    assert run.skipped == observer.skipped
    assert run.bad_losses == observer.bad_losses
    assert run.steps == observer.steps == 150
    assert run.ema_steps == 10
    assert run.frozen >= observer.frozen == {"0.bias"}
    assert run.matrices == observer.matrices
    assert run.start_norms == {k: observer.start_norms[k] for k in run.history.layer_names}
    first = (run.losses.steps[0], run.losses.values[0])
    assert first == (observer.losses.steps[0], observer.losses.values[0])
    assert not [note for note in run.notes if note["note"] == "run"]


def test_facts_are_written_when_they_change(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    observer = trained(JSONLSink(path), 0.01)
    lines = path.read_text().splitlines()
    observer.sinks.flush()
    assert path.read_text().splitlines() == lines
    facts = [line for line in lines if '"note": "run"' in line]
    assert len(facts) == 3  # at each flush, after more steps
    assert "start_norms" in lines[0]
    assert not any("start_norms" in line for line in lines[1:])


def test_an_observer_that_is_gone_is_not_kept_by_its_record(tmp_path: Path) -> None:
    import gc
    import weakref

    sink = JSONLSink(tmp_path / "run.jsonl")
    observer = trained(sink, 0.01, steps=30)
    gone = weakref.ref(observer)
    observer.close()
    del observer
    gc.collect()
    assert gone() is None
    sink.flush()
    assert len(SavedRun.read(tmp_path / "run.jsonl").history) > 0
    assert np.isfinite(list(SavedRun.read(tmp_path / "run.jsonl").start_norms.values())).all()


def run_of(
    sinks: list[Any], lr: float, bad_step: int = 0, steps: int = 120, observed: bool = False, **options: Any
) -> tuple[ThermoAdamW, Observer | None, nn.Module]:
    """A regression by ThermoAdamW with closures, of which one step in 10 is read."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 2))
    model[0].bias.requires_grad_(False)
    options = {"measure_every": 10, "ema_steps": 20, **options}
    optimizer = ThermoAdamW(model.named_parameters(), lr=lr, sinks=sinks, **options)
    observer = Observer(model, optimizer) if observed else None
    x = torch.randn(64, 6)
    y = torch.stack([x[:, 0] * x[:, 1], x[:, 2]], dim=1)
    for step in range(1, steps + 1):

        def closure(step: int = step) -> torch.Tensor:
            batch = torch.randint(0, 64, (16,))
            optimizer.zero_grad()
            loss = (model(x[batch]) - y[batch]).square().mean()
            loss.backward()
            if step == bad_step:
                model[0].weight.grad[0, 0] = float("nan")
            return loss

        loss = optimizer.step(closure)
        if observer is not None:
            observer.step(loss=loss)
    return optimizer, observer, model


@pytest.mark.parametrize(("kind", "name"), [(JSONLSink, "run.jsonl.gz"), (ParquetSink, "run.parquet")])
@pytest.mark.parametrize(
    ("lr", "bad_step", "finding"), [(30.0, 0, "learning_rate_runaway"), (0.01, 55, "non_finite_steps")]
)
def test_diagnosis_from_a_record_without_an_observer_is_that_from_memory(
    tmp_path: Path, kind: Any, name: str, lr: float, bad_step: int, finding: str
) -> None:
    """An observer of the same run says what diagnosis from memory finds; the record knows of none."""
    if kind is ParquetSink:
        pytest.importorskip("pyarrow")
    optimizer, _, _ = run_of([kind(tmp_path / name)], lr, bad_step)
    optimizer.sinks.flush()
    _, observer, _ = run_of([], lr, bad_step, observed=True)
    run = SavedRun.read(tmp_path / name)
    assert observer is not None
    assert finding in found(observer)
    assert found(run) == found(observer)
    assert run.history.steps[0] == 10
    assert run.start_norms == pytest.approx(
        {layer: observer.start_norms[layer] for layer in run.history.layer_names}, rel=1e-12
    )
    first = (observer.losses.steps[0], observer.losses.values[0])
    assert (run.losses.steps[0], run.losses.values[0]) == first
    assert (run.ema_steps, run.steps, run.bad_losses) == (20, 120, observer.bad_losses)
    assert run.skipped == optimizer.skipped == observer.skipped
    assert run.matrices == {"0.weight", "2.weight"}
    assert run.frozen == {"0.bias"}


def test_the_start_costs_no_row_and_no_reading(tmp_path: Path) -> None:
    sinks = [JSONLSink(tmp_path / "run.jsonl"), CSVSink(tmp_path / "run.csv")]
    optimizer, _, _ = run_of(sinks, 0.01, steps=20)
    optimizer.sinks.flush()
    optimizer.state_dict()
    lines = (tmp_path / "run.jsonl").read_text().splitlines()
    assert [next(iter(json.loads(line))) for line in lines] == ["thermoopt", "step", "step"]
    assert len((tmp_path / "run.csv").read_text().splitlines()) == 1 + 2 * 2
    assert len(json.loads(lines[0])["run"]["start_norms"]) == 4


def test_an_observers_facts_leave_a_table_as_it_is(tmp_path: Path) -> None:
    observer = trained(CSVSink(tmp_path / "run.csv"), 0.01, steps=51)
    observer.sinks.flush()
    rows = (tmp_path / "run.csv").read_text().splitlines()[1:]
    assert len(rows) == 2 * len(observer.history)
    assert not [row for row in rows if ",," * 10 in row]


def test_the_start_lasts_through_checkpoints_and_new_groups(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    options = {"lr": 1e-2, "weight_decay": 3.0, "measure_every": 10, "ema_steps": 20}
    optimizer, _, model = run_of([JSONLSink(path)], steps=30, **options)
    saved, weights = optimizer.state_dict(), model.state_dict()
    before = SavedRun.read(path)
    model = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 2))
    optimizer = ThermoAdamW(model.named_parameters(), sinks=[JSONLSink(path)], **options)
    model.load_state_dict(weights)
    optimizer.load_state_dict(saved)
    added = nn.Linear(6, 2)
    start = {
        f"added.{name}": float(p.detach().double().square().sum()) for name, p in added.named_parameters()
    }
    names = [(f"added.{name}", p) for name, p in added.named_parameters()]
    optimizer.add_param_group({"params": names, "name": "added"})
    for _ in range(30):
        x = torch.randn(16, 6)
        optimizer.zero_grad()
        loss = (model(x) + added(x) - x[:, :2]).square().mean()
        loss.backward()
        optimizer.report_loss(loss)
        optimizer.step()
    optimizer.sinks.flush()
    run = SavedRun.read(path)
    assert run.history.steps.tolist() == [10, 20, 31, 42, 52]
    known = {name: norm for name, norm in before.start_norms.items() if name in run.history.layer_names}
    assert len(known) == 4
    assert run.start_norms == pytest.approx(known | start, rel=1e-6)
    assert (run.losses.steps[0], run.losses.values[0]) == (before.losses.steps[0], before.losses.values[0])


def test_counts_of_after_a_checkpoint_that_was_loaded_are_forgotten(tmp_path: Path) -> None:
    """A note says 25 steps; the run then goes on from the 10th and ends, killed, with its 20th."""
    path = tmp_path / "run.jsonl"
    optimizer, _, _ = run_of([JSONLSink(path)], 0.01, steps=25)
    optimizer.sinks.flush()
    run = SavedRun.read(path)
    assert (run.steps, run.history.steps.tolist()) == (25, [10, 20])
    head, *readings, note = path.read_text().splitlines()
    assert json.loads(note)["steps"] == 25
    path.write_text("\n".join([head, *readings, note, readings[1], ""]))
    assert SavedRun.read(path).steps == 20
