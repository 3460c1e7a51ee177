"""Common parts of language models on Python's own sources and documentation: windows of text."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thermoopt.benchmarks.workloads.task import Task
from thermoopt.demo import batches, load_corpus, windows

__all__ = ["ABOUT", "byte_task", "corpus", "language_task"]

JUDGED = 16_384  # validation bytes

ABOUT = "text of Python's standard library, split by file, 512 bytes per batch; nats per byte"
"""Data and metric of the byte-level models in words."""

corpus = cache(load_corpus)


def language_task(
    make: Callable[[], nn.Module],
    train: Tensor,
    valid: Tensor,
    *,
    size: int,
    context: int,
    judged: int,
    seed: int,
    lengths: Tensor | None = None,
) -> Task:
    """Build the task of predicting the next symbol.

    Args:
        make: makes the model, ``[batch, length]`` symbols to logits, from torch's global generator.
        train, valid: symbols in the order of the text.
        size: windows per training batch.
        context: symbols per window.
        judged: symbols for evaluation, in equally spaced windows.
        seed: of the weights and of the draw of the windows.
        lengths: bytes that each symbol stands for; None where symbols are bytes.

    Returns:
        The task; it trains on nats per symbol and is judged by nats per byte.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
    draws = batches(train, size, context, seed)
    inputs_valid, targets_valid = windows(valid, judged // context, context)
    symbols_a_byte = 1.0 if lengths is None else targets_valid.numel() / lengths[targets_valid].sum().item()

    def loss() -> Tensor:
        inputs, targets = next(draws)
        return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def evaluate() -> float:
        nats = F.cross_entropy(model(inputs_valid).flatten(0, 1), targets_valid.flatten()).item()
        return nats * symbols_a_byte

    return Task(model, loss, evaluate)


def byte_task(make: Callable[[], nn.Module], size: int, context: int, seed: int, batch: float) -> Task:
    """Build the task of a byte-level model; see :func:`language_task`."""
    text = corpus()
    return language_task(
        make,
        text.train,
        text.valid,
        size=round(size * batch),
        context=context,
        judged=JUDGED,
        seed=seed,
    )
