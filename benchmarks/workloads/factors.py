"""Tables of vectors with sparse updates: skip-gram with negative samples, and matrix factorisation.

References:
    Mikolov et al., "Distributed representations of words and phrases and their compositionality", 2013,
    equation 4; Koren, Bell and Volinsky, "Matrix factorization techniques for recommender systems", 2009,
    equation 4.
"""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thermoopt.benchmarks.workloads.task import Task, Workload, data_hash, seeded_task
from thermoopt.benchmarks.workloads.words import text_words, vocabulary

__all__ = ["FACTORS", "SKIPGRAM", "Factors", "SkipGram"]

WORDS, READ, READ_VALID = 4000, 200_000, 40_000  # vocabulary, and words read of either text
WINDOW, NEGATIVES, POWER = 3, 5, 0.75  # power of a word's frequency that negative samples are drawn by
PAIRS, PAIRS_JUDGED = 128, 8192
FAMILY = "embeddings"


@cache
def _pairs() -> tuple[Tensor, Tensor, Tensor]:
    """Pairs ``[n, 2]`` of a word and one near it, to train on and to judge by; the negatives' weights."""
    train, valid = text_words()
    known = vocabulary(train, WORDS)
    made: list[Tensor] = []
    for words in (train[:READ], valid[:READ_VALID]):
        ids = torch.tensor([known[word] for word in words if word in known])
        near = [torch.stack([a, b], dim=1) for i in range(1, WINDOW + 1) for a, b in _apart(ids, i)]
        made.append(torch.cat(near))
    counts = Counter(word for word in train if word in known)
    weights = torch.tensor([counts[word] for word in known], dtype=torch.float64) ** POWER
    return made[0], made[1], weights / weights.sum()


def _apart(ids: Tensor, distance: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    first, second = ids[:-distance], ids[distance:]
    return (first, second), (second, first)


class SkipGram(nn.Module):
    """Two tables, initialised as word2vec's: uniform within 1/(2 width), and zero."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.inputs, self.outputs = nn.Embedding(WORDS, width), nn.Embedding(WORDS, width)
        nn.init.uniform_(self.inputs.weight, -0.5 / width, 0.5 / width)
        nn.init.zeros_(self.outputs.weight)

    def forward(self, pairs: Tensor, negatives: Tensor) -> Tensor:
        """Mean of −ln σ(u·v) − Σ ln σ(−u·n) over pairs ``[batch, 2]``, n the negatives ``[batch, 5]``."""
        word = self.inputs(pairs[:, 0])
        near = (word * self.outputs(pairs[:, 1])).sum(dim=1)
        far = (self.outputs(negatives) @ word[:, :, None])[:, :, 0]
        return (F.softplus(-near) + F.softplus(far).sum(dim=1)).mean()


def _skipgram(seed: int, batch: float = 1.0) -> Task:
    train, valid, chances = _pairs()
    fixed = torch.Generator().manual_seed(0)
    chosen = valid[torch.randperm(len(valid), generator=fixed)[:PAIRS_JUDGED]]
    negatives = torch.multinomial(chances, len(chosen) * NEGATIVES, True, generator=fixed).view(-1, NEGATIVES)

    def loss(model: nn.Module, rng: torch.Generator) -> Tensor:
        rows = torch.randint(len(train), (round(PAIRS * batch),), generator=rng)
        drawn = torch.multinomial(chances, len(rows) * NEGATIVES, True, generator=rng)
        return model(train[rows], drawn.view(-1, NEGATIVES))

    return seeded_task(SkipGram, loss, lambda model: model(chosen, negatives), seed)


SKIPGRAM = Workload(
    "skipgram",
    "text of Python's standard library, split by file, 4,000 words, pairs within 3 words of each other, 5 "
    "negative samples, batch 128, so that at most a fifth of the rows receive gradients; skip-gram model of "
    "width 32, initialised as in word2vec; nats per pair",
    (500, 2000),
    _skipgram,
    lambda: data_hash(*(part.numpy() for part in _pairs())),
    metric="nats per pair",
    family=FAMILY,
)

ROWS, COLUMNS, RANK = 400, 400, 8  # blocks of text, words
ENTRIES = 256  # a batch
TRAIN_SHARE = 0.5  # of the entries of the matrix


@cache
def _matrix() -> tuple[Tensor, Tensor, Tensor]:
    """ln(1 + count) of every word in every block of the text, standardised; entries by number, split."""
    words = text_words()[0]
    known = vocabulary(words, COLUMNS)
    counts = np.zeros((ROWS, COLUMNS))
    for row, block in enumerate(np.array_split(np.array([known.get(w, -1) for w in words]), ROWS)):
        counts[row] = np.bincount(block[block >= 0], minlength=COLUMNS)
    values = np.log1p(counts)
    values = (values - values.mean()) / values.std()
    order = torch.from_numpy(np.random.default_rng(0).permutation(values.size))
    cut = round(TRAIN_SHARE * values.size)
    return torch.tensor(values, dtype=torch.float32).flatten(), order[:cut], order[cut:]


class Factors(nn.Module):
    """A vector and a bias for each row and each column."""

    def __init__(self, std: float = 0.1) -> None:
        super().__init__()
        self.rows, self.columns = nn.Embedding(ROWS, RANK), nn.Embedding(COLUMNS, RANK)
        self.row_bias, self.column_bias = nn.Embedding(ROWS, 1), nn.Embedding(COLUMNS, 1)
        for table in (self.rows, self.columns):
            nn.init.normal_(table.weight, std=std)
        for table in (self.row_bias, self.column_bias):
            nn.init.zeros_(table.weight)

    def forward(self, entries: Tensor) -> Tensor:
        """Values ``[batch]`` of entries by number, row by row."""
        row, column = entries // COLUMNS, entries % COLUMNS
        bias = self.row_bias(row) + self.column_bias(column)
        return (self.rows(row) * self.columns(column)).sum(dim=1) + bias[:, 0]


def _factors(seed: int, batch: float = 1.0) -> Task:
    values, train, valid = _matrix()

    def loss(model: nn.Module, rng: torch.Generator) -> Tensor:
        entries = train[torch.randint(len(train), (round(ENTRIES * batch),), generator=rng)]
        return F.mse_loss(model(entries), values[entries])

    return seeded_task(Factors, loss, lambda model: F.mse_loss(model(valid), values[valid]), seed)


FACTORS = Workload(
    "factors",
    "ln(1 + count) of 400 words in 400 equal blocks of the standard library's text, standardised, half of "
    "the 160,000 entries for training, batch 256; matrix factorisation of rank 8 with biases; mean squared "
    "error",
    (800, 3200),
    _factors,
    lambda: data_hash(*(part.numpy() for part in _matrix())),
    metric="mean squared error",
    family=FAMILY,
)
