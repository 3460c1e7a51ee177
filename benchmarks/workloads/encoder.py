"""An encoder-only transformer on words, as torch initialises it: post-norm layers, N(0, 1) embeddings."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from thermoopt.benchmarks.workloads.paragraphs import PARTS, labelled_paragraphs
from thermoopt.benchmarks.workloads.supervised import Arrays, arrays_hash, supervised_task
from thermoopt.benchmarks.workloads.task import Workload
from thermoopt.benchmarks.workloads.words import split_words, vocabulary

__all__ = ["ENCODER_TEXT", "Encoder"]

READ, JUDGED = 600, 480  # paragraphs of each part that are read, and of all that are kept for judging
WORDS = 1000
LONGEST = 16
HALF = 0.5  # of BATCH: 32 paragraphs


@cache
def _paragraphs() -> Arrays:
    read, _ = labelled_paragraphs(READ, 1)
    order = np.random.default_rng(0).permutation(len(read))
    valid, train = ([read[i] for i in part] for part in (order[:JUDGED], order[JUDGED:]))
    known = vocabulary((word for text, _ in train for word in split_words(text)), WORDS)

    def numbered(text: str) -> list[int]:
        ids = [1 + known[word] for word in split_words(text) if word in known][:LONGEST]
        return ids + [0] * (LONGEST - len(ids))

    made: list[Tensor] = []
    for part in (train, valid):
        made += [
            torch.tensor([numbered(text) for text, _ in part]),
            torch.tensor([label for _, label in part]),
        ]
    return made[0], made[1], made[2], made[3]


class Encoder(nn.Module):
    """Embeddings of words and positions, two encoder layers, mean over words, head."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.words = nn.Embedding(1 + WORDS, width)
        self.positions = nn.Embedding(LONGEST, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, len(PARTS))

    def forward(self, idx: Tensor) -> Tensor:
        """Logits ``[batch, 8]`` of words ``[batch, LONGEST]``, 0 standing for none."""
        x = self.words(idx) + self.positions.weight
        weights = (idx > 0).to(x.dtype)[..., None]
        weights[:, 0] = 1.0  # a paragraph without one known word has a mean all the same
        return self.head((self.layers(x) * weights).sum(dim=1) / weights.sum(dim=1))


ENCODER_TEXT = Workload(
    "encoder",
    "classifying which of 8 parts of the standard library a paragraph of a docstring or comment comes from, "
    "at most 600 paragraphs per part, 480 of all held back for evaluation, cut to the first 16 words that "
    "are among the 1,000 most frequent, batch 32; encoder with 2 post-norm layers, width 64, torch's "
    "default initialisation throughout; cross-entropy",
    (200, 800),
    lambda seed, batch=1.0: supervised_task(_paragraphs(), Encoder, seed, HALF * batch),
    arrays_hash(_paragraphs),
    metric="nats",
    family="text classification",
)
