"""scikit-learn's digits, shifted by up to a pixel and made noisy; a convolution net with BatchNorm."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thermoopt.benchmarks.workloads.supervised import Arrays, arrays_hash, supervised_task, tensors
from thermoopt.benchmarks.workloads.task import Task, Workload, require

__all__ = ["ABOUT", "CONV_DIGITS", "digits_hash", "digits_task", "disturbed", "labelled", "pictures"]

VALID_DIGITS = 597  # of 1,797: a third, or the metric would be noise
PIXEL_NOISE = 0.35  # of a range of 1: without it networks interpolate, and a few pictures decide the metric
NOISY_COPIES = 4  # of each picture to judge by


@cache
def _shuffled() -> tuple[np.ndarray, np.ndarray]:
    """Pictures ``[1797, 8, 8]`` in 0 to 1 and labels; the first VALID_DIGITS are for judging."""
    bunch = require("sklearn.datasets", "scikit-learn").load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    return bunch.images[order] / 16.0, bunch.target[order]


@cache
def pictures() -> tuple[Tensor, Tensor]:
    """Return the clean pictures, ``[1200, 8, 8]`` to train on and ``[597, 8, 8]`` to judge by, in 0 to 1."""
    x = torch.tensor(_shuffled()[0], dtype=torch.float32)
    return x[VALID_DIGITS:], x[:VALID_DIGITS]


@cache
def labelled() -> Arrays:
    """Return the clean pictures ``[n, 1, 8, 8]``, in 0 to 1, and their labels, split as :func:`pictures`."""
    images, y = _shuffled()
    x, judged = images[:, None], slice(VALID_DIGITS)
    return tensors(x[VALID_DIGITS:], y[VALID_DIGITS:], x[judged], y[judged])


@cache
def _digits() -> Arrays:
    images, y = _shuffled()
    x = (images - 0.3)[:, None]
    judged = np.repeat(x[:VALID_DIGITS], NOISY_COPIES, axis=0)
    judged = judged + PIXEL_NOISE * np.random.default_rng(1).normal(size=judged.shape)
    return tensors(x[VALID_DIGITS:], y[VALID_DIGITS:], judged, np.repeat(y[:VALID_DIGITS], NOISY_COPIES))


def disturbed(x: Tensor, rng: torch.Generator) -> Tensor:
    """Move every picture by -1, 0 or 1 pixels along both axes, background coming in, and add pixel noise."""
    n = len(x)
    padded = F.pad(x, (1, 1, 1, 1), value=float(x.min()))
    dy, dx = torch.randint(3, (2, n, 1), generator=rng)
    rows = (dy + torch.arange(8))[:, None, :, None]
    columns = (dx + torch.arange(8))[:, None, None, :]
    moved = padded[torch.arange(n)[:, None, None, None], 0, rows, columns]
    return moved + PIXEL_NOISE * torch.randn(moved.shape, generator=rng)


def digits_task(make: Callable[[], nn.Module], seed: int, batch: float) -> Task:
    """Build the task of a seed for the model that ``make`` makes; pictures are ``[batch, 1, 8, 8]``."""
    return supervised_task(_digits(), make, seed, batch, disturbed)


def _conv2d() -> nn.Module:
    def block(a: int, b: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]

    return nn.Sequential(
        *block(1, 16, 1), *block(16, 32, 2), *block(32, 32, 2), nn.Flatten(), nn.Linear(128, 10)
    )


digits_hash = arrays_hash(_digits)

ABOUT = (
    "scikit-learn's digits, 1,200 for training, shifted by up to a pixel, and 597 for evaluation, with "
    "pixel noise of 0.35, batch 64; cross-entropy"
)
"""Data and metric in words."""

CONV_DIGITS = Workload(
    "digits",
    f"{ABOUT}; 3 convolutions with BatchNorm",
    (500, 2000),
    lambda seed, batch=1.0: digits_task(_conv2d, seed, batch),
    digits_hash,
    family="convolution",
    metric="nats",
)
