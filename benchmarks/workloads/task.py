"""The definition of a workload: a name, two horizons, and a task built from a seed."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Task", "Workload", "data_hash", "require", "seeded_task", "with_gradients"]

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Task:
    """One run's model and data, all drawn from its seed.

    Attributes:
        model: freshly initialised.
        loss: returns the training loss of the next batch, which every call draws.
        evaluate: the metric, mostly the mean validation loss, under ``no_grad`` and in evaluation mode.
    """

    model: nn.Module
    loss: Callable[[], Tensor]
    evaluate: Callable[[], float]


class Build(Protocol):
    """Makes the task of a seed."""

    def __call__(self, seed: int, batch: float = 1.0) -> Task:
        """Return the task: weights, order and noise of the training batches depend on ``seed``.

        ``batch`` is a factor on the batch size given in ``about``.
        """


@dataclass(frozen=True)
class Workload:
    """A training problem that methods are compared on.

    Attributes:
        name: its name in tables.
        about: data, split, model, metric, in words.
        horizons: optimizer steps of the short run, the default, and of the long one.
        build: makes a task.
        sha256: hash of training and validation data.
        metric: unit of :attr:`Task.evaluate`, for the heads of tables; lower is better, 0 or more.
        family: kind of network and task: constants are chosen and judged on different families.
        optional: PyPI package that it needs and that the development set-up may lack; None if there is none.
    """

    name: str
    about: str
    horizons: tuple[int, int]
    build: Build
    sha256: Callable[[], str]
    family: str
    metric: str = "nats"
    optional: str | None = None


def seeded_task(
    make: Callable[[], Model],
    loss: Callable[[Model, torch.Generator], Tensor],
    judge: Callable[[Model], float | Tensor],
    seed: int,
) -> Task:
    """Build a task whose weights and batches depend on a seed.

    Args:
        make: makes the model from torch's global generator.
        loss: of the model and a batch that it draws from the generator.
        judge: the score of the model, called under ``no_grad`` and in evaluation mode.
        seed: of the weights and of the generator.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
    rng = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def evaluate() -> float:
        model.eval()
        value = float(judge(model))
        model.train()
        return value

    return Task(model, lambda: loss(model, rng), evaluate)


def with_gradients(value: Tensor, parameters: Iterable[Tensor], gradients: Iterable[Tensor]) -> Tensor:
    """Return a loss of a given value whose ``backward`` leaves given gradients.

    For methods that alter gradients before the optimizer sees them, by clipping or by noise: training loops
    here know ``loss().backward()`` only. The loss is value + Σ g·(p − p₀), p₀ the parameters as they are.

    Args:
        value: what the loss is.
        parameters: of the model.
        gradients: of the same shapes.
    """
    terms = [((p - p.detach()) * g).sum() for p, g in zip(parameters, gradients, strict=True)]
    return value.detach() + torch.stack(terms).sum()


def data_hash(*arrays: np.ndarray) -> str:
    """SHA-256 over shapes, types and bytes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def require(module: str, package: str, how: str | None = None) -> ModuleType:
    """Import a module, or name the package that provides it.

    Args:
        module: to import.
        package: its name on PyPI.
        how: command that installs it; None for pip or the extra ``bench``.

    Raises:
        ImportError: naming the package and the command.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        how = how or f"pip install {package} (or thermoopt[bench])"
        raise ImportError(f"this workload needs {package}: {how}") from error
