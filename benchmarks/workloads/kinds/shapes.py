"""Generated shapes: point clouds for a PointNet, spirals for a neural ODE, discs for a U-Net to segment."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thermoopt.benchmarks.workloads.supervised import Arrays, arrays_hash, supervised_task
from thermoopt.benchmarks.workloads.task import Workload

__all__ = ["CLOUDS", "SEGMENTS", "SPIRALS", "Flow", "PointNet", "clouds", "discs", "spirals", "surfaces"]

# --- surfaces in space

POINTS = 32
SURFACES = 5


def surfaces(count: int, rng: torch.Generator) -> Tensor:
    """Draw points ``[SURFACES, count, POINTS, 3]`` of spheres, cubes, cylinders, cones and tori about 0."""
    normal = torch.randn(count, POINTS, 3, generator=rng)
    around, tube = 2 * math.pi * torch.rand(2, count, POINTS, generator=rng)
    height = 2 * torch.rand(count, POINTS, generator=rng) - 1
    ring = torch.stack([around.cos(), around.sin()], dim=2)
    narrowing = ((1 - height) / 2)[..., None]
    return torch.stack(
        [
            normal / normal.norm(dim=2, keepdim=True),
            normal / normal.abs().amax(dim=2, keepdim=True),
            torch.cat([ring, height[..., None]], dim=2),
            torch.cat([ring * narrowing, height[..., None]], dim=2),
            torch.cat([ring * (0.7 + 0.3 * tube.cos())[..., None], 0.3 * tube.sin()[..., None]], dim=2),
        ]
    )


def clouds(count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw points ``[count, POINTS, 3]`` of surfaces, turned, scaled by 0.7 to 1.3 and noisy, and which."""
    which = torch.randint(SURFACES, (count,), generator=rng)
    turn = torch.linalg.qr(torch.randn(count, 3, 3, generator=rng)).Q
    size = 0.7 + 0.6 * torch.rand(count, 1, 1, generator=rng)
    points = surfaces(count, rng)[which, torch.arange(count)] * size
    return points @ turn + 0.05 * torch.randn(count, POINTS, 3, generator=rng), which


@cache
def _clouds() -> Arrays:
    rng = torch.Generator().manual_seed(0)
    return *clouds(3000, rng), *clouds(500, rng)


class PointNet(nn.Module):
    """Every point by itself, the largest value of each feature, and an MLP on these.

    References:
        Qi et al., "PointNet", arXiv 1612.00593, equation 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 64), nn.ReLU())
        self.cloud = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, SURFACES))

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[n, SURFACES]`` of points ``[n, points, 3]``, in whatever order they are."""
        return self.cloud(self.points(x).amax(dim=1))


CLOUDS = Workload(
    "clouds",
    f"clouds of {POINTS} noisy points on rotated spheres, cubes, cylinders, cones and tori, generated, "
    "3,000 for training, batch 24, 500 for evaluation; PointNet of width 64; cross-entropy",
    (500, 2000),
    lambda seed, batch=1.0: supervised_task(_clouds(), PointNet, seed, batch, size=24),
    arrays_hash(_clouds),
    family="point clouds",
)

# --- spirals in the plane


def spirals(count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw points ``[count, 2]`` of two spirals, noise 0.06, and of which one each is."""
    which = torch.randint(2, (count,), generator=rng)
    radius = 0.2 + 0.8 * torch.rand(count, generator=rng)
    angle = 5 * radius + math.pi * which
    points = 2 * radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    return points + 0.06 * torch.randn(count, 2, generator=rng), which


@cache
def _spirals() -> Arrays:
    rng = torch.Generator().manual_seed(55)
    return *spirals(1000, rng), *spirals(1000, rng)


class Flow(nn.Module):
    """Logits from z(2) of ż = f(z), z(0) the inputs and two zeros, in 8 steps of Euler.

    References:
        Chen et al., "Neural ordinary differential equations", arXiv 1806.07366; Dupont, Doucet and Teh,
        "Augmented neural ODEs", arXiv 1904.01681 (the zeros).
    """

    STEPS, TIME = 8, 2.0

    def __init__(self) -> None:
        super().__init__()
        self.speed = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 4))
        self.leave = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[n, 2]`` of points ``[n, 2]``."""
        z = F.pad(x, (0, 2))
        for _ in range(self.STEPS):
            z = z + self.TIME / self.STEPS * self.speed(z)
        return self.leave(z)


SPIRALS = Workload(
    "spirals",
    "two noisy spirals, generated, 1,000 points for training, batch 64, 1,000 for evaluation; neural ODE "
    "with 4 variables, a field of width 32 and 8 Euler steps; cross-entropy",
    (500, 2000),
    lambda seed, batch=1.0: supervised_task(_spirals(), Flow, seed, batch),
    arrays_hash(_spirals),
    family="implicit layers",
)

# --- discs in a picture

SIDE = 16


def discs(count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw noisy pictures ``[count, 1, SIDE, SIDE]`` of a disc and a square; the disc's pixels, 0 or 1."""
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    x, y, x_square, y_square = (3 + 10 * torch.rand(4, count, 1, 1, generator=rng)).unbind()
    radius, half = (2 + 2.5 * torch.rand(2, count, 1, 1, generator=rng)).unbind()
    disc = (columns - x).square() + (rows - y).square() < radius.square()
    square = ((columns - x_square).abs() < half) & ((rows - y_square).abs() < half)
    noise = 0.5 * torch.randn(count, SIDE, SIDE, generator=rng)
    return ((disc | square).float() + noise)[:, None], disc.float()[:, None]


@cache
def _discs() -> Arrays:
    rng = torch.Generator().manual_seed(12)
    return *discs(1500, rng), *discs(200, rng)


class UNet(nn.Module):
    """Convolutions at full and at half resolution, joined; logits of pixels."""

    def __init__(self) -> None:
        super().__init__()

        def convolution(inputs: int, outputs: int) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(4, outputs), nn.ReLU()
            )

        self.full = convolution(1, 8)
        self.coarse = nn.Sequential(nn.MaxPool2d(2), convolution(8, 16), convolution(16, 16))
        self.joined = nn.Sequential(convolution(24, 8), nn.Conv2d(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the shape of the pictures, ``[n, 1, side, side]``."""
        full = self.full(x)
        return self.joined(torch.cat([full, F.interpolate(self.coarse(full), scale_factor=2.0)], dim=1))


SEGMENTS = Workload(
    "segments",
    f"images of {SIDE} by {SIDE} pixels with a disc and a square in noise, generated, 1,500 for training, "
    "batch 8, 200 for evaluation; U-Net of widths 8 and 16 with GroupNorm; cross-entropy of which pixels "
    "are the disc's",
    (300, 1200),
    lambda seed, batch=1.0: supervised_task(
        _discs(), UNet, seed, batch, criterion=F.binary_cross_entropy_with_logits, size=8
    ),
    arrays_hash(_discs),
    metric="nats per pixel",
    family="segmentation",
)
