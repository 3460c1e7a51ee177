"""Small tables that a network can memorise: wine, breast cancer, diabetes, and Friedman's problem."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thermoopt.benchmarks.workloads.supervised import Arrays, arrays_hash, supervised_task, tensors
from thermoopt.benchmarks.workloads.task import Task, Workload, require

__all__ = ["CANCER", "DIABETES", "FRIEDMAN", "WINE", "friedman"]

HALF = 0.5  # of BATCH, which would be most of a table
FAMILY = "small tables"


def _split(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
    """Cut rows in two halves by chance and standardise features by the first half."""
    order = np.random.default_rng(0).permutation(len(x))
    train, valid = np.array_split(order, 2)
    mean, std = x[train].mean(axis=0), x[train].std(axis=0)
    return (x[train] - mean) / std, y[train], (x[valid] - mean) / std, y[valid]


def _standardised(arrays: tuple[np.ndarray, ...]) -> Arrays:
    """Return regression arrays as float32, targets ``[rows, 1]`` standardised by the first half."""
    x, y, x_valid, y_valid = arrays
    mean, std = y.mean(), y.std()
    parts = x, (y[:, None] - mean) / std, x_valid, (y_valid[:, None] - mean) / std
    a, b, c, d = (torch.tensor(part, dtype=torch.float32) for part in parts)
    return a, b, c, d


def _load(name: str) -> tuple[np.ndarray, np.ndarray]:
    bunch = getattr(require("sklearn.datasets", "scikit-learn"), f"load_{name}")()
    return bunch.data, bunch.target


@cache
def _wine() -> Arrays:
    return tensors(*_split(*_load("wine")))


@cache
def _cancer() -> Arrays:
    return tensors(*_split(*_load("breast_cancer")))


@cache
def _diabetes() -> Arrays:
    return _standardised(_split(*_load("diabetes")))


def friedman(rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    r"""Draw rows of Friedman's first problem, 10 uniform features of which 5 matter.

    .. math:: y = 10\sin(\pi x_1 x_2) + 20(x_3 - \tfrac12)^2 + 10 x_4 + 5 x_5 + \varepsilon,\quad
        \varepsilon \sim N(0, 1)

    References:
        Friedman, "Multivariate adaptive regression splines", 1991, section 4.3.
    """
    x = rng.uniform(size=(rows, 10))
    return x, friedman_mean(x) + rng.normal(size=rows)


def friedman_mean(x: np.ndarray) -> np.ndarray:
    """Return what :func:`friedman` adds its noise to."""
    return 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]


@cache
def _friedman() -> Arrays:
    rng = np.random.default_rng(0)
    (x, y), (x_valid, y_valid) = friedman(256, rng), friedman(2048, rng)
    mean, std = x.mean(axis=0), x.std(axis=0)
    return _standardised(((x - mean) / std, y, (x_valid - mean) / std, y_valid))


def _mlp(features: int, outputs: int, width: int = 64) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(
        nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
    )


def _workload(
    name: str,
    about: str,
    data: Callable[[], Arrays],
    outputs: int,
    criterion: Callable[[Tensor, Tensor], Tensor],
    metric: str,
) -> Workload:
    def build(seed: int, batch: float = 1.0) -> Task:
        arrays = data()
        make = _mlp(arrays[0].shape[1], outputs)
        return supervised_task(arrays, make, seed, HALF * batch, criterion=criterion)

    return Workload(
        name,
        f"{about}, batch 32; MLP with 2 hidden layers of 64, which can memorise the table; {metric}",
        (300, 1200),
        build,
        arrays_hash(data),
        metric=metric,
        family=FAMILY,
    )


WINE = _workload(
    "wine",
    "scikit-learn's wine data, 178 rows of 13 features in 3 classes, half for training",
    _wine,
    3,
    F.cross_entropy,
    "nats",
)
CANCER = _workload(
    "cancer",
    "scikit-learn's breast cancer data, 569 rows of 30 features in 2 classes, half for training",
    _cancer,
    2,
    F.cross_entropy,
    "nats",
)
DIABETES = _workload(
    "diabetes",
    "scikit-learn's diabetes data, 442 rows of 10 features, half for training, progression standardised",
    _diabetes,
    1,
    F.mse_loss,
    "mean squared error",
)
FRIEDMAN = _workload(
    "friedman",
    "Friedman's first problem, generated, 10 features of which 5 matter, noise 1, 256 rows for training and "
    "2,048 for evaluation, standardised",
    _friedman,
    1,
    F.mse_loss,
    "mean squared error",
)
