r"""A normalizing flow on a generated ring of Gaussians, evaluated by its divergence from the true density.

Every layer transforms one coordinate as a function of the other (real NVP, equations 7 to 9):

.. math:: z_1 = x_1,\quad z_2 = x_2\,e^{s(x_1)} + t(x_1),\quad \ln q(x) = \ln N(z; 0, 1) + \sum s

References:
    Dinh, Sohl-Dickstein and Bengio, "Density estimation using real NVP", 2017.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from thermoopt.benchmarks.workloads.task import Task, Workload, data_hash, seeded_task

__all__ = ["FLOW", "Flow", "log_density", "ring"]

MODES, RADIUS, WIDTH = 8, 2.0, 0.25  # Gaussians on a circle, WIDTH their standard deviation
POINTS, JUDGED = 4096, 4096
BATCH = 128


def _centres() -> np.ndarray:
    angles = 2 * math.pi * np.arange(MODES) / MODES
    return RADIUS * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def ring(points: int, rng: np.random.Generator) -> np.ndarray:
    """Draw ``[points, 2]``, each from one of the Gaussians by chance."""
    return _centres()[rng.integers(MODES, size=points)] + WIDTH * rng.normal(size=(points, 2))


def log_density(x: np.ndarray) -> np.ndarray:
    """Return ln p of the points ``[points, 2]`` that :func:`ring` draws, in nats, ``[points]``."""
    squares = ((x[:, None] - _centres()) ** 2).sum(axis=2) / WIDTH**2
    return np.logaddexp.reduce(-squares / 2, axis=1) - math.log(2 * math.pi * WIDTH**2 * MODES)


@cache
def _data() -> tuple[Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(0)
    train, valid = ring(POINTS, rng), ring(JUDGED, rng)
    a, b, c = (torch.tensor(x, dtype=torch.float32) for x in (train, valid, log_density(valid)))
    return a, b, c


def _told(width: int) -> nn.Module:
    """Make the network that scales and shifts one coordinate by the other; nothing before training."""
    last = nn.Linear(width, 2)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(1, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), last)


class Flow(nn.Module):
    """Coupling layers that move the two coordinates in turn; the identity before training."""

    def __init__(self, layers: int = 6, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_told(width) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """Return ln q of points ``[points, 2]``, in nats, ``[points]``."""
        told, moved = x.chunk(2, dim=1)
        volume = torch.zeros(len(x), 1)
        for layer in self.layers:
            scale, shift = layer(told).chunk(2, dim=1)
            scale = scale.tanh()
            told, moved = moved * scale.exp() + shift, told
            volume = volume + scale
        return (volume - (told.square() + moved.square()) / 2)[:, 0] - math.log(2 * math.pi)


def _task(seed: int, batch: float = 1.0) -> Task:
    train, valid, truth = _data()

    def loss(model: nn.Module, rng: torch.Generator) -> Tensor:
        rows = torch.randint(len(train), (round(BATCH * batch),), generator=rng)
        return -model(train[rows]).mean()

    return seeded_task(Flow, loss, lambda model: (truth - model(valid)).mean(), seed)


FLOW = Workload(
    "flow",
    f"{MODES} Gaussians on a circle in the plane, generated, {POINTS:,} points for training and {JUDGED:,} "
    f"for evaluation, batch {BATCH}; real NVP with 6 coupling layers of 2 hidden layers of 64; trained on "
    "the negative log-likelihood, evaluated by the mean of ln p - ln q, the divergence from the true density",
    (500, 2000),
    _task,
    lambda: data_hash(*(part.numpy() for part in _data())),
    metric="nats above the true density",
    family="normalizing flows",
)
