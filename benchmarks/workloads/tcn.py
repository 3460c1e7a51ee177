r"""Dilated temporal convolutions with weight normalisation forecast a noisy chaotic series.

.. math:: \dot x = \frac{0.2\,x(t-17)}{1+x(t-17)^{10}} - 0.1\,x(t)

References:
    Mackey and Glass, "Oscillation and chaos in physiological control systems", 1977, equation 4b; Bai, Kolter
    and Koltun, "An empirical evaluation of generic convolutional and recurrent networks", 2018, section 3.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from thermoopt.benchmarks.workloads.task import Task, Workload, data_hash, seeded_task

__all__ = ["TCN", "TCN_SERIES", "mackey_glass"]

DELAY, FINE = 17, 10  # of the equation, and steps of Euler's rule in a unit of time
LENGTH, TRAINED = 4000, 3000
NOISE = 0.2  # of a standard deviation of 1, on what is seen; what is to be forecast is clean when judged
AHEAD = 12
WINDOW, BATCH = 64, 16


def mackey_glass(length: int, rng: np.random.Generator) -> np.ndarray:
    """Integrate from a constant, random past; return ``[length]`` at whole times, the first 500 cut."""
    delay = DELAY * FINE
    x = np.empty(delay + (length + 500) * FINE)
    x[:delay] = rng.uniform(0.5, 1.5)
    for t in range(delay, len(x)):
        late = x[t - delay]
        x[t] = x[t - 1] + (0.2 * late / (1 + late**10) - 0.1 * x[t - 1]) / FINE
    return x[-length * FINE :: FINE]


@cache
def _series() -> tuple[Tensor, Tensor]:
    """Return the series with noise and without, ``[LENGTH]``, standardised by the part that is trained on."""
    rng = np.random.default_rng(0)
    x = mackey_glass(LENGTH, rng)
    x = (x - x[:TRAINED].mean()) / x[:TRAINED].std()
    seen = x + NOISE * rng.normal(size=LENGTH)
    return torch.tensor(seen, dtype=torch.float32), torch.tensor(x, dtype=torch.float32)


class _Block(nn.Module):
    """Two causal convolutions and a residual."""

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.past = 2 * dilation
        self.first = weight_norm(nn.Conv1d(inputs, outputs, 3, dilation=dilation))
        self.second = weight_norm(nn.Conv1d(outputs, outputs, 3, dilation=dilation))
        self.skip = nn.Identity() if inputs == outputs else nn.Conv1d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(F.pad(x, (self.past, 0))))
        return F.relu(self.skip(x) + F.relu(self.second(F.pad(h, (self.past, 0)))))


class TCN(nn.Module):
    """Blocks of dilation 1, 2, 4 and 8."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(_Block(width if i else 1, width, 2**i) for i in range(4)), nn.Conv1d(width, 1, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return forecasts ``[batch, time]`` from ``x``, same shape, up to each time."""
        return self.blocks(x[:, None])[:, 0]


def _task(seed: int, batch: float = 1.0) -> Task:
    seen, clean = _series()
    own = torch.arange(WINDOW)
    judged = torch.arange(TRAINED, LENGTH - WINDOW - AHEAD, WINDOW // 2)[:, None] + own

    def loss(model: nn.Module, rng: torch.Generator) -> Tensor:
        starts = torch.randint(TRAINED - WINDOW - AHEAD, (round(BATCH * batch), 1), generator=rng)
        return F.mse_loss(model(seen[starts + own]), seen[starts + own + AHEAD])

    def judge(model: nn.Module) -> float:
        half = WINDOW // 2  # the later half has a past to tell from
        return F.mse_loss(model(seen[judged])[:, half:], clean[judged + AHEAD][:, half:]).item()

    return seeded_task(TCN, loss, judge, seed)


TCN_SERIES = Workload(
    "tcn",
    f"the Mackey-Glass series, generated, {TRAINED:,} time steps for training and 1,000 later ones for "
    f"evaluation, noise of {NOISE}, windows of {WINDOW}, batch {BATCH}; 4 residual blocks of dilated causal "
    f"convolutions with weight normalisation, width 24; mean squared error {AHEAD} time steps ahead, "
    "against the clean series at evaluation",
    (300, 1200),
    _task,
    lambda: data_hash(*(part.numpy() for part in _series())),
    metric="mean squared error",
    family="temporal convolution",
)
