"""Byte-level language models on Python's own sources and documentation."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from thermoopt.benchmarks.workloads.task import Task, Workload
from torch import Tensor, nn
from torch.nn import functional as F

from thermoopt.demo.corpus import Corpus, batches, load_corpus, windows
from thermoopt.demo.gpt import GPT, GPTConfig

__all__ = ["GPT_TEXT", "GRU_TEXT", "LSTM_TEXT"]

JUDGED = 16_384  # validation bytes

_corpus = cache(load_corpus)


class Recurrent(nn.Module):
    """Embedding, one recurrent layer, head."""

    def __init__(self, layer: type[nn.GRU] | type[nn.LSTM], width: int = 64) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, width)
        self.rnn = layer(width, width, batch_first=True)
        self.head = nn.Linear(width, 256)

    def forward(self, idx: Tensor) -> Tensor:
        """Logits ``[batch, length, 256]`` of the next byte."""
        return self.head(self.rnn(self.bytes(idx))[0])


def _task(make: Callable[[], nn.Module], size: int, context: int, seed: int, batch: float) -> Task:
    corpus: Corpus = _corpus()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
    draws = batches(corpus.train, round(size * batch), context, seed)
    judges = windows(corpus.valid, JUDGED // context, context)

    def loss() -> Tensor:
        inputs, targets = next(draws)
        return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def evaluate() -> float:
        return F.cross_entropy(model(judges[0]).flatten(0, 1), judges[1].flatten()).item()

    return Task(model, loss, evaluate)


_DATA = "standard library's text, split by file, 512 bytes a batch; nats a byte"

GPT_TEXT = Workload(
    "gpt",
    f"{_DATA}; GPT of 2 blocks, width 64, context 64",
    (400, 1600),
    lambda seed, batch=1.0: _task(
        lambda: GPT(GPTConfig(depth=2, width=64, heads=4, context=64)), 8, 64, seed, batch
    ),
    lambda: _corpus().sha256,
)
GRU_TEXT = Workload(
    "gru",
    f"{_DATA}; embedding and GRU of width 64, context 32",
    (400, 1600),
    lambda seed, batch=1.0: _task(lambda: Recurrent(nn.GRU), 16, 32, seed, batch),
    lambda: _corpus().sha256,
)
LSTM_TEXT = Workload(
    "lstm",
    f"{_DATA}; embedding and LSTM of width 64, context 32",
    (400, 1600),
    lambda seed, batch=1.0: _task(lambda: Recurrent(nn.LSTM), 16, 32, seed, batch),
    lambda: _corpus().sha256,
)
