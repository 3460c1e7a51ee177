"""Embeddings of digits in which pictures of the same digit lie near each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thermoopt.benchmarks.workloads.digits import labelled
from thermoopt.benchmarks.workloads.kinds.images import ABOUT
from thermoopt.benchmarks.workloads.supervised import arrays_hash
from thermoopt.benchmarks.workloads.task import Task, Workload, seeded_task

__all__ = ["TRIPLETS", "triplet_loss"]

MARGIN = 0.5
JUDGED_BY = 60  # pictures at a time, among which triplets are formed


def triplet_loss(z: Tensor, y: Tensor) -> Tensor:
    """Return the mean of max(0, d(a, p) − d(a, n) + MARGIN) over all triplets of a batch.

    Args:
        z: embeddings ``[n, width]``, of which directions count; d is the squared distance of these.
        y: classes ``[n]``: a and p are of one class and differ, n is of another.

    References:
        Schroff, Kalenichenko and Philbin, "FaceNet", arXiv 1503.03832, equation 3.
    """
    z = F.normalize(z, dim=1)
    distance = (2 - 2 * z @ z.T).clamp(min=1e-8)
    same = y[:, None] == y
    partners = same & ~torch.eye(len(y), dtype=torch.bool)
    losses = F.relu(distance[:, :, None] - distance[:, None] + MARGIN)
    return losses[partners[:, :, None] & ~same[:, None]].mean()


def _triplets(seed: int, batch: float = 1.0) -> Task:
    x, y, x_valid, y_valid = labelled()

    def make() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 16))

    def loss(model: nn.Module, rng: torch.Generator) -> Tensor:
        rows = torch.randint(len(x), (max(round(40 * batch), 8),), generator=rng)
        return triplet_loss(model(x[rows]), y[rows])

    def judge(model: nn.Module) -> Tensor:
        parts = zip(model(x_valid).split(JUDGED_BY)[:-1], y_valid.split(JUDGED_BY), strict=False)
        return torch.stack([triplet_loss(z, labels) for z, labels in parts]).mean()

    return seeded_task(make, loss, judge, seed)


TRIPLETS = Workload(
    "triplets",
    f"{ABOUT}, batch 40; a hidden layer of 96 and an embedding of 16 numbers; loss of a batch's triplets",
    (400, 1600),
    _triplets,
    arrays_hash(labelled),
    metric="triplet loss",
    family="metric learning",
)
