"""Logistic regression with a known optimum: scikit-learn's digits, L2-regularised."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thermoopt.benchmarks.workloads.task import Task, Workload, data_hash, require, seeded_task

__all__ = ["L2", "LOGISTIC", "optimum"]

L2 = 1e-3  # keeps the optimum finite on classes that can be separated, and the loss far from zero there
BATCH = 64
CLASSES, PIXELS = 10, 64
CERTAIN = 1e-10  # bound on what the solver's f lies above the true f*


@cache
def _data() -> tuple[Tensor, Tensor]:
    bunch = require("sklearn.datasets", "scikit-learn").load_digits()
    return torch.tensor(bunch.data / 16.0), torch.tensor(bunch.target).long()


def _objective(weight: Tensor, bias: Tensor, x: Tensor, y: Tensor) -> Tensor:
    squares = weight.square().sum() + bias.square().sum()
    return F.cross_entropy(F.linear(x, weight, bias), y) + L2 / 2 * squares


@cache
def optimum() -> tuple[Tensor, Tensor, float]:
    """Minimise the training objective in float64.

    L-BFGS goes until the gradient proves the optimum: f is L2-strongly convex, so f − f* <= ‖∇f‖² / (2 L2).

    Returns:
        Weight ``[10, 64]``, bias ``[10]`` and f*.

    Raises:
        ArithmeticError: the bound stayed above 1e-10.

    References:
        Boyd and Vandenberghe, "Convex optimization", 2004, equation 9.9.
    """
    x, y = _data()
    split = CLASSES * PIXELS

    def value_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        theta = torch.tensor(flat, requires_grad=True)
        f = _objective(theta[:split].view(CLASSES, PIXELS), theta[split:], x, y)
        (gradient,) = torch.autograd.grad(f, theta)
        return f.item(), gradient.numpy()

    found = require("scipy.optimize", "scipy").minimize(
        value_and_gradient,
        np.zeros(split + CLASSES),
        method="L-BFGS-B",
        jac=True,
        options={"maxiter": 20_000, "maxfun": 20_000, "maxcor": 50, "ftol": 0.0, "gtol": 1e-9},
    )
    value, gradient = value_and_gradient(found.x)
    above = float(gradient @ gradient) / (2 * L2)
    if not above <= CERTAIN:
        raise ArithmeticError(f"f* is known to {above:.1e} only, {CERTAIN:.0e} is asked for: {found.message}")
    theta = torch.tensor(found.x)
    return theta[:split].view(CLASSES, PIXELS), theta[split:], value


def _task(seed: int, batch: float = 1.0) -> Task:
    exact, y = _data()
    x = exact.float()
    lowest = optimum()[2]

    def loss(model: nn.Linear, rng: torch.Generator) -> Tensor:
        rows = torch.randint(len(x), (round(BATCH * batch),), generator=rng)
        return _objective(model.weight, model.bias, x[rows], y[rows])

    def judge(model: nn.Linear) -> float:
        return _objective(model.weight.double(), model.bias.double(), exact, y).item() - lowest

    return seeded_task(lambda: nn.Linear(PIXELS, CLASSES), loss, judge, seed)


LOGISTIC = Workload(
    "logistic",
    "logistic regression on scikit-learn's 1,797 digits with the penalty (0.001/2)·‖θ‖², batch 64; f − f* "
    "of the training objective in float64, no validation split; weight decay pulls away from the optimum",
    (300, 1200),
    _task,
    lambda: data_hash(*(a.numpy() for a in _data())),
    family="convex",
    metric="f − f*",
)
