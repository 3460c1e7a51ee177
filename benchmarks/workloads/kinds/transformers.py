"""Small transformers on generated sequences: sorting, and a Markov chain whose probabilities are known."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thermoopt.benchmarks.workloads.task import Task, Workload, data_hash, seeded_task

__all__ = ["MARKOV", "SORT", "Transformer", "chain", "excess"]

FAMILY = "small transformers"


class Block(nn.Module):
    """Attention and an MLP, both on a normalised copy of what they add to."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """States ``[n, length, width]`` of the same shape."""
        n, length, width = x.shape
        q, k, v = self.qkv(self.norm(x)).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(seen.transpose(1, 2).reshape(n, length, width))
        return x + self.mlp(self.norm_mlp(x))


class Transformer(nn.Module):
    """Symbols and places, two blocks of width 32, logits of symbols; tied: one table for both ends."""

    def __init__(self, symbols: int, length: int, causal: bool, tied: bool) -> None:
        super().__init__()
        width = 32
        self.symbols = nn.Embedding(symbols, width)
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(Block(width, 4, causal) for _ in range(2)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, symbols, bias=False)
        if tied:
            nn.init.normal_(self.symbols.weight, std=0.1)
            self.head.weight = self.symbols.weight

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[n, length, symbols]`` of symbols ``[n, length]``."""
        return self.head(self.norm(self.blocks(self.symbols(x) + self.places[: x.shape[1]])))


NUMBERS, LISTED = 12, 8  # numbers to sort, and how many of them


@cache
def _lists() -> Tensor:
    return torch.randint(NUMBERS, (500, LISTED), generator=torch.Generator().manual_seed(77))


def _sort(seed: int, batch: float = 1.0) -> Task:
    def error(model: nn.Module, lists: Tensor) -> Tensor:
        return F.cross_entropy(model(lists).flatten(0, 1), lists.sort(dim=1).values.flatten())

    def loss(model: nn.Module, rng: torch.Generator) -> Tensor:
        return error(model, torch.randint(NUMBERS, (round(32 * batch), LISTED), generator=rng))

    return seeded_task(
        lambda: Transformer(NUMBERS, LISTED, causal=False, tied=False),
        loss,
        lambda model: error(model, _lists()),
        seed,
    )


SORT = Workload(
    "sort",
    "lists of 8 numbers from 0 to 11 to be sorted, generated, batch 32, 500 lists for evaluation; "
    "transformer with 2 layers, width 32; nats per number, 0 for a perfect sorter",
    (400, 1600),
    _sort,
    lambda: data_hash(_lists().numpy()),
    metric="nats per number",
    family=FAMILY,
)

STATES, LENGTH = 16, 20  # symbols of the chain, and how many a sequence is asked for
SEQUENCES, SEQUENCES_JUDGED = 1500, 300


@cache
def chain() -> Tensor:
    """Return the probability ``[STATES, STATES, STATES]`` of each symbol after each pair of symbols."""
    by_pair = torch.randn(STATES, STATES, STATES, generator=torch.Generator().manual_seed(5))
    always = torch.randn(STATES, generator=torch.Generator().manual_seed(6))
    return (2.5 * by_pair + 2.0 * always).softmax(dim=2)


@cache
def _sequences() -> tuple[Tensor, Tensor]:
    """Sequences of LENGTH + 1 symbols to train on and to judge by; their first two are uniform."""
    rng = torch.Generator().manual_seed(8)
    x = torch.randint(STATES, (SEQUENCES + SEQUENCES_JUDGED, 2), generator=rng)
    while x.shape[1] <= LENGTH:
        x = torch.cat([x, torch.multinomial(chain()[x[:, -2], x[:, -1]], 1, generator=rng)], dim=1)
    return x[:SEQUENCES], x[SEQUENCES:]


def excess(logits: Tensor, sequences: Tensor) -> Tensor:
    """Return the mean divergence of predicted from true probabilities of the next symbol, nats; 0 is exact.

    Args:
        logits: ``[n, LENGTH, STATES]``, of the symbol after each.
        sequences: ``[n, LENGTH + 1]``.
    """
    first = torch.full((len(sequences), 1, STATES), 1 / STATES)
    true = torch.cat([first, chain()[sequences[:, :-2], sequences[:, 1:-1]]], dim=1)
    return (true * (true.log() - logits.log_softmax(dim=2))).sum(dim=2).mean()


def _markov(seed: int, batch: float = 1.0) -> Task:
    train, judged = _sequences()

    def loss(model: nn.Module, rng: torch.Generator) -> Tensor:
        x = train[torch.randint(SEQUENCES, (round(16 * batch),), generator=rng)]
        return F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())

    return seeded_task(
        lambda: Transformer(STATES, LENGTH, causal=True, tied=True),
        loss,
        lambda model: excess(model(judged[:, :-1]), judged),
        seed,
    )


MARKOV = Workload(
    "markov",
    "second-order Markov chain over 16 symbols, generated, 1,500 sequences of 21 for training, batch 16, "
    "300 for evaluation; causal transformer with 2 layers, width 32, tied embeddings; divergence from the "
    "true probabilities",
    (400, 1600),
    _markov,
    lambda: data_hash(*(part.numpy() for part in _sequences())),
    metric="excess nats",
    family=FAMILY,
)
