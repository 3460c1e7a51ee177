"""Sinks for trackers: TensorBoard and Lightning for real, others by doubles of what they do with a call."""

from __future__ import annotations

import csv
import math
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from tests.support.trackers import (
    GROUPS,
    LOOPS,
    MLFLOW_NAMES,
    MLflow,
    Run,
    Trackio,
    WandbRun,
    expected_scalars,
    make_optimizer,
    read_rows,
    train,
    train_beside,
)
from thermoopt import LogSink, Observer, TensorBoardSink
from thermoopt.sinks.trackers import MLflowSink, WandbSink

# -------------------------------------------------------------------- TensorBoard


def tensorboard_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize("wrapped", [True, False], ids=["TensorBoardSink", "SummaryWriter"])
@pytest.mark.parametrize("names", [GROUPS, ("h.0.attn/q,k", "rate = 3e-4")], ids=["plain", "free text"])
def test_tensorboard_reads_the_scalars_back(tmp_path: Path, wrapped: bool, names: tuple[str, ...]) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path))
    readings = train(make_optimizer(TensorBoardSink(writer) if wrapped else writer, names=names), 3)
    writer.close()
    got = tensorboard_scalars(tmp_path)
    expected = [expected_scalars(r, names) for r in readings]
    assert set(got) == set().union(*expected)
    assert f"thermo/{names[1]}/free_fall" not in got  # without decay it is NaN
    assert "thermo/total/sigma" in got
    for tag, values in got.items():
        want = [
            (r.step, pytest.approx(scalars[tag], rel=1e-6))  # event files hold float32
            for r, scalars in zip(readings, expected, strict=True)
            if tag in scalars
        ]
        assert values == want, tag


def test_a_wrong_writer_is_named() -> None:
    with pytest.raises(TypeError, match=r"writer must be an object with add_scalar.* got 3"):
        TensorBoardSink(3)


# -------------------------------------------------------------------- log(dict, step), trackio


@pytest.mark.parametrize("wrap", [LogSink, lambda logger: logger], ids=["LogSink", "as it is"])
@pytest.mark.parametrize("kind", [Run, Trackio])
def test_log_is_called_once_a_reading(kind: type, wrap: Callable[[Any], Any]) -> None:
    logger = kind()
    readings = train(make_optimizer(wrap(logger)), 3)
    assert logger.calls == [(expected_scalars(r), r.step) for r in readings]
    assert all(type(v) in (int, float) for values, _ in logger.calls for v in values.values())
    assert all(math.isfinite(v) for values, _ in logger.calls for v in values.values())


def test_readings_wait_for_trackio_to_begin() -> None:
    trackio = Trackio()
    trackio.begun = False
    optimizer = make_optimizer(trackio)
    with pytest.warns(RuntimeWarning, match=r"Call trackio\.init\(\)"):
        train(optimizer, 2)
    trackio.begun = True
    train(optimizer, 1)
    assert [step for _, step in trackio.calls] == [1, 2, 3]


def test_a_wrong_logger_is_named() -> None:
    with pytest.raises(
        TypeError, match=r"an object with log\(dict, step\) or a function f\(dict, step=\), got 3"
    ):
        LogSink(3)


def test_skips_are_logged() -> None:
    run = Run()
    optimizer = make_optimizer(run)
    train(optimizer, 1)
    optimizer.zero_grad()
    optimizer.step()
    assert optimizer.reading.skipped["no_gradients"] == 1
    assert len(run.calls) == 1  # a skipped step gives no line of its own
    train(optimizer, 1)
    assert [(step, values["thermo/skipped/no_gradients"]) for values, step in run.calls] == [(1, 0), (3, 1)]


def test_an_observer_feeds_trackers_too() -> None:
    run = Run()
    p = Parameter(torch.ones(6))
    sgd = torch.optim.SGD([p], lr=0.1)
    observer = Observer(None, sgd, log_every=1, ema_steps=1, sinks=[run])
    readings = []
    for i in range(3):
        p.grad = torch.full((6,), 1.0 + i)
        sgd.step()
        readings.append(observer.reading)
    assert run.calls == [(expected_scalars(r, ("group0",)), r.step) for r in readings]
    assert "thermo/total/r" not in run.calls[0][0]  # SGD has none


