"""Recurrent networks: digits row by row, the adding problem, and unaligned labels by CTC."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thermoopt.benchmarks.workloads.digits import labelled
from thermoopt.benchmarks.workloads.kinds.images import ABOUT
from thermoopt.benchmarks.workloads.supervised import Arrays, arrays_hash, supervised_task
from thermoopt.benchmarks.workloads.task import Task, Workload, data_hash, seeded_task

__all__ = ["ADDING", "CTC", "ROWS", "marked_numbers", "spoken"]

FAMILY = "recurrent"


class LastState(nn.Module):
    """A recurrent layer, and a linear one on its last state."""

    def __init__(self, layer: nn.GRU | nn.LSTM, outputs: int) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(layer.hidden_size, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``[n, outputs]`` of sequences ``[n, length, inputs]``."""
        return self.head(self.layer(x)[0][:, -1])


@cache
def _rows() -> Arrays:
    x, y, x_valid, y_valid = labelled()
    return x[:, 0], y, x_valid[:, 0], y_valid


def _gru() -> nn.Module:
    return LastState(nn.GRU(8, 48, batch_first=True), 10)


ROWS = Workload(
    "rows",
    f"{ABOUT}, read row by row, batch 32; GRU of width 48; cross-entropy",
    (400, 1600),
    lambda seed, batch=1.0: supervised_task(_rows(), _gru, seed, batch, size=32),
    arrays_hash(_rows),
    family=FAMILY,
)

NUMBERS = 20


def marked_numbers(count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw sequences ``[count, NUMBERS, 2]`` of numbers in 0 to 1 and marks, and sums ``[count, 1]``.

    Two numbers of each sequence are marked, one of its first and one of its second half: the target is their
    sum, whose variance is 1/6.

    References:
        Hochreiter and Schmidhuber, "Long short-term memory", 1997, section 5.4.
    """
    half = NUMBERS // 2
    numbers = torch.rand(count, NUMBERS, generator=rng)
    places = torch.randint(half, (count, 2), generator=rng) + torch.tensor([0, half])
    marks = torch.zeros(count, NUMBERS).scatter_(1, places, 1.0)
    return torch.stack([numbers, marks], dim=2), (numbers * marks).sum(dim=1, keepdim=True)


@cache
def _marked() -> tuple[Tensor, Tensor]:
    return marked_numbers(500, torch.Generator().manual_seed(77))


def _adding(seed: int, batch: float = 1.0) -> Task:
    def loss(model: nn.Module, rng: torch.Generator) -> Tensor:
        x, y = marked_numbers(round(32 * batch), rng)
        return F.mse_loss(model(x), y)

    x_valid, y_valid = _marked()
    return seeded_task(
        lambda: LastState(nn.LSTM(2, 32, batch_first=True), 1),
        loss,
        lambda model: F.mse_loss(model(x_valid), y_valid),
        seed,
    )


ADDING = Workload(
    "adding",
    "sequences of 20 numbers, two of which are marked, generated, batch 32, 500 sequences for evaluation; "
    "LSTM of width 32; mean squared error of the marked numbers' sum, 1/6 for predicting its mean",
    (500, 2000),
    _adding,
    lambda: data_hash(*(part.numpy() for part in _marked())),
    metric="mean squared error",
    family=FAMILY,
)

SOUNDS, HEARD, SAID, FRAMES = 7, 8, 4, 18  # sounds (0 is silence), numbers a frame, sounds and frames a word


def spoken(count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw words of SAID sounds ``[count, SAID]`` and frames ``[count, FRAMES, HEARD]`` of them, noisy.

    A sound lasts 2 to 4 frames; one frame of silence comes first, and silence fills the rest.
    """
    patterns = torch.randn(SOUNDS, HEARD, generator=torch.Generator().manual_seed(61))
    words = torch.randint(1, SOUNDS, (count, SAID), generator=rng)
    ends = 1 + torch.randint(2, 5, (count, SAID), generator=rng).cumsum(dim=1)
    frame = torch.arange(FRAMES)
    sound = (frame[None, :, None] >= ends[:, None]).sum(dim=2)  # SAID after the last
    padded = F.pad(words, (0, 1)).gather(1, sound)
    padded[:, 0] = 0
    return patterns[padded] + 0.7 * torch.randn(count, FRAMES, HEARD, generator=rng), words


@cache
def _spoken() -> Arrays:
    rng = torch.Generator().manual_seed(33)
    return *spoken(1500, rng), *spoken(300, rng)


class Listener(nn.Module):
    """A convolution over frames, a GRU both ways, logits of sounds in every frame."""

    def __init__(self) -> None:
        super().__init__()
        self.frames = nn.Conv1d(HEARD, 32, 3, padding=1)
        self.both_ways = nn.GRU(32, 24, batch_first=True, bidirectional=True)
        self.head = nn.Linear(48, SOUNDS)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[n, frames, SOUNDS]`` of frames ``[n, frames, HEARD]``."""
        return self.head(self.both_ways(F.relu(self.frames(x.transpose(1, 2))).transpose(1, 2))[0])


def _ctc_loss(logits: Tensor, words: Tensor) -> Tensor:
    frames, sounds = (torch.full((len(words),), size) for size in (logits.shape[1], SAID))
    return F.ctc_loss(logits.log_softmax(dim=2).transpose(0, 1), words, frames, sounds, zero_infinity=True)


CTC = Workload(
    "ctc",
    "words of 4 out of 6 sounds in 18 noisy frames, generated, without alignment, 1,500 for training, batch "
    "16, 300 for evaluation; a convolution and a bidirectional GRU; connectionist temporal classification, "
    "nats per sound",
    (350, 1400),
    lambda seed, batch=1.0: supervised_task(_spoken(), Listener, seed, batch, criterion=_ctc_loss, size=16),
    arrays_hash(_spoken),
    metric="nats per sound",
    family=FAMILY,
)
