"""Classification: mnist1d's generated signals, scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from thermoopt.benchmarks.workloads.task import Task, Workload, data_hash, require
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CNN_MNIST1D", "CONV_DIGITS", "MLP_MNIST1D", "VIT_DIGITS"]

BATCH = 64
SIGNALS = 10_000  # mnist1d's usual 5,000 twice, 8,000 to train on: networks interpolate later
VALID_DIGITS = 597  # of 1,797: a third, or the metric would be noise
PIXEL_NOISE = 0.35  # of a range of 1: without it networks interpolate, and a few pictures decide the metric
NOISY_COPIES = 4  # of each picture to judge by

Arrays = tuple[Tensor, Tensor, Tensor, Tensor]


@cache
def _mnist1d() -> Arrays:
    data = require("mnist1d.data", "mnist1d")
    state = np.random.get_state()  # noqa: NPY002 - make_dataset seeds numpy's global generator
    try:
        args = data.get_dataset_args()
        args.num_samples = SIGNALS
        made = data.make_dataset(args)
    finally:
        np.random.set_state(state)  # noqa: NPY002
    return _tensors(made["x"], made["y"], made["x_test"], made["y_test"])


@cache
def _digits() -> Arrays:
    bunch = require("sklearn.datasets", "scikit-learn").load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    x = (bunch.images[order] / 16.0 - 0.3)[:, None]
    y = bunch.target[order]
    judged = np.repeat(x[:VALID_DIGITS], NOISY_COPIES, axis=0)
    judged = judged + PIXEL_NOISE * np.random.default_rng(1).normal(size=judged.shape)
    return _tensors(x[VALID_DIGITS:], y[VALID_DIGITS:], judged, np.repeat(y[:VALID_DIGITS], NOISY_COPIES))


def _tensors(x: np.ndarray, y: np.ndarray, x_valid: np.ndarray, y_valid: np.ndarray) -> Arrays:
    return (
        torch.tensor(x, dtype=torch.float32),
        torch.tensor(y).long(),
        torch.tensor(x_valid, dtype=torch.float32),
        torch.tensor(y_valid).long(),
    )


def _conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 40)),
        nn.Conv1d(1, 25, 5, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv1d(25, 25, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv1d(25, 25, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(125, 10),
    )


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(40, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def _conv2d() -> nn.Module:
    def block(a: int, b: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]

    return nn.Sequential(
        *block(1, 16, 1), *block(16, 32, 2), *block(32, 32, 2), nn.Flatten(), nn.Linear(128, 10)
    )


class ViT(nn.Module):
    """Patches of 2 x 2, two pre-norm encoder layers, mean over patches, head."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.positions = nn.Parameter(0.02 * torch.randn(16, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[batch, 10]`` of pictures ``[batch, 1, 8, 8]``."""
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(dim=1))


def _disturbed(x: Tensor, rng: torch.Generator) -> Tensor:
    """Move every picture by -1, 0 or 1 pixels along both axes, background coming in, and add pixel noise."""
    n = len(x)
    padded = F.pad(x, (1, 1, 1, 1), value=float(x.min()))
    dy, dx = torch.randint(3, (2, n, 1), generator=rng)
    rows = (dy + torch.arange(8))[:, None, :, None]
    columns = (dx + torch.arange(8))[:, None, None, :]
    moved = padded[torch.arange(n)[:, None, None, None], 0, rows, columns]
    return moved + PIXEL_NOISE * torch.randn(moved.shape, generator=rng)


def _task(
    arrays: Arrays,
    make: Callable[[], nn.Module],
    seed: int,
    batch: float,
    augment: Callable[..., Tensor] | None = None,
) -> Task:
    x, y, x_valid, y_valid = arrays
    size = round(BATCH * batch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
    rng = torch.Generator().manual_seed(seed)
    order: list[Tensor] = []

    def loss() -> Tensor:
        if not order:
            order.extend(torch.randperm(len(x), generator=rng)[: len(x) // size * size].split(size))
        rows = order.pop()
        inputs = x[rows] if augment is None else augment(x[rows], rng)
        return F.cross_entropy(model(inputs), y[rows])

    @torch.no_grad()
    def evaluate() -> float:
        model.eval()
        value = F.cross_entropy(model(x_valid), y_valid).item()
        model.train()
        return value

    return Task(model, loss, evaluate)


def _hash(arrays: Callable[[], Arrays]) -> Callable[[], str]:
    return lambda: data_hash(*(a.numpy() for a in arrays()))


_SIGNALS = "mnist1d, 8,000 signals to train on and 2,000 to judge by, batch 64; cross-entropy"

CNN_MNIST1D = Workload(
    "cnn",
    f"{_SIGNALS}; 3 convolutions of 25 channels",
    (500, 2000),
    lambda seed, batch=1.0: _task(_mnist1d(), _conv1d, seed, batch),
    _hash(_mnist1d),
)
MLP_MNIST1D = Workload(
    "mlp",
    f"{_SIGNALS}; 2 hidden layers of 128",
    (500, 2000),
    lambda seed, batch=1.0: _task(_mnist1d(), _mlp, seed, batch),
    _hash(_mnist1d),
)
_DIGITS = (
    "scikit-learn's digits, 1,200 to train on, shifted by up to a pixel, and 597 to judge by, pixel noise of "
    "0.35, batch 64; cross-entropy"
)

CONV_DIGITS = Workload(
    "digits",
    f"{_DIGITS}; 3 convolutions with BatchNorm",
    (500, 2000),
    lambda seed, batch=1.0: _task(_digits(), _conv2d, seed, batch, _disturbed),
    _hash(_digits),
)
VIT_DIGITS = Workload(
    "vit",
    f"{_DIGITS}; vision transformer of 2 layers, width 48",
    (300, 1200),
    lambda seed, batch=1.0: _task(_digits(), ViT, seed, batch, _disturbed),
    _hash(_digits),
)
