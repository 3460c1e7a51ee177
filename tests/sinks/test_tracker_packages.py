"""wandb, mlflow-skinny and trackio themselves, where they are installed, and what they wrote read back."""

from __future__ import annotations

import inspect
import json
import sqlite3
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.trackers import (
    MLFLOW_NAMES,
    MLflow,
    Trackio,
    WandbRun,
    expected_scalars,
    make_optimizer,
    one_step,
    read_rows,
    train,
    train_beside,
)
from thermoopt.sinks.trackers import MLflowSink, WandbSink

installed = pytest.mark.filterwarnings(
    "ignore:::wandb", "ignore:::mlflow", "ignore:::trackio", "ignore:::pydantic"
)


def takes(f: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Raise TypeError unless a function has these parameters."""
    inspect.signature(f).bind(*args, **kwargs)


@installed
def test_wandb_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An offline run, its file read back: as the double says."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    for loop in ("from 0", "every 3rd without a step", "micro-batches", "epochs"):
        run = wandb.init(project="p", dir=str(tmp_path), settings=wandb.Settings(console="off"))
        double = WandbRun()
        for each in (run, double):
            takes(each.log, {}, step=None, commit=False)
            takes(each.define_metric, "thermo/*", step_metric="thermo/step")
        sink = WandbSink(run, keep_all=False) if loop == "epochs" else [run, wandb][len(loop) % 2]
        readings, losses = train_beside(run, sink, loop)
        own = WandbSink(double, keep_all=False) if loop == "epochs" else double
        train_beside(double, own, loop)
        run.finish()
        double.finish()
        deadline = time.monotonic() + 20  # finish() does not wait for another process to write the file
        while (rows := wandb_rows(Path(run.dir).parent)) != double.history and time.monotonic() < deadline:
            time.sleep(0.1)
        assert rows == double.history, loop
        assert read_rows(rows)[1] == losses
        assert read_rows(rows)[0][-1]["thermo/step"] == readings[-1].step
    disabled = wandb.init(mode="disabled")
    optimizer = make_optimizer(disabled)
    train(optimizer, 2)
    assert optimizer.sinks.unsent == 0
    disabled.finish()


def wandb_rows(folder: Path) -> list[dict[str, Any]]:
    """History rows of an offline run: records in blocks of 32 KB, as in LevelDB's log."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("*.wandb")
    data, at, record = path.read_bytes(), 7, b""
    rows = []
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        _, length, kind = struct.unpack("<IHB", data[at : at + 7]) if left >= 7 else (0, 0, 0)
        if kind == 0:
            at += left
            continue
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            parsed, record = wandb_internal_pb2.Record.FromString(record), b""
            if parsed.WhichOneof("record_type") == "history":
                row = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in parsed.history.item}
                rows.append({k: v for k, v in row.items() if k not in ("_timestamp", "_runtime")})
    return rows


@installed
def test_mlflow_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store of files, read back."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    for each in (mlflow, MLflow()):
        takes(each.log_metrics, {}, step=1)
        takes(each.log_metrics, {}, step=1, run_id="abc")
        takes(each.active_run)
    names = tuple(MLFLOW_NAMES)
    plain = make_optimizer(MLflow(), names=names)
    told: list[dict[str, float]] = []
    plain.sinks._sinks[0]._mlflow.log_metrics = lambda metrics, step: told.append(metrics)
    optimizer = make_optimizer(mlflow, names=names)
    with mlflow.start_run() as run:
        for i in range(3):
            one_step(optimizer)
            one_step(plain)
            mlflow.log_metrics({"loss": 1.0 / (i + 1)}, step=10 * i)
    assert optimizer.sinks.unsent == 0
    late = make_optimizer(MLflowSink(mlflow, run_id=run.info.run_id))
    train(late, 4)
    assert mlflow.active_run() is None
    client = mlflow.MlflowClient()
    for tag, value in told[2].items():
        history = client.get_metric_history(run.info.run_id, tag)
        assert (3, pytest.approx(value)) in [(m.step, m.value) for m in history], tag
    steps = [m.step for m in client.get_metric_history(run.info.run_id, "thermo/total/sigma")]
    assert sorted(steps) == [1, 1, 2, 2, 3, 3, 4]
    for wrong in (run, client):
        with pytest.raises(TypeError, match="pass the module mlflow"):
            make_optimizer(wrong)


@installed
def test_trackio_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local project, its database read back; its own steps do not mind ours."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    trackio = pytest.importorskip("trackio", reason="trackio is not installed")
    for each in (trackio, Trackio()):
        takes(each.log, {}, step=1)
    run = trackio.init(project="p", name="r")
    optimizer, other = make_optimizer(trackio), make_optimizer(run)
    readings = []
    for i in range(3):
        trackio.log({"loss": 1.0 / (i + 1)}, step=10 * i)
        readings.append(one_step(optimizer))
    train(other, 2)
    trackio.finish()
    (database,) = tmp_path.glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = [
            (step, json.loads(text)) for step, text in connection.execute("select step, metrics from metrics")
        ]
    assert [(s, v) for s, v in rows if "loss" in v] == [(10 * i, {"loss": 1.0 / (i + 1)}) for i in range(3)]
    expected = [(r.step, expected_scalars(r)) for r in [*readings, *readings[:2]]]
    got = [(s, v) for s, v in rows if "loss" not in v]
    assert [s for s, _ in got] == [s for s, _ in expected]
    assert all(v == pytest.approx(w) for (_, v), (_, w) in zip(got, expected, strict=True))
