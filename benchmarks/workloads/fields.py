"""Networks that are functions of space: a SIREN for an image, a physics-informed one for Poisson's equation.

References:
    Sitzmann et al., "Implicit neural representations with periodic activation functions", 2020, section 3.2;
    Raissi, Perdikaris and Karniadakis, "Physics-informed neural networks", 2019, equations 3 and 4.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thermoopt.benchmarks.workloads.task import Task, Workload, data_hash, require, seeded_task

__all__ = ["PINN", "SIREN_IMAGE", "Siren", "exact", "source"]

SIDE = 64  # pixels of the image along an axis
PIXELS = 512  # a batch
OMEGA = 30.0  # section 3.2


@cache
def _image() -> tuple[Tensor, Tensor]:
    """Positions ``[SIDE², 2]`` in −1 to 1 and grey values ``[SIDE², 1]`` in −1 to 1."""
    photo = require("sklearn.datasets", "scikit-learn").load_sample_image("china.jpg")
    grey = torch.tensor(photo.mean(axis=2), dtype=torch.float32)[None, None] / 127.5 - 1
    small = F.interpolate(grey, (SIDE, SIDE), mode="area")[0, 0]
    axis = torch.linspace(-1, 1, SIDE)
    return torch.cartesian_prod(axis, axis), small.reshape(-1, 1)


class _Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(OMEGA * x)


class Siren(nn.Sequential):
    """Two hidden sine layers with the authors' initialisation."""

    def __init__(self, width: int = 64) -> None:
        layers = [nn.Linear(2, width), nn.Linear(width, width), nn.Linear(width, 1)]
        for i, layer in enumerate(layers):
            fan_in = layer.in_features
            bound = 1 / fan_in if i == 0 else math.sqrt(6 / fan_in) / OMEGA
            nn.init.uniform_(layer.weight, -bound, bound)
        super().__init__(layers[0], _Sine(), layers[1], _Sine(), layers[2])


def _siren(seed: int, batch: float = 1.0) -> Task:
    places, values = _image()

    def loss(model: nn.Module, rng: torch.Generator) -> Tensor:
        rows = torch.randint(len(places), (round(PIXELS * batch),), generator=rng)
        return F.mse_loss(model(places[rows]), values[rows])

    return seeded_task(Siren, loss, lambda model: F.mse_loss(model(places), values), seed)


SIREN_IMAGE = Workload(
    "siren",
    "scikit-learn's photograph of a temple, 64 x 64 grey pixels between -1 and 1, 512 of them per batch, "
    "all of them for evaluation; SIREN with 2 hidden layers of 64; mean squared error",
    (500, 2000),
    _siren,
    lambda: data_hash(*(part.numpy() for part in _image())),
    metric="mean squared error",
    family="implicit images",
)

INSIDE, EDGE = 128, 64  # points a batch, inside the square and on its edge
EDGE_WEIGHT = 100.0  # brings the edge's error to the size of the residual's
GRID = 33


def exact(x: Tensor) -> Tensor:
    """Return the solution sin(π x) sin(2π y), ``[points, 1]``."""
    return torch.sin(math.pi * x[:, :1]) * torch.sin(2 * math.pi * x[:, 1:])


def source(x: Tensor) -> Tensor:
    """Return −Δ of :func:`exact`, 5π² times it."""
    return 5 * math.pi**2 * exact(x)


def _pinn_net(width: int = 32) -> nn.Module:
    layers = nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
    return nn.Sequential(*layers)


def laplacian(model: nn.Module, x: Tensor) -> Tensor:
    """Return Δu of the model at points, ``[points, 1]``."""
    x = x.requires_grad_()
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    bends = [torch.autograd.grad(slope[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(2)]
    return (bends[0] + bends[1])[:, None]


def _pinn(seed: int, batch: float = 1.0) -> Task:
    axis = torch.linspace(0, 1, GRID)
    grid = torch.cartesian_prod(axis, axis)
    right = exact(grid)

    def loss(model: nn.Module, rng: torch.Generator) -> Tensor:
        inside = torch.rand(round(INSIDE * batch), 2, generator=rng)
        edge = torch.rand(round(EDGE * batch), 2, generator=rng)
        rows = torch.arange(len(edge))
        edge[rows, rows % 2] = (rows // 2 % 2).float()  # four sides in turn
        residual = laplacian(model, inside) + source(inside.detach())
        return residual.square().mean() + EDGE_WEIGHT * model(edge).square().mean()

    def judge(model: nn.Module) -> float:
        return ((model(grid) - right).square().sum() / right.square().sum()).item()

    return seeded_task(_pinn_net, loss, judge, seed)


def _pinn_sha256() -> str:
    axis = torch.linspace(0, 1, GRID)
    return data_hash(exact(torch.cartesian_prod(axis, axis)).numpy())


PINN = Workload(
    "pinn",
    "Poisson's equation on the unit square, -Δu = f with u = 0 on the boundary and the solution u = sin(πx) "
    "sin(2πy), 128 interior and 64 boundary points per batch; tanh MLP with 2 hidden layers of 32, trained "
    "on the squared residual plus 100 times the squared boundary value; evaluated by the relative squared "
    "error of u on a grid",
    (500, 2000),
    _pinn,
    _pinn_sha256,
    metric="relative squared error",
    family="physics-informed",
)