# -------------------------------------------------------------------- W&B


@pytest.mark.parametrize("loop", [loop for loop in LOOPS if loop != "epochs"])
def test_wandb_loses_neither_readings_nor_the_users_rows(loop: str) -> None:
    run = WandbRun()
    readings, losses = train_beside(run, run, loop)
    run.finish()
    ours, theirs = read_rows(run.history)
    assert ours == [{**expected_scalars(r), "thermo/step": r.step} for r in readings]
    assert theirs == losses
    assert run.refused == []
    assert run.defined == [("thermo/step", None), ("thermo/*", "thermo/step")]


@pytest.mark.parametrize("loop", list(LOOPS))
def test_wandb_rows_are_left_alone_on_demand(loop: str) -> None:
    """With keep_all=False the user's rows and steps are what they are without the sink."""
    alone = WandbRun()
    train_beside(alone, Run(), loop)
    alone.finish()
    run = WandbRun()
    readings, losses = train_beside(run, WandbSink(run, keep_all=False), loop)
    run.finish()
    own = [{k: v for k, v in row.items() if not k.startswith("thermo/")} for row in run.history]
    assert [row for row in own if "loss" in row] == alone.history
    ours, theirs = read_rows(run.history)
    assert theirs == losses
    assert ours[-1]["thermo/step"] == readings[-1].step
    assert len(ours) >= max(1, len(losses) - 1)  # the row of step 0 stays open for the second reading


def test_wandb_epochs_as_steps_are_what_keep_all_cannot_serve() -> None:
    run = WandbRun()
    readings, losses = train_beside(run, run, "epochs")
    run.finish()
    ours, theirs = read_rows(run.history)
    assert [row["thermo/step"] for row in ours] == [r.step for r in readings]
    assert len(theirs) < len(losses)  # as the documentation says, and W&B warns


def test_wandb_plain_log_would_lose_readings() -> None:
    """Why WandbSink exists: the reading's own step is behind the user's."""
    run = WandbRun()
    train_beside(run, LogSink(run), "micro-batches")
    run.finish()
    assert len(run.refused) > 0


def test_wandb_module_is_asked_for_its_run() -> None:
    wandb = types.ModuleType("wandb")
    wandb.run = None
    wandb.log = wandb.define_metric = lambda *args, **kwargs: pytest.fail("the run is to be called")
    optimizer = make_optimizer(wandb)
    with pytest.warns(RuntimeWarning, match=r"wandb has no run: call wandb\.init\(\)"):
        train(optimizer, 2)
    wandb.run = first = WandbRun()
    train(optimizer, 1)
    wandb.run = second = WandbRun()
    train(optimizer, 2)
    for run, steps in ((first, [1, 2, 3]), (second, [4, 5])):
        run.finish()
        assert [row["thermo/step"] for row in run.history] == steps
        assert run.defined == [("thermo/step", None), ("thermo/*", "thermo/step")]


def test_wandb_shared_mode_has_no_step() -> None:
    run = WandbRun(mode="shared")
    train(make_optimizer(run), 3)
    assert [row["thermo/step"] for row in run.history] == [1, 2, 3]


def test_a_wrong_wandb_run_is_named() -> None:
    with pytest.raises(TypeError, match=r"run must be wandb or the run that wandb\.init.* got None"):
        WandbSink(None)


def test_a_run_that_is_not_there_is_explained() -> None:
    with pytest.raises(
        TypeError, match=r"sinks must be .* got None.*wandb\.run is None before wandb\.init\(\)"
    ):
        make_optimizer(None)


# -------------------------------------------------------------------- SwanLab, functions


