"""Training-thread cost of a reading with a tracker: TensorBoard, W&B (offline), MLflow (files), trackio.

    python benchmarks/overhead/trackers.py      # those that are installed; nothing leaves the machine

Readings are handed over one at a time, with some milliseconds between them for the tracker's own threads. The
table has the minimum of wall time and the median of the training thread's CPU time: on a busy machine they
bracket the cost.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thermoopt import ThermoAdamW
from thermoopt.sinks import LogSink, MLflowSink, TensorBoardSink, WandbSink

SIZES = {
    "1 group": (1, None),
    "2 groups": (2, None),
    "10 groups": (10, None),
    "2 groups, 148 layers": (2, "*"),
}
"""Groups of a row, and the pattern of the layers that are sent."""

LAYERS, READINGS, PAUSE = 148, 24, 0.02


def readings(groups: int) -> list[Any]:
    """Readings of some groups and 148 layers; quantities that only an Observer tracks are undefined."""
    torch.manual_seed(0)
    params = [(f"blocks.{i}.weight", torch.nn.Parameter(torch.randn(8, 8))) for i in range(LAYERS)]
    given = [{"params": params[i::groups], "name": f"group {i}"} for i in range(groups)]
    optimizer = ThermoAdamW(given, lr=1e-3, measure_every=1, ema_steps=5)
    for _, p in params:
        p.grad = torch.randn(8, 8)
    out = []
    for step in range(1, READINGS + 1):
        optimizer.step()
        reading = optimizer.reading
        assert reading is not None
        out.append(replace(reading, step=step, loss=2.5))
    return out


class _Nothing:
    values = 0

    def log(self, values: dict[str, float], step: int) -> None:
        self.values = len(values)


@contextlib.contextmanager
def tensorboard(folder: Path, layers: str | None) -> Iterator[Any]:
    """Event files."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        yield TensorBoardSink(writer, layers=layers)


@contextlib.contextmanager
def wandb(folder: Path, layers: str | None) -> Iterator[Any]:
    """An offline run."""
    package = importlib.import_module("wandb")
    run = package.init(mode="offline", dir=str(folder), settings=package.Settings(console="off", silent=True))
    yield WandbSink(run, layers=layers)
    run.finish()


@contextlib.contextmanager
def mlflow(folder: Path, layers: str | None) -> Iterator[Any]:
    """The file store."""
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    package = importlib.import_module("mlflow")
    package.set_tracking_uri(folder.as_uri())
    package.set_experiment("cost")
    with package.start_run():
        yield MLflowSink(package, layers=layers)


@contextlib.contextmanager
def trackio(folder: Path, layers: str | None) -> Iterator[Any]:
    """The local database."""
    os.environ["TRACKIO_DIR"] = str(folder)
    package = importlib.import_module("trackio")
    run = package.init(project=f"cost{folder.name}", embed=False)
    yield LogSink(run, layers=layers)
    package.finish()


TRACKERS: dict[str, Callable[[Path, str | None], Any]] = {
    "nothing: making the values": lambda folder, layers: contextlib.nullcontext(
        LogSink(_Nothing(), layers=layers)
    ),
    "trackio": trackio,
    "W&B, offline": wandb,
    "TensorBoard": tensorboard,
    "MLflow, files": mlflow,
}


def milliseconds(tracker: Callable[[Path, str | None], Any], groups: int, layers: str | None) -> str:
    """Of one reading in the training thread: least wall time, and CPU time of that thread, the median."""
    taken = []
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        tracker(Path(folder), layers) as sink,
    ):
        for reading in readings(groups):
            began = time.perf_counter(), time.thread_time()
            sink.write(reading)
            taken.append((time.perf_counter() - began[0], time.thread_time() - began[1]))
            time.sleep(PAUSE)
    wall, cpu = 1e3 * np.array(taken[2:]).T
    return f"{wall.min():.2f} / {np.median(cpu):.2f}"


def main() -> None:
    """Measure and print."""
    warnings.simplefilter("ignore")
    counts = []
    for groups, layers in SIZES.values():
        logger = _Nothing()
        LogSink(logger, layers=layers).write(readings(groups)[-1])
        counts.append(logger.values)
    print(f"load {os.getloadavg()[0]:.0f}\n\n| ms per reading: least wall / CPU | {' | '.join(SIZES)} |")
    print(f"| --- |{' ---: |' * len(SIZES)}\n| values sent | {' | '.join(map(str, counts))} |")
    for name, tracker in TRACKERS.items():
        try:
            cells = [milliseconds(tracker, *size) for size in SIZES.values()]
        except ImportError as error:
            cells = [f"not installed ({error.name})"] + [""] * (len(SIZES) - 1)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
