r"""Denoising diffusion on scikit-learn's digits: an MLP and a U-Net with GroupNorm.

The network is given t, uniform over :data:`TIMES`, and the noised picture of the cosine schedule,

.. math:: x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\varepsilon

and is trained to return ε (mean squared error).

References:
    Ho, Jain and Abbeel, "Denoising diffusion probabilistic models", 2020, equation 14; Nichol and Dhariwal,
    "Improved denoising diffusion probabilistic models", 2021, equation 17 (the schedule).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thermoopt.benchmarks.workloads.digits import pictures
from thermoopt.benchmarks.workloads.task import Task, Workload, data_hash, seeded_task

__all__ = ["DDPM", "TIMES", "UNET", "Denoiser", "UNet", "kept"]

TIMES = 100
COPIES = 4  # of each picture to judge by, each with its own t and noise
OFFSET = 0.008  # s of equation 17
EMBEDDED = 32  # sines and cosines that tell t
FAMILY = "diffusion"


@cache
def kept() -> Tensor:
    """Return ᾱ_t for t = 1 … :data:`TIMES`, ``[TIMES]``."""
    t = torch.arange(TIMES + 1) / TIMES
    f = torch.cos((t + OFFSET) / (1 + OFFSET) * math.pi / 2).square()
    return (f / f[0])[1:].clamp(min=1e-4)


def told_time(t: Tensor) -> Tensor:
    """Return sines and cosines of t at geometric frequencies, ``[batch, EMBEDDED]``."""
    rates = torch.exp(-math.log(1e4) * torch.arange(EMBEDDED // 2) / (EMBEDDED // 2))
    phase = (t[:, None] + 1) * rates
    return torch.cat([phase.sin(), phase.cos()], dim=1)


class Denoiser(nn.Module):
    """Picture and time, two hidden layers, the noise."""

    def __init__(self, width: int = 192) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64 + EMBEDDED, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 64),
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Noise ``[batch, 1, 8, 8]`` in pictures of that shape."""
        return self.layers(torch.cat([x.flatten(1), told_time(t)], dim=1)).view_as(x)


class _Block(nn.Module):
    """GroupNorm, SiLU, convolution, twice, around the time; a residual."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(EMBEDDED, outputs)
        self.norm2, self.conv2 = nn.GroupNorm(4, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time(time)[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class UNet(nn.Module):
    """Blocks at 8 x 8 and 4 x 4 pixels and back, joined by a skip connection."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.enter = nn.Conv2d(1, width, 3, padding=1)
        self.down = _Block(width, width)
        self.shrink = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.middle = _Block(2 * width, 2 * width)
        self.grow = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.up = _Block(2 * width, width)
        self.leave = nn.Sequential(nn.GroupNorm(4, width), nn.SiLU(), nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Noise ``[batch, 1, 8, 8]`` in pictures of that shape."""
        time = told_time(t)
        fine = self.down(self.enter(x), time)
        coarse = self.middle(self.shrink(fine), time)
        return self.leave(self.up(torch.cat([fine, self.grow(coarse)], dim=1), time))


def _noised(x: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    t = torch.randint(TIMES, (len(x),), generator=rng)
    noise = torch.randn(x.shape, generator=rng)
    share = kept()[t][:, None, None, None]
    return share.sqrt() * x + (1 - share).sqrt() * noise, t, noise


def _task(make: Callable[[], nn.Module], size: int, seed: int, batch: float) -> Task:
    train, valid = (2 * part[:, None] - 1 for part in pictures())
    judged = _noised(valid.repeat(COPIES, 1, 1, 1), torch.Generator().manual_seed(0))

    def loss(model: nn.Module, rng: torch.Generator) -> Tensor:
        rows = torch.randint(len(train), (round(size * batch),), generator=rng)
        x, t, noise = _noised(train[rows], rng)
        return F.mse_loss(model(x, t), noise)

    def judge(model: nn.Module) -> float:
        x, t, noise = judged
        return F.mse_loss(model(x, t), noise).item()

    return seeded_task(make, loss, judge, seed)


def _workload(name: str, make: Callable[[], nn.Module], size: int, horizon: int, words: str) -> Workload:
    return Workload(
        name,
        "denoising diffusion on scikit-learn's digits, 1,200 images for training and 597 for evaluation, "
        f"{TIMES} noise levels, cosine noise schedule, batch {size}; {words}; mean squared error of the "
        "predicted noise",
        (horizon, 4 * horizon),
        lambda seed, batch=1.0: _task(make, size, seed, batch),
        lambda: data_hash(*(part.numpy() for part in pictures())),
        metric="mean squared error",
        family=FAMILY,
    )


DDPM = _workload("ddpm", Denoiser, 64, 600, "MLP with 2 hidden layers of 192")
UNET = _workload("unet", UNet, 16, 200, "U-Net with 2 levels of 16 and 32 channels, GroupNorm")