class SwanLab(types.ModuleType):
    """SwanLab 0.10 as far as sinks go, module and run: W&B's names, but no ``commit``, no step of a row."""

    def __init__(self) -> None:
        super().__init__("swanlab")
        self.calls: list[tuple[dict[str, float], int | None]] = []
        self.run = types.SimpleNamespace(log=self.log, define_metric=self.define_metric)

    def log(self, data: dict[str, float], step: int | None = None) -> None:
        self.calls.append((data, step))

    def define_metric(self, key: str, **kwargs: Any) -> None:
        pytest.fail("SwanLab takes a step with each value")


@pytest.mark.parametrize("given", ["module", "run", "log"])
def test_swanlab_is_not_taken_for_wandb(given: str) -> None:
    swanlab = SwanLab()
    sink = {"module": swanlab, "run": swanlab.run, "log": swanlab.log}[given]
    readings = train(make_optimizer(sink), 3)
    assert swanlab.calls == [(expected_scalars(r), r.step) for r in readings]
    with pytest.raises(TypeError, match=r"run must be wandb or the run that wandb\.init"):
        WandbSink(swanlab.run)


def test_a_function_gets_each_reading() -> None:
    calls: list[tuple[str, float, int]] = []

    def record(values: dict[str, float], step: int) -> None:
        calls.extend((name, value, step) for name, value in values.items())

    class AimRun:
        def track(self, values: dict[str, float], name: str | None = None, step: int | None = None) -> None:
            assert name is None
            record(values, step)

    for sink in (record, partial(record), AimRun().track):
        calls.clear()
        readings = train(make_optimizer(sink), 2)
        assert calls == [(name, v, r.step) for r in readings for name, v in expected_scalars(r).items()]
    (reading,) = train(make_optimizer(LogSink(record, prefix="critic", layers="*")), 1)
    assert {f"critic/layers/{name}/sigma" for name in reading.names} <= {name for name, _, _ in calls}


def test_a_trackers_log_is_taken_for_the_tracker() -> None:
    """``wandb.log`` is a method of the run: called with a step of ours it would drop the user's rows."""
    run, mlflow = WandbRun(), MLflow()
    readings = train(make_optimizer(run.log, mlflow.log_metrics), 2)
    run.finish()
    assert [row["thermo/step"] for row in run.history] == [r.step for r in readings]
    assert run.refused == []
    assert [step for _, step, _ in mlflow.calls] == [r.step for r in readings]


def test_what_can_be_called_but_is_no_function_is_refused() -> None:
    for wrong in (torch.nn.Linear(2, 2), torch.optim.AdamW):
        with pytest.raises(TypeError, match=r"or functions f\(dict, step=\) that hand .*, got "):
            make_optimizer(wrong)


# -------------------------------------------------------------------- MLflow


def test_mlflow_log_metrics_is_called_once_a_reading() -> None:
    mlflow = MLflow()
    readings = train(make_optimizer(mlflow), 3)
    assert mlflow.calls == [(expected_scalars(r), r.step, None) for r in readings]


def test_mlflow_run_of_ones_choice() -> None:
    mlflow = MLflow()
    mlflow.run = None
    readings = train(make_optimizer(MLflowSink(mlflow, run_id="abc")), 2)
    assert mlflow.calls == [(expected_scalars(r), r.step, "abc") for r in readings]


def test_mlflow_starts_no_run_of_its_own() -> None:
    mlflow = MLflow()
    mlflow.run = None
    optimizer = make_optimizer(mlflow)
    with pytest.warns(RuntimeWarning, match=r"mlflow has no active run: call mlflow\.start_run\(\)"):
        train(optimizer, 2)
    assert mlflow.calls == []
    mlflow.run = object()
    train(optimizer, 1)
    assert [step for _, step, _ in mlflow.calls] == [1, 2, 3]


