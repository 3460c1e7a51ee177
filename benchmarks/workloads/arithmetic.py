"""Modular addition learned from some of the pairs, and multi-digit addition from sequence to sequence."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thermoopt.benchmarks.workloads.supervised import Arrays, arrays_hash, supervised_task
from thermoopt.benchmarks.workloads.task import Task, Workload, data_hash, seeded_task

__all__ = ["ADDITION", "MODULAR", "Adder", "ModularNet", "sums"]

MODULUS = 31
TRAIN_SHARE = 0.8  # of all pairs; with less a network learns them by heart long before it adds


@cache
def _pairs() -> Arrays:
    pairs = torch.cartesian_prod(torch.arange(MODULUS), torch.arange(MODULUS))
    pairs = pairs[torch.from_numpy(np.random.default_rng(0).permutation(len(pairs)))]
    y = pairs.sum(dim=1) % MODULUS
    cut = round(TRAIN_SHARE * len(pairs))
    return pairs[:cut], y[:cut], pairs[cut:], y[cut:]


class ModularNet(nn.Module):
    """The sum of two embeddings from one table, a hidden layer, logits."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.numbers = nn.Embedding(MODULUS, width)
        self.layers = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, MODULUS))

    def forward(self, pairs: Tensor) -> Tensor:
        """Logits ``[batch, MODULUS]`` of pairs ``[batch, 2]``."""
        return self.layers(self.numbers(pairs).sum(dim=1))


MODULAR = Workload(
    "modular",
    f"a + b modulo {MODULUS}, 80 % of the {MODULUS**2} pairs for training and the rest for evaluation, "
    "batch 64; the sum of two embeddings of width 128, then one hidden layer; cross-entropy",
    (600, 2400),
    lambda seed, batch=1.0: supervised_task(_pairs(), ModularNet, seed, batch),
    arrays_hash(_pairs),
    metric="nats",
    family="modular arithmetic",
)

DIGITS = 3  # of each summand; the sum has one more
PLUS, START, SYMBOLS = 10, 11, 12
ADDED, JUDGED = 64, 1024  # a batch, and sums to judge by


def sums(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Write sums as symbols, the least digit first.

    Args:
        a, b: summands below 10^DIGITS, ``[batch]``.

    Returns:
        The task "a+b", ``[batch, 2 DIGITS + 1]``, and the answer, ``[batch, DIGITS + 1]``.
    """

    def digits(x: Tensor, count: int) -> Tensor:
        return torch.stack([x // 10**i % 10 for i in range(count)], dim=1)

    plus = torch.full((len(a), 1), PLUS)
    return torch.cat([digits(a, DIGITS), plus, digits(b, DIGITS)], dim=1), digits(a + b, DIGITS + 1)


class Adder(nn.Module):
    """A GRU reads the task, another writes the answer, told the right digits so far (arXiv 1409.3215)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.symbols = nn.Embedding(SYMBOLS, width)
        self.encoder = nn.GRU(width, width, batch_first=True)
        self.decoder = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, task: Tensor, answer: Tensor) -> Tensor:
        """Logits ``[batch, DIGITS + 1, 10]`` of every digit of the answer, given those before it."""
        state = self.encoder(self.symbols(task))[1]
        before = torch.cat([torch.full((len(answer), 1), START), answer[:, :-1]], dim=1)
        return self.head(self.decoder(self.symbols(before), state)[0])


@cache
def _summands() -> tuple[Tensor, Tensor]:
    """All pairs by number, shuffled: those to judge by, and the others."""
    order = torch.from_numpy(np.random.default_rng(0).permutation(10 ** (2 * DIGITS)))
    return order[:JUDGED], order[JUDGED:]


def _addition(seed: int, batch: float = 1.0) -> Task:
    judged, others = _summands()
    task_valid, answer_valid = sums(judged // 10**DIGITS, judged % 10**DIGITS)

    def nats(model: nn.Module, task: Tensor, answer: Tensor) -> Tensor:
        return F.cross_entropy(model(task, answer).flatten(0, 1), answer.flatten())

    def loss(model: nn.Module, rng: torch.Generator) -> Tensor:
        drawn = others[torch.randint(len(others), (round(ADDED * batch),), generator=rng)]
        return nats(model, *sums(drawn // 10**DIGITS, drawn % 10**DIGITS))

    return seeded_task(Adder, loss, lambda model: nats(model, task_valid, answer_valid), seed)


ADDITION = Workload(
    "addition",
    "addition of two numbers of up to 3 digits, least significant digit first, with evaluation pairs kept "
    "out of training, batch 64; GRU encoder and decoder of width 64 with teacher forcing; nats per digit",
    (600, 2400),
    _addition,
    lambda: data_hash(*(part.numpy() for part in _summands())),
    metric="nats per digit",
    family="sequence to sequence",
)
