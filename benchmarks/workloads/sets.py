r"""Regression on sets: the entropy of a rotated Gaussian's first coordinate, from points drawn from it.

.. math:: y = \tfrac12\ln(2\pi e\,\sigma_1^2)

References:
    Zaheer et al., "Deep sets", 2017, section 4.1.1 (the task); Lee et al., "Set transformer", 2019, equations
    6, 8 and 11 (attention among the points, pooling by attention).
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thermoopt.benchmarks.workloads.supervised import Arrays, arrays_hash, supervised_task
from thermoopt.benchmarks.workloads.task import Workload

__all__ = ["SETS", "SetNet", "gaussian_sets"]

SETS_TO_TRAIN, SETS_TO_JUDGE = 2048, 1024
POINTS = 24  # of a set
HALF = 0.5  # of BATCH


def gaussian_sets(sets: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw Gaussians of two standard deviations in 0.3 to 3 each, turned by a random angle, and their points.

    Returns:
        Points ``[sets, POINTS, 2]``; the entropy of each Gaussian's first coordinate, in nats, ``[sets]``.
    """
    spreads = np.exp(rng.uniform(math.log(0.3), math.log(3), size=(sets, 2)))
    angles = rng.uniform(0, math.pi, size=sets)
    turn = np.stack([np.cos(angles), -np.sin(angles), np.sin(angles), np.cos(angles)], axis=1)
    spanned = turn.reshape(sets, 2, 2) * spreads[:, None]
    points = rng.normal(size=(sets, POINTS, 2)) @ spanned.transpose(0, 2, 1)
    return points, np.log(2 * math.pi * math.e * (spanned[:, 0] ** 2).sum(axis=1)) / 2


@cache
def _data() -> Arrays:
    rng = np.random.default_rng(0)
    (x, y), (x_valid, y_valid) = gaussian_sets(SETS_TO_TRAIN, rng), gaussian_sets(SETS_TO_JUDGE, rng)
    mean, std = y.mean(), y.std()
    parts = x, (y - mean) / std, x_valid, (y_valid - mean) / std
    a, b, c, d = (torch.tensor(part, dtype=torch.float32) for part in parts)
    return a, b, c, d


class SetNet(nn.Module):
    """Points, attention among them, pooling by one learned query, the entropy."""

    def __init__(self, width: int = 48, heads: int = 4) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width))
        self.among = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.query = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, 1, width)))
        self.pool = nn.MultiheadAttention(width, heads, batch_first=True)
        self.leave = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, points: Tensor) -> Tensor:
        """Return the entropy ``[sets]`` of points ``[sets, points, 2]``, in whatever order they are."""
        h = self.enter(points)
        h = self.norm(h + self.among(h, h, h, need_weights=False)[0])
        pooled = self.pool(self.query.expand(len(h), 1, -1), h, h, need_weights=False)[0]
        return self.leave(pooled)[:, 0, 0]


SETS = Workload(
    "sets",
    f"sets of {POINTS} points from rotated Gaussians in the plane, generated, {SETS_TO_TRAIN:,} sets for "
    f"training and {SETS_TO_JUDGE:,} for evaluation, batch 32; attention among the points and pooling by "
    "attention, width 48; mean squared error of the entropy of the Gaussian's first coordinate, standardised",
    (400, 1600),
    lambda seed, batch=1.0: supervised_task(_data(), SetNet, seed, HALF * batch, criterion=F.mse_loss),
    arrays_hash(_data),
    metric="mean squared error",
    family="sets",
)