def test_mlflow_names_are_such_that_it_takes() -> None:
    mlflow = MLflow()
    (reading,) = train(make_optimizer(mlflow, names=tuple(MLFLOW_NAMES)), 1)
    assert mlflow.calls[0][0] == expected_scalars(reading, tuple(MLFLOW_NAMES.values()))
    assert max(map(len, mlflow.calls[0][0])) <= 250
    # two groups never go by one name: the one that had to be changed gives way, wherever it stands
    names = ("a_b", "a:b")
    (reading,) = train(make_optimizer(mlflow, names=names), 1)
    assert mlflow.calls[1][0] == expected_scalars(reading, ("a_b", "a_b.1"))


def test_what_is_no_mlflow_is_refused_with_a_hint() -> None:
    class MlflowClient:
        def log_batch(self, run_id: str, metrics: Any = ()) -> None: ...

        def log_metric(self, run_id: str, key: str, value: float) -> None: ...

    active = types.SimpleNamespace(info=types.SimpleNamespace(run_id="abc"), data=None)
    for wrong in (MlflowClient(), active):
        with pytest.raises(
            TypeError, match=r"pass the module mlflow, or MLflowSink\(mlflow, run_id=\.\.\.\)"
        ):
            make_optimizer(wrong)
    with pytest.raises(TypeError, match=r"mlflow must be the module mlflow .*got 3"):
        MLflowSink(3)


def test_lightnings_loggers_are_taken(tmp_path: Path) -> None:
    loggers = pytest.importorskip("lightning.pytorch.loggers", reason="Lightning is not installed")
    logger = loggers.CSVLogger(str(tmp_path), name="n", version="v")
    readings = train(make_optimizer(logger), 3)
    logger.save()
    with (tmp_path / "n" / "v" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [r.step for r in readings]
    for row, reading in zip(rows, readings, strict=True):
        got = {tag: float(text) for tag, text in row.items() if text and tag != "step"}
        assert got == pytest.approx(expected_scalars(reading))


# -------------------------------------------------------------------- prefix and layers


@pytest.mark.parametrize("kind", [LogSink, TensorBoardSink, WandbSink, MLflowSink])
def test_two_optimizers_share_a_tracker_by_prefix_and_layers_go_on_request(kind: type) -> None:
    calls: dict[str, float] = {}

    class Tracker:
        step = 0

        def log(self, values: dict[str, float], step: int | None = None, commit: bool = True) -> None:
            calls.update(values)

        def log_metrics(self, values: dict[str, float], step: int) -> None:
            calls.update(values)

        def add_scalar(self, tag: str, value: float, step: int) -> None:
            calls[tag] = value

        def define_metric(self, name: str, step_metric: str | None = None) -> None:
            assert name.startswith("critic/")

    (plain,) = train(make_optimizer(), 1)
    names = plain.names
    sink = kind(Tracker(), prefix="critic", layers=f"{names[0]}, nothing*")
    (reading,) = train(make_optimizer(sink), 1)
    want = {name.replace("thermo/", "critic/", 1): v for name, v in expected_scalars(reading).items()}
    layer = reading.layers[names[0]]
    for name in (
        "sigma",
        "r",
        "R_ie",
        "wd_balance",
        "gaussianity",
        "rho_momentum",
        "angular_step",
        "param_norm",
    ):
        value = getattr(layer, name)
        if math.isfinite(value):
            want[f"critic/layers/{names[0]}/{name}"] = pytest.approx(value)
    calls.pop("critic/step", None)
    assert calls == want


def test_wrong_prefixes_and_patterns_are_named() -> None:
    for wrong in ("", "/a", "a/", "x" * 41):
        with pytest.raises(ValueError, match="prefix must be a name of 1 to 40 characters"):
            TensorBoardSink(types.SimpleNamespace(add_scalar=print), prefix=wrong)
    with pytest.raises(TypeError, match="prefix and layers must be strings, got 3"):
        LogSink(types.SimpleNamespace(log=print), prefix=3)
    optimizer = make_optimizer(LogSink(types.SimpleNamespace(log=lambda values, step: None), layers="attn"))
    with pytest.warns(RuntimeWarning, match="no layer matches attn: names look like"):
        train(optimizer, 2)
