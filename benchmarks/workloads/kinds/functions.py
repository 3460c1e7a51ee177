"""Regression on known functions, evaluated by what exceeds the noise: 0 is the function itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thermoopt.benchmarks.workloads.supervised import Arrays, arrays_hash, supervised_task
from thermoopt.benchmarks.workloads.tables import friedman, friedman_mean
from thermoopt.benchmarks.workloads.task import Task, Workload, data_hash, seeded_task

__all__ = [
    "DEEP_LINEAR",
    "EXPERTS",
    "SPLINES",
    "SPREAD",
    "SURFACE",
    "Experts",
    "excess",
    "mean_of",
    "spread_of",
]

METRIC = "mean squared error"


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _noisy(
    x: Tensor, x_valid: Tensor, function: Callable[[Tensor], Tensor], noise: float, seed: int
) -> Arrays:
    """Inputs and noisy values to train on, inputs and exact values to judge by."""
    y = function(x)
    return x, y + noise * _normal(seed, *y.shape), x_valid, function(x_valid)


# --- a surface without noise


def _surface(x: Tensor) -> Tensor:
    """sin(4 x₁) cos(3 x₂) + x₁ x₂, ``[n, 1]``."""
    first, second = x[:, :1], x[:, 1:]
    return torch.sin(4 * first) * torch.cos(3 * second) + first * second


@cache
def _points() -> Tensor:
    return 2 * torch.rand(1000, 2, generator=torch.Generator().manual_seed(7)) - 1


def _surface_task(seed: int, batch: float = 1.0) -> Task:
    def loss(model: nn.Module, rng: torch.Generator) -> Tensor:
        x = 2 * torch.rand(round(128 * batch), 2, generator=rng) - 1
        return F.mse_loss(model(x), _surface(x))

    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))

    return seeded_task(make, loss, lambda model: F.mse_loss(model(_points()), _surface(_points())), seed)


SURFACE = Workload(
    "surface",
    "sin(4x) cos(3y) + xy on a square, 128 new noise-free points in every batch, 1,000 others for "
    "evaluation; tanh MLP with 2 hidden layers of 64; mean squared error",
    (500, 2000),
    _surface_task,
    lambda: data_hash(_points().numpy()),
    metric=METRIC,
    family="functions",
)


# --- mean and spread


def mean_of(x: Tensor) -> Tensor:
    """Return sin(3 (x₁ − x₂ + x₃/2)), ``[n]``."""
    return torch.sin(3 * (x @ torch.tensor([1.0, -1.0, 0.5])))


def spread_of(x: Tensor) -> Tensor:
    """Return the standard deviation 0.05 + σ(4 x₁)/2 of the noise, ``[n]``."""
    return 0.05 + 0.5 * torch.sigmoid(4 * x[:, 0])


@cache
def _spread_data() -> Arrays:
    rng = torch.Generator().manual_seed(0)
    x, x_valid = (2 * torch.rand(n, 3, generator=rng) - 1 for n in (4000, 2000))
    y = mean_of(x) + spread_of(x) * torch.randn(len(x), generator=rng)
    return x, y, x_valid, torch.stack([mean_of(x_valid), spread_of(x_valid)], dim=1)


def _surprise(guess: Tensor, y: Tensor) -> Tensor:
    """Negative log-likelihood, less its constant, of y ``[n]`` under mean and ln spread ``[n, 2]``."""
    return (guess[:, 1] + ((y - guess[:, 0]) / guess[:, 1].exp()).square() / 2).mean()


def excess(guess: Tensor, true: Tensor) -> Tensor:
    r"""Return the mean divergence of guessed from true Gaussians, nats, so 0 is exact.

    .. math:: \ln\frac{s}{\sigma} + \frac{\sigma^2 + (\mu - m)^2}{2 s^2} - \tfrac12

    Args:
        guess: means m and ln s, ``[n, 2]``.
        true: means μ and standard deviations σ, ``[n, 2]``.
    """
    (m, log_s), (mu, sigma) = guess.T, true.T
    apart = (sigma.square() + (mu - m).square()) / (2 * (2 * log_s).exp())
    return (log_s - sigma.log() + apart - 0.5).mean()


def _mean_and_spread() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))


SPREAD = Workload(
    "spread",
    "a function of three variables with noise that depends on them, generated, 4,000 rows for training, "
    "batch 32, 2,000 for evaluation; SiLU MLP with 2 hidden layers of 64 that predicts the mean and the "
    "logarithm of the standard deviation; divergence from the true Gaussians",
    (500, 2000),
    lambda seed, batch=1.0: supervised_task(
        _spread_data(), _mean_and_spread, seed, batch, criterion=_surprise, size=32, judge=excess
    ),
    arrays_hash(_spread_data),
    metric="excess nats",
    family="mean and spread",
)


# --- a product of matrices


@cache
def _linear_data() -> Arrays:
    low_rank = _normal(21, 16, 3) @ _normal(22, 3, 16) / 3
    return _noisy(_normal(0, 3000, 16), _normal(44, 1000, 16), lambda x: x @ low_rank, 0.2, 4)


def _chain() -> nn.Module:
    layers = [nn.Linear(16, 16, bias=False) for _ in range(6)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight, 0.8)
    return nn.Sequential(*layers)


DEEP_LINEAR = Workload(
    "deep-linear",
    "a linear map of rank 3 from 16 to 16 dimensions, noise 0.2, 3,000 rows for training, batch 32, 1,000 "
    "for evaluation; a product of 6 matrices; mean squared error of the map",
    (500, 2000),
    lambda seed, batch=1.0: supervised_task(
        _linear_data(), _chain, seed, batch, criterion=F.mse_loss, size=32
    ),
    arrays_hash(_linear_data),
    metric=METRIC,
    family="deep linear",
)


# --- experts


class Experts(nn.Module):
    """Six experts of 24 hidden units, of which a gate weighs the two that it likes best.

    References:
        Shazeer et al., "Outrageously large neural networks", arXiv 1701.06538, section 2.1, without noise.
    """

    def __init__(self, inputs: int = 8, experts: int = 6, width: int = 24, used: int = 2) -> None:
        super().__init__()
        self.used = used
        self.gate = nn.Linear(inputs, experts)
        self.enter = nn.Parameter(torch.randn(experts, inputs, width) / inputs**0.5)
        self.bias = nn.Parameter(torch.zeros(experts, 1, width))
        self.leave = nn.Parameter(torch.randn(experts, width, 1) / width**0.5)

    def weights(self, x: Tensor) -> Tensor:
        """Return the weights ``[n, experts]``, all but ``used`` of them 0, that sum to 1."""
        chances = self.gate(x).softmax(dim=1)
        best, which = chances.topk(self.used)
        return torch.zeros_like(chances).scatter(1, which, best / best.sum(dim=1, keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        """Values ``[n]`` of inputs ``[n, inputs]``."""
        each = (F.relu(x @ self.enter + self.bias) @ self.leave)[..., 0]
        return torch.einsum("be,eb->b", self.weights(x), each)


@cache
def _regimes() -> Arrays:
    slopes, centres = _normal(11, 4, 8), _normal(12, 4, 8)

    def function(x: Tensor) -> Tensor:
        return (x @ slopes.T).gather(1, (x @ centres.T).argmax(dim=1, keepdim=True))[:, 0]

    return _noisy(_normal(0, 4000, 8), _normal(88, 2000, 8), function, 0.1, 1)


EXPERTS = Workload(
    "experts",
    "a function of 8 variables that is linear in each of four cones, noise 0.1, 4,000 rows for training, "
    "batch 64, 2,000 for evaluation; two of six experts with 24 hidden units each; mean squared error of "
    "the function",
    (500, 2000),
    lambda seed, batch=1.0: supervised_task(_regimes(), Experts, seed, batch, criterion=F.mse_loss),
    arrays_hash(_regimes),
    metric=METRIC,
    family="mixtures of experts",
)


# --- functions on edges


class Edges(nn.Module):
    """A function of its own on each edge: SiLU and 8 Gaussian bumps over -2 to 2, weighted.

    References:
        Liu et al., "KAN: Kolmogorov-Arnold networks", arXiv 2404.19756, equation 2.10, with Gaussian bumps in
        the place of splines (Li, arXiv 2405.06721).
    """

    centres: Tensor

    def __init__(self, inputs: int, outputs: int, bumps: int = 8) -> None:
        super().__init__()
        self.register_buffer("centres", torch.linspace(-2, 2, bumps))
        self.heights = nn.Parameter(0.1 * torch.randn(inputs * bumps, outputs))
        self.smooth = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``[n, outputs]`` of inputs ``[n, inputs]``."""
        apart = self.centres[1] - self.centres[0]
        bumps = torch.exp(-((x[..., None] - self.centres) / apart).square())
        return self.smooth(F.silu(x)) + bumps.flatten(1) @ self.heights


@cache
def _friedman() -> Arrays:
    """Friedman's first problem, targets a fifth of their size about 0, inputs in -2 to 2."""
    rng = np.random.default_rng(0)
    (x, y), x_valid = friedman(3000, rng), rng.uniform(size=(1500, 10))
    parts = 4 * x - 2, (y - 14.4) / 5, 4 * x_valid - 2, (friedman_mean(x_valid) - 14.4) / 5
    a, b, c, d = (torch.tensor(part, dtype=torch.float32) for part in parts)
    return a, b, c, d


SPLINES = Workload(
    "splines",
    "Friedman's first problem, generated, noise 0.2 after scaling, 3,000 rows for training, batch 32, 1,500 "
    "for evaluation; Kolmogorov-Arnold network with 12 hidden units; mean squared error of the function",
    (500, 2000),
    lambda seed, batch=1.0: supervised_task(
        _friedman(),
        lambda: nn.Sequential(Edges(10, 12), Edges(12, 1), nn.Flatten(0)),
        seed,
        batch,
        criterion=F.mse_loss,
        size=32,
    ),
    arrays_hash(_friedman),
    metric=METRIC,
    family="functions on edges",
)
