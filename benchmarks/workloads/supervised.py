"""Common parts of supervised workloads: mini-batches in random order, one loss for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thermoopt.benchmarks.workloads.task import Task, data_hash, seeded_task

__all__ = ["BATCH", "Arrays", "arrays_hash", "shuffled_batches", "supervised_task", "tensors"]

BATCH = 64

Arrays = tuple[Tensor, Tensor, Tensor, Tensor]
"""Inputs and targets to train on, inputs and targets to judge by."""


def tensors(x: np.ndarray, y: np.ndarray, x_valid: np.ndarray, y_valid: np.ndarray) -> Arrays:
    """Return inputs as float32, labels as int64."""
    return (
        torch.tensor(x, dtype=torch.float32),
        torch.tensor(y).long(),
        torch.tensor(x_valid, dtype=torch.float32),
        torch.tensor(y_valid).long(),
    )


def shuffled_batches(rows: int, size: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Yield the rows of batches, reshuffled every epoch, whose last, incomplete batch is left out."""
    while True:
        batches = torch.randperm(rows, generator=rng)[: rows // size * size].split(size)
        yield from reversed(batches)


def supervised_task(
    arrays: Arrays,
    make: Callable[[], nn.Module],
    seed: int,
    batch: float,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    size: int = BATCH,
    judge: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Task:
    """Build the task of a seed.

    Args:
        arrays: the data.
        make: makes the model from torch's global generator.
        seed: of the weights, of the order of the batches and of ``augment``.
        batch: factor on ``size``.
        augment: disturbs the inputs of a training batch.
        criterion: of the model's output and the targets.
        size: rows of a batch, at most all of them.
        judge: what the model is judged by in the place of ``criterion``; None is ``criterion``.

    Returns:
        The task; an epoch's last, incomplete batch is left out.
    """
    x, y, x_valid, y_valid = arrays
    judged_by = judge or criterion
    draws: Iterator[Tensor] | None = None

    def loss(model: nn.Module, rng: torch.Generator) -> Tensor:
        nonlocal draws
        draws = draws or shuffled_batches(len(x), min(round(size * batch), len(x)), rng)
        rows = next(draws)
        inputs = x[rows] if augment is None else augment(x[rows], rng)
        return criterion(model(inputs), y[rows])

    return seeded_task(make, loss, lambda model: judged_by(model(x_valid), y_valid), seed)


def arrays_hash(arrays: Callable[[], Arrays]) -> Callable[[], str]:
    """Return the function that hashes the data."""
    return lambda: data_hash(*(a.numpy() for a in arrays()))
