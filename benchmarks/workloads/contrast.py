r"""Contrastive learning on scikit-learn's digits: two distorted views of an image have to find each other.

u are unit vectors of the 2n views of a batch, j(i) is the other view of i's picture, τ :data:`TEMPERATURE`,

.. math:: L = -\frac1{2n}\sum_i \ln\frac{e^{u_i\cdot u_{j(i)}/\tau}}{\sum_{k\ne i} e^{u_i\cdot u_k/\tau}}

References:
    Chen et al., "A simple framework for contrastive learning of visual representations", 2020, equation 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thermoopt.benchmarks.workloads.digits import disturbed, pictures
from thermoopt.benchmarks.workloads.task import Task, Workload, data_hash, seeded_task

__all__ = ["CONTRAST", "Encoder", "nt_xent"]

BATCH = 64
TEMPERATURE = 0.2
JUDGED = 576  # of the 597 pictures kept apart: 9 batches, so that every picture has as many others


def nt_xent(a: Tensor, b: Tensor) -> Tensor:
    """Return the loss of vectors ``[pictures, features]``, rows of a and b being views of one picture."""
    n = len(a)
    u = F.normalize(torch.cat([a, b]), dim=1)
    logits = (u @ u.T / TEMPERATURE).masked_fill(torch.eye(2 * n, dtype=torch.bool), -torch.inf)
    return F.cross_entropy(logits, torch.arange(2 * n).roll(n))


class Encoder(nn.Module):
    """Three convolutions with GroupNorm, then the projection that the loss is of."""

    def __init__(self, width: int = 16, projected: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, stride in ((1, width, 1), (width, 2 * width, 2), (2 * width, 2 * width, 2)):
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
                nn.GroupNorm(4, outputs),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.projection = nn.Sequential(
            nn.Linear(8 * width, 8 * width), nn.ReLU(), nn.Linear(8 * width, projected)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return vectors ``[batch, projected]`` of pictures ``[batch, 1, 8, 8]``."""
        return self.projection(self.body(x))


def _views(x: Tensor, rng: torch.Generator) -> Tensor:
    """Disturb every picture twice, ``[2 batch, 1, 8, 8]``, first views first."""
    return disturbed(torch.cat([x, x]), rng)


def _task(seed: int, batch: float = 1.0) -> Task:
    train, valid = (part[:, None] - 0.3 for part in pictures())
    rng = torch.Generator().manual_seed(0)
    judged = [_views(x, rng) for x in valid[:JUDGED].split(BATCH)]

    def loss(model: nn.Module, rng: torch.Generator) -> Tensor:
        rows = torch.randperm(len(train), generator=rng)[: round(BATCH * batch)]
        return nt_xent(*model(_views(train[rows], rng)).chunk(2))

    def judge(model: nn.Module) -> float:
        return sum(nt_xent(*model(views).chunk(2)).item() for views in judged) / len(judged)

    return seeded_task(Encoder, loss, judge, seed)


CONTRAST = Workload(
    "contrast",
    "contrastive learning on scikit-learn's digits, 1,200 images for training and 576 for evaluation, two "
    "views of each, shifted by up to a pixel, with pixel noise of 0.35, 64 images per batch; 3 convolutions "
    "with GroupNorm and a projection; NT-Xent loss at temperature 0.2",
    (300, 1200),
    _task,
    lambda: data_hash(*(part.numpy() for part in pictures())),
    metric="nats",
    family="contrastive",
)
