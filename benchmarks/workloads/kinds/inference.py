"""Variational inference of a logistic regression, evaluated by the exact bound above its best value."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thermoopt.benchmarks.workloads.task import Task, Workload, data_hash, require, seeded_task

__all__ = ["VARIATIONAL", "Gaussian", "bound", "lowest"]

CERTAIN = 1e-6  # nats a patient within which the lowest bound must be known
NODES = 48  # of the quadrature


@cache
def _patients() -> tuple[Tensor, Tensor]:
    """Standardised features and a 1, ``[569, 31]``, and ±1 by diagnosis, float64."""
    bunch = require("sklearn.datasets", "scikit-learn").load_breast_cancer()
    x = (bunch.data - bunch.data.mean(axis=0)) / bunch.data.std(axis=0)
    return torch.tensor(np.c_[x, np.ones(len(x))]), torch.tensor(2.0 * bunch.target - 1)


def _prior(mean: Tensor, spread: Tensor) -> Tensor:
    """Divergence of N(mean, spread²), of independent coordinates, from N(0, 1), nats."""
    return ((mean.square() + spread.square() - 1) / 2 - spread.log()).sum()


def bound(mean: Tensor, spread: Tensor) -> Tensor:
    r"""Return the negative evidence lower bound of a Gaussian with independent coordinates, nats a patient.

    .. math:: \frac1n\left(\sum_i E\ln(1 + e^{-y_i w\cdot x_i}) + KL(N(\mu, s^2) \| N(0, 1))\right)

    The logits :math:`w\cdot x_i` are Gaussian, of mean :math:`\mu\cdot x_i` and variance
    :math:`\sum_j s_j^2 x_{ij}^2`: their expectations are Gauss-Hermite quadratures.

    Args:
        mean, spread: μ and s, ``[31]``, float64.
    """
    x, y = _patients()
    nodes, weights = (torch.tensor(part) for part in np.polynomial.hermite_e.hermegauss(NODES))
    logits = (x @ mean)[:, None] + (x.square() @ spread.square()).sqrt()[:, None] * nodes
    errors = F.softplus(-y[:, None] * logits) @ weights / math.sqrt(2 * math.pi)
    return (errors.sum() + _prior(mean, spread)) / len(x)


@cache
def lowest() -> float:
    """Return the least bound, by L-BFGS.

    In mean and spread the bound's sum over patients is 1-strongly convex, so what is left is at most half of
    its squared gradient.

    Raises:
        ArithmeticError: that is more than CERTAIN a patient.
    """
    mean = torch.zeros(31, dtype=torch.float64, requires_grad=True)
    spread = torch.full((31,), 0.3, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [mean, spread], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        value = bound(mean, spread)
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(closure)
        slopes = torch.autograd.grad(bound(mean, spread), [mean, spread])
    patients = len(_patients()[0])
    left = patients * sum(float(s.square().sum()) for s in slopes) / 2
    if not left < CERTAIN:
        raise ArithmeticError(f"the least bound is known to {left:.1e} only, {CERTAIN:g} is asked for")
    return float(bound(mean, spread))


class Gaussian(nn.Module):
    """Means and logarithms of standard deviations of 31 independent weights."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(31))
        self.log_spread = nn.Parameter(torch.full((31,), -1.0))

    def forward(self, noise: Tensor) -> Tensor:
        """Return the bound a patient at weights mean + spread · noise, ``[draws, 31]``."""
        x, y = (part.float() for part in _patients())
        drawn = self.mean + self.log_spread.exp() * noise
        errors = F.softplus(-y * (drawn @ x.T)).sum(dim=1).mean()
        return (errors + _prior(self.mean, self.log_spread.exp())) / len(x)


def _variational(seed: int, batch: float = 1.0) -> Task:
    def loss(model: Gaussian, rng: torch.Generator) -> Tensor:
        return model(torch.randn(max(1, round(batch)), 31, generator=rng))

    def judge(model: Gaussian) -> float:
        return max(0.0, bound(model.mean.double(), model.log_spread.double().exp()).item() - lowest())

    return seeded_task(Gaussian, loss, judge, seed)


VARIATIONAL = Workload(
    "variational",
    "Bayesian logistic regression on scikit-learn's breast cancer data, all 569 patients in every step, "
    "prior N(0, 1), approximated by a Gaussian of independent weights with one sample of them per batch; "
    "negative evidence lower bound per patient, exact, minus its minimum",
    (500, 2000),
    _variational,
    lambda: data_hash(*(part.numpy() for part in _patients())),
    metric="excess nats per patient",
    family="variational inference",
)
