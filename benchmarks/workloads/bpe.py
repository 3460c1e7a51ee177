"""A GPT over byte-pair tokens: most of its million parameters are in embedding and head."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from thermoopt.benchmarks.workloads.pieces import encode, piece_lengths, train_tokenizer
from thermoopt.benchmarks.workloads.task import Task, Workload, data_hash
from thermoopt.benchmarks.workloads.text import corpus, language_task
from thermoopt.demo import GPT, GPTConfig

__all__ = ["BPE_TEXT", "PieceGPT", "pieces_of_the_text"]

PIECES = 2048  # 3.1 bytes a piece on this text
WINDOWS, CONTEXT = 4, 24  # 75 bytes a window, 300 a batch: a step costs as much as that of `gpt`
JUDGED = 5_120  # validation pieces, about the 16,384 bytes of the byte-level models
AT_ONCE = 100_000  # characters: the library's own lists take 250 bytes for each
INITIAL_STD = 0.02  # of GPT's embedding and head


class PieceGPT(GPT):
    """The demo's GPT with a vocabulary of its own."""

    def __init__(self, config: GPTConfig, pieces: int) -> None:
        super().__init__(config)
        self.bytes = nn.Embedding(pieces, config.width)
        self.head = nn.Linear(config.width, pieces, bias=False)
        for layer in (self.bytes, self.head):
            nn.init.normal_(layer.weight, std=INITIAL_STD)


@cache
def pieces_of_the_text() -> tuple[Any, Tensor, Tensor]:
    """Return the tokenizer and the pieces of the training and of the validation text.

    Bytes that are not UTF-8 (sources may declare another encoding) become U+FFFD.
    """
    text = corpus()
    train, valid = (bytes(part.numpy()).decode(errors="replace") for part in (text.train, text.valid))
    tokenizer = train_tokenizer(_cut(train), PIECES)
    train_ids, valid_ids = (
        torch.cat([encode(tokenizer, [t]) for t in _cut(part)]) for part in (train, valid)
    )
    return tokenizer, train_ids, valid_ids


def _cut(text: str) -> list[str]:
    return [text[i : i + AT_ONCE] for i in range(0, len(text), AT_ONCE)]


def _task(seed: int, batch: float = 1.0) -> Task:
    tokenizer, train, valid = pieces_of_the_text()
    return language_task(
        lambda: PieceGPT(GPTConfig(depth=2, width=128, heads=4, context=CONTEXT), PIECES),
        train,
        valid,
        size=round(WINDOWS * batch),
        context=CONTEXT,
        judged=JUDGED,
        seed=seed,
        lengths=piece_lengths(tokenizer),
    )


BPE_TEXT = Workload(
    "bpe",
    "text of Python's standard library, split by file, 2,048 byte-pair tokens learned from the training "
    "files, 96 tokens per batch; trained on nats per token, evaluated in nats per byte; GPT with 2 blocks, "
    "width 128, context 24, 0.9 M parameters",
    (400, 1600),
    _task,
    lambda: data_hash(*(part.numpy() for part in pieces_of_the_text()[1:])),
    family="language transformers",
    metric="nats per byte",
)
