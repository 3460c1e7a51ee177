"""scikit-learn's digits, unaltered: residual, capsule and implicit networks, small batches, wrong labels."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thermoopt.benchmarks.workloads.digits import labelled
from thermoopt.benchmarks.workloads.supervised import Arrays, arrays_hash, supervised_task
from thermoopt.benchmarks.workloads.task import Workload

__all__ = [
    "ABOUT",
    "BATCHNORM",
    "CAPSULES",
    "IMPLICIT",
    "MISLABELLED",
    "RESNET",
    "Capsules",
    "Implicit",
    "margin_loss",
    "squash",
]

ABOUT = "scikit-learn's digits, unaltered, 1,200 for training and 597 for evaluation"

digits_hash = arrays_hash(labelled)


class Residual(nn.Module):
    """Two convolutions with BatchNorm beside a connection that skips them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[n, width, h, w]`` of the same shape."""
        return F.relu(x + self.inner(x))


def _resnet(width: int = 12) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        Residual(width),
        nn.MaxPool2d(2),
        Residual(width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 10),
    )


def _batchnorm(width: int = 128) -> nn.Module:
    def hidden(inputs: int) -> list[nn.Module]:
        return [nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU()]

    return nn.Sequential(nn.Flatten(), *hidden(64), *hidden(width), nn.Linear(width, 10))


RESNET = Workload(
    "resnet",
    f"{ABOUT}, batch 24; two residual blocks of width 12, averaged over the image; cross-entropy",
    (300, 1200),
    lambda seed, batch=1.0: supervised_task(labelled(), _resnet, seed, batch, size=24),
    digits_hash,
    family="convolution",
)
BATCHNORM = Workload(
    "batchnorm",
    f"{ABOUT}, batch 16; 2 hidden layers of 128 with BatchNorm; cross-entropy",
    (500, 2000),
    lambda seed, batch=1.0: supervised_task(labelled(), _batchnorm, seed, batch, size=16),
    digits_hash,
    family="perceptrons",
)

WRONG = 0.4  # share of the training pictures whose label is drawn anew


@cache
def _mislabelled() -> Arrays:
    x, y, x_valid, y_valid = labelled()
    rng = torch.Generator().manual_seed(9)
    wrong = torch.rand(len(y), generator=rng) < WRONG
    return x, torch.where(wrong, torch.randint(10, (len(y),), generator=rng), y), x_valid, y_valid


def _two_convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


MISLABELLED = Workload(
    "mislabelled",
    f"{ABOUT}, 40 % of the training labels replaced by random ones, batch 16; 2 convolutions; cross-entropy "
    "with the correct labels",
    (400, 1600),
    lambda seed, batch=1.0: supervised_task(_mislabelled(), _two_convolutions, seed, batch, size=16),
    arrays_hash(_mislabelled),
    family="convolution",
)

PARTS, PART, WHOLE = 36, 8, 8  # capsules of the map, and numbers in one of these and in one of a digit
ROUNDS = 3  # of routing


def squash(v: Tensor) -> Tensor:
    """Return v ‖v‖ / (1 + ‖v‖²) over the last axis: the same direction, a length below 1."""
    length = v.norm(dim=-1, keepdim=True)
    return v * length / (1 + length.square())


class Capsules(nn.Module):
    """A convolution, capsules of 8 numbers from it, and 10 of 8 by routing in three rounds.

    References:
        Sabour, Frosst and Hinton, "Dynamic routing between capsules", arXiv 1710.09829, procedure 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Sequential(nn.Conv2d(1, 32, 3, stride=2), nn.ReLU())
        self.votes = nn.Parameter(0.1 * torch.randn(PARTS, 10, PART, WHOLE))

    def forward(self, x: Tensor) -> Tensor:
        """Lengths ``[n, 10]``, in 0 to 1, of the digits' capsules of pictures ``[n, 1, 8, 8]``."""
        parts = self.map(x).view(len(x), PARTS // 9, PART, 9).permute(0, 1, 3, 2).reshape(len(x), PARTS, PART)
        votes = torch.einsum("bid,iode->bioe", squash(parts), self.votes)
        logits = torch.zeros(votes.shape[:3])
        for i in range(ROUNDS):
            whole = squash((logits.softmax(dim=2)[..., None] * votes).sum(dim=1))
            if i + 1 < ROUNDS:  # agreement moves the routing, which has no gradient
                logits = logits + (votes.detach() * whole.detach()[:, None]).sum(dim=-1)
        return (whole.square().sum(dim=-1) + 1e-8).sqrt()


def margin_loss(lengths: Tensor, y: Tensor) -> Tensor:
    """Mean of Σ_k T_k max(0, 0.9 − v_k)² + ½ (1 − T_k) max(0, v_k − 0.1)², T one-hot (there, equation 4)."""
    right = F.one_hot(y, 10).float()
    missed, taken = F.relu(0.9 - lengths).square(), F.relu(lengths - 0.1).square()
    return (right * missed + 0.5 * (1 - right) * taken).sum(dim=1).mean()


CAPSULES = Workload(
    "capsules",
    f"{ABOUT}, batch 32; a convolution, then 36 capsules routed to 10 in three rounds; margin loss",
    (300, 1200),
    lambda seed, batch=1.0: supervised_task(
        labelled(), Capsules, seed, batch, criterion=margin_loss, size=32
    ),
    digits_hash,
    metric="margin loss",
    family="capsules",
)


class Implicit(nn.Module):
    """Logits from the fixed point of z = tanh(W z + U x + b); gradients pass its last 3 of 15 iterations.

    References:
        Bai, Kolter and Koltun, "Deep equilibrium models", arXiv 1909.01377 (the layer); Geng et al., "On
        training implicit models", arXiv 2111.05177, section 3 (the truncated gradient).
    """

    FREE, FOLLOWED = 12, 3

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(64, width), nn.Linear(width, 10)
        self.again = nn.Linear(width, width, bias=False)
        nn.init.orthogonal_(self.again.weight, 0.7)  # tanh is 1-Lipschitz: a contraction

    def fixed_point(self, x: Tensor) -> Tensor:
        """Return z ``[n, width]`` of pictures ``[n, 1, 8, 8]``."""
        given = self.enter(x.flatten(1))
        z = torch.zeros_like(given)
        with torch.no_grad():
            for _ in range(self.FREE):
                z = torch.tanh(self.again(z) + given)
        for _ in range(self.FOLLOWED):
            z = torch.tanh(self.again(z) + given)
        return z

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[n, 10]``."""
        return self.leave(self.fixed_point(x))


IMPLICIT = Workload(
    "implicit",
    f"{ABOUT}, batch 32; the fixed point of a layer of width 64, with gradients through the last 3 of 15 "
    "iterations; cross-entropy",
    (500, 2000),
    lambda seed, batch=1.0: supervised_task(labelled(), Implicit, seed, batch, size=32),
    digits_hash,
    family="implicit layers",
)
