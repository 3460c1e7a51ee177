"""Linear regression with features of very different scale."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thermoopt.benchmarks.workloads.task import Task, Workload, data_hash, seeded_task

__all__ = ["LINEAR"]

FEATURES, TRAIN, VALID, BATCH = 64, 4096, 2048, 64
NOISE = 1.0  # standard deviation of the label noise: the loss of the true weights is 1


@cache
def _data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(0)
    scale = np.logspace(-0.75, 0.75, FEATURES)  # 1.5 decades
    weights = rng.normal(size=FEATURES) * 3
    x = rng.normal(size=(TRAIN + VALID, FEATURES)) * scale
    y = x @ weights + NOISE * rng.normal(size=len(x))
    parts = x[:TRAIN], y[:TRAIN, None], x[TRAIN:], y[TRAIN:, None]
    a, b, c, d = (torch.tensor(part, dtype=torch.float32) for part in parts)
    return a, b, c, d


def _task(seed: int, batch: float = 1.0) -> Task:
    x, y, x_valid, y_valid = _data()

    def loss(model: nn.Module, rng: torch.Generator) -> Tensor:
        rows = torch.randint(TRAIN, (round(BATCH * batch),), generator=rng)
        return F.mse_loss(model(x[rows]), y[rows])

    def judge(model: nn.Module) -> float:
        return F.mse_loss(model(x_valid), y_valid).item()

    return seeded_task(lambda: nn.Linear(FEATURES, 1), loss, judge, seed)


LINEAR = Workload(
    "linear",
    "linear regression on 64 Gaussian features with scales spread over 1.5 decades, weights about 40 times "
    "their initial size, label noise 1, batch 64; mean squared error, 1 for the true weights",
    (500, 2000),
    _task,
    lambda: data_hash(*(a.numpy() for a in _data())),
    family="convex",
    metric="mean squared error",
)
