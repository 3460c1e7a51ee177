"""What a record says of a run besides its readings: diagnosis from file sees what it sees in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from thermoopt import JSONLSink, Observer, diagnose
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
    assert len(facts) == 4  # with the first reading, and at each flush, after more steps
    assert sum("start_norms" in line for line in facts) == 1


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
