"""A map over cases, in this process or in several processes with one thread each."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["workers"]


@contextmanager
def workers(count: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """Yield a ``map`` that keeps the order of its cases; with several processes each takes the next case."""
    if count == 1:
        _one_thread()
        yield map
    else:
        with multiprocessing.get_context("spawn").Pool(count, _one_thread) as pool:
            yield pool.imap


def _one_thread() -> None:
    torch.set_num_threads(1)
