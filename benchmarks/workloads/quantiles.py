r"""Quantile regression with dropout on a generated table of few rows, whose noise depends on the features.

.. math:: L = \langle\max(\alpha(y - q_\alpha),\ (\alpha - 1)(y - q_\alpha))\rangle_{y,\alpha}

References:
    Koenker and Bassett, "Regression quantiles", 1978, equation 3.2.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from thermoopt.benchmarks.workloads.supervised import Arrays, arrays_hash, supervised_task
from thermoopt.benchmarks.workloads.task import Workload

__all__ = ["QUANTILES", "Dropout", "pinball", "uneven_table"]

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
FEATURES = 6
ROWS, JUDGED = 200, 2048
HALF = 0.5  # of BATCH
DROPPED = 0.2


def uneven_table(rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    r"""Draw features ``[rows, FEATURES]``, normal, and targets ``[rows]``; only the first three matter.

    .. math:: y = \sin(2x_1) + \tfrac12 x_2 + e^{x_3/2 - 1}\varepsilon,\quad \varepsilon \sim N(0, 1)
    """
    x = rng.normal(size=(rows, FEATURES))
    return x, np.sin(2 * x[:, 0]) + x[:, 1] / 2 + np.exp(x[:, 2] / 2 - 1) * rng.normal(size=rows)


@cache
def _data() -> Arrays:
    rng = np.random.default_rng(0)
    parts = *uneven_table(ROWS, rng), *uneven_table(JUDGED, rng)
    a, b, c, d = (torch.tensor(part, dtype=torch.float32) for part in parts)
    return a, b, c, d


def pinball(quantiles: Tensor, y: Tensor) -> Tensor:
    """Return the mean loss of quantiles ``[rows, len(LEVELS)]`` for targets ``[rows]``."""
    levels = torch.tensor(LEVELS)
    above = y[:, None] - quantiles
    return torch.maximum(levels * above, (levels - 1) * above).mean()


class Dropout(nn.Module):
    """Dropout that draws from a generator of its own, seeded where the weights are: a seed decides all."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.rng = torch.Generator().manual_seed(int(torch.randint(2**31, ())))

    def forward(self, x: Tensor) -> Tensor:
        """Zero a share of the values in training, and enlarge the others so that the mean stays."""
        if not self.training:
            return x
        return x * (torch.rand(x.shape, generator=self.rng) >= self.rate) / (1 - self.rate)


def _net(width: int = 64) -> nn.Module:
    return nn.Sequential(
        nn.Linear(FEATURES, width),
        nn.ReLU(),
        Dropout(DROPPED),
        nn.Linear(width, width),
        nn.ReLU(),
        Dropout(DROPPED),
        nn.Linear(width, len(LEVELS)),
    )


QUANTILES = Workload(
    "quantiles",
    f"a generated table with uneven noise, {FEATURES} features of which 3 matter, {ROWS} rows for training "
    f"and {JUDGED:,} for evaluation, batch 32; MLP with 2 hidden layers of 64 and dropout of {DROPPED}; "
    f"mean pinball loss of the quantiles {', '.join(map(str, LEVELS))}",
    (800, 3200),
    lambda seed, batch=1.0: supervised_task(_data(), _net, seed, HALF * batch, criterion=pinball),
    arrays_hash(_data),
    metric="pinball loss",
    family="quantile regression",
)
