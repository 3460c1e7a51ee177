"""Ridge regression with a known optimum: scikit-learn's diabetes data with quadratic terms."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thermoopt.benchmarks.workloads.task import Task, Workload, data_hash, require, seeded_task

__all__ = ["L2", "RIDGE", "objective_matrices", "optimum"]

L2 = 1e-3  # below most eigenvalues of the features' covariance, above zero where squares repeat a feature
BATCH = 64


@cache
def _patients() -> tuple[np.ndarray, np.ndarray]:
    bunch = require("sklearn.datasets", "scikit-learn").load_diabetes()
    return bunch.data, bunch.target


@cache
def _data() -> tuple[Tensor, Tensor]:
    features, progress = _patients()
    first, second = np.triu_indices(features.shape[1])
    x = np.concatenate([features, features[:, first] * features[:, second]], axis=1)
    x, y = ((a - a.mean(axis=0)) / a.std(axis=0) for a in (x, progress[:, None]))
    return torch.tensor(x), torch.tensor(y)


def objective_matrices() -> tuple[Tensor, Tensor]:
    """Return H and c of f(θ) = ½ θᵀHθ − cᵀθ + const, θ the weights and the bias, in float64."""
    x, y = _data()
    design = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    n = len(x)
    return design.T @ design / n + L2 * torch.eye(design.shape[1], dtype=x.dtype), (design.T @ y / n)[:, 0]


@cache
def optimum() -> Tensor:
    """Solve Hθ = c: the weights, then the bias, float64."""
    hessian, c = objective_matrices()
    return torch.linalg.solve(hessian, c)


def _task(seed: int, batch: float = 1.0) -> Task:
    x, y = (part.float() for part in _data())
    hessian, best = objective_matrices()[0], optimum()

    def loss(model: nn.Linear, rng: torch.Generator) -> Tensor:
        rows = torch.randint(len(x), (round(BATCH * batch),), generator=rng)
        squares = model.weight.square().sum() + model.bias.square().sum()
        return F.mse_loss(model(x[rows]), y[rows]) / 2 + L2 / 2 * squares

    def judge(model: nn.Linear) -> float:
        off = torch.cat([model.weight[0], model.bias]).double() - best
        return (off @ hessian @ off).item() / 2  # f − f* without the cancellation

    return seeded_task(lambda: nn.Linear(x.shape[1], 1), loss, judge, seed)


RIDGE = Workload(
    "ridge",
    "ridge regression on scikit-learn's 442 diabetes patients, 10 features and their 55 products, all "
    "standardised, half the mean square + (0.001/2)·‖θ‖², batch 64; f − f* of the training objective, no "
    "validation split; weight decay pulls away from the optimum",
    (300, 1200),
    _task,
    lambda: data_hash(*_patients()),
    family="convex",
    metric="f − f*",
)
