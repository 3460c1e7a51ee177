"""Embeddings of digits in which images of the same digit are close to each other."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thermoopt.benchmarks.workloads.digits import labelled
from thermoopt.benchmarks.workloads.kinds.images import ABOUT
from thermoopt.benchmarks.workloads.supervised import arrays_hash
from thermoopt.benchmarks.workloads.task import Task, Workload, seeded_task

__all__ = ["BOOTSTRAP", "TRIPLETS", "triplet_loss", "wrong_neighbours"]

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
    f"{ABOUT}, batch 40; one hidden layer of 96 and an embedding in 16 dimensions; loss over the triplets "
    "of a batch",
    (400, 1600),
    _triplets,
    arrays_hash(labelled),
    metric="triplet loss",
    family="metric learning",
)


HIDDEN, NOISE = 0.3, 0.1  # share of a view's pixels that are black, and noise of all
FOLLOWED = 0.02  # share of the way to the network that its slow copy goes at a step
NEIGHBOURS = 5


def wrong_neighbours(z: Tensor, y: Tensor, z_judged: Tensor, y_judged: Tensor) -> Tensor:
    """Return the share of the NEIGHBOURS nearest embeddings, by direction, that are of another class."""
    nearest = (F.normalize(z_judged, dim=1) @ F.normalize(z, dim=1).T).topk(NEIGHBOURS).indices
    return (y[nearest] != y_judged[:, None]).float().mean()


def view(x: Tensor, rng: torch.Generator) -> Tensor:
    """Return pictures of which pixels are hidden and all are noisy."""
    shown = torch.rand(x.shape, generator=rng) > HIDDEN
    return x * shown + NOISE * torch.randn(x.shape, generator=rng)


class Bootstrap(nn.Module):
    """An encoder, and a predictor of what its slow copy makes of another view."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 32)
        )
        self.predictor = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))


def _bootstrap(seed: int, batch: float = 1.0) -> Task:
    x, y, x_valid, y_valid = labelled()
    fixed = torch.Generator().manual_seed(0)
    near, judged = view(x, fixed), view(x_valid, fixed)
    slow: nn.Module | None = None

    def loss(model: Bootstrap, rng: torch.Generator) -> Tensor:
        nonlocal slow
        if slow is None:
            slow = copy.deepcopy(model.encoder)
        else:  # the step since the last batch
            with torch.no_grad():
                for own, followed in zip(slow.parameters(), model.encoder.parameters(), strict=True):
                    own.lerp_(followed, FOLLOWED)
        pictures = x[torch.randint(len(x), (round(128 * batch),), generator=rng)]
        views = view(pictures, rng), view(pictures, rng)
        with torch.no_grad():
            targets = [slow(seen) for seen in reversed(views)]
        guesses = [model.predictor(model.encoder(seen)) for seen in views]
        alike = [F.cosine_similarity(g, t).mean() for g, t in zip(guesses, targets, strict=True)]
        return 2 - alike[0] - alike[1]

    return seeded_task(
        Bootstrap,
        loss,
        lambda model: wrong_neighbours(model.encoder(near), y, model.encoder(judged), y_valid),
        seed,
    )


BOOTSTRAP = Workload(
    "bootstrap",
    "scikit-learn's digits, 1,200 for training and 597 for evaluation, 30 % of the pixels hidden, noise of "
    "0.1, batch 128, no labels: the network predicts what a slowly following copy of it makes of another "
    "view (BYOL, arXiv 2006.07733); MLP with BatchNorm; share of the 5 nearest neighbours that are of "
    "another class",
    (300, 1200),
    _bootstrap,
    arrays_hash(labelled),
    metric="share of wrong neighbours",
    family="self-distillation",
)
