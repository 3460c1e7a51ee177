"""Autoencoders of scikit-learn's digits: many units of which few are active, and codes from codebooks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thermoopt.benchmarks.workloads.digits import pictures
from thermoopt.benchmarks.workloads.task import Build, Task, Workload, data_hash, seeded_task

__all__ = ["QUANTISED", "SPARSE", "Quantised", "Sparse"]

FAMILY = "autoencoders"
ABOUT = "scikit-learn's digits, unaltered, 1,200 images for training and 597 for evaluation"


class Sparse(nn.Module):
    """64 numbers in, 256 units of which few are active, 64 numbers out."""

    PENALTY = 0.05  # of an active unit's value

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, x: Tensor) -> Tensor:
        """Mean over pictures ``[n, 64]`` of ‖x̂ − x‖² + 0.05 ‖h‖₁."""
        active = F.relu(self.encoder(x))
        error = (self.decoder(active) - x).square().sum(dim=1)
        return (error + self.PENALTY * active.sum(dim=1)).mean()


class Quantised(nn.Module):
    """Four codes of 8 numbers for a picture, each the nearest of 16 in a book of its own.

    References:
        van den Oord, Vinyals and Kavukcuoglu, "Neural discrete representation learning", arXiv 1711.00937,
        equation 3.
    """

    COMMITMENT = 0.25

    def __init__(self, codes: int = 4, entries: int = 16, width: int = 8) -> None:
        super().__init__()
        inner = codes * width
        self.encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, inner))
        self.decoder = nn.Sequential(nn.Linear(inner, 128), nn.ReLU(), nn.Linear(128, 64))
        self.books = nn.Parameter(0.3 * torch.randn(codes, entries, width))

    def nearest(self, z: Tensor) -> Tensor:
        """Return the entries ``[n, codes, width]`` of the books that are nearest to z of that shape."""
        which = (z[:, :, None] - self.books).square().sum(dim=3).argmin(dim=2)
        return self.books[torch.arange(len(self.books)), which]

    def forward(self, x: Tensor) -> Tensor:
        """Mean over pictures ``[n, 64]`` of ‖x̂ − x‖², in training with both terms that move the books."""
        z = self.encoder(x).view(len(x), len(self.books), -1)
        chosen = self.nearest(z)
        straight = z + (chosen - z).detach()  # gradients pass the choice as if it were not there
        error = (self.decoder(straight.flatten(1)) - x).square().sum(dim=1).mean()
        if not self.training:
            return error
        moved = (chosen - z.detach()).square() + self.COMMITMENT * (z - chosen.detach()).square()
        return error + moved.sum(dim=(1, 2)).mean()


def _autoencoder(make: type[nn.Module], size: int) -> Build:
    def build(seed: int, batch: float = 1.0) -> Task:
        train, valid = (part.flatten(1) for part in pictures())

        def loss(model: nn.Module, rng: torch.Generator) -> Tensor:
            return model(train[torch.randint(len(train), (round(size * batch),), generator=rng)])

        return seeded_task(make, loss, lambda model: model(valid), seed)

    return build


def _sha256() -> str:
    return data_hash(*(part.numpy() for part in pictures()))


SPARSE = Workload(
    "sparse",
    f"{ABOUT}, batch 64; one hidden layer of 256 with a penalty on its activity; squared error per image "
    "plus the penalty",
    (500, 2000),
    _autoencoder(Sparse, 64),
    _sha256,
    metric="squared error plus penalty",
    family=FAMILY,
)
QUANTISED = Workload(
    "quantised",
    f"{ABOUT}, batch 32; four codes from codebooks of 16 entries, hidden layers of 128; squared error per "
    "image",
    (500, 2000),
    _autoencoder(Quantised, 32),
    _sha256,
    metric="squared error",
    family=FAMILY,
)
