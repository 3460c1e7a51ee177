"""Functions that ``torch.compile`` leaves alone, without importing the compiler."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

__all__ = ["uncompiled"]

P = ParamSpec("P")
T = TypeVar("T")


def uncompiled(function: Callable[P, T]) -> Callable[P, T]:
    """Break the graph at this function, as :func:`torch.compiler.disable` does, from its first call on.

    That decorator imports torch._dynamo, and with it sympy and more: 1.4 to 2.6 s of a plain ``import``.
    torch's own optimizers put it off to the first call in the same way (``torch._compile``): a program that
    makes any torch optimizer pays once, one that only imports does not.

    Args:
        function: to be run as it is; under ``torch.compile`` too.
    """

    @functools.wraps(function)
    def inner(*args: P.args, **kwargs: P.kwargs) -> T:
        disabled = getattr(function, "_thermoopt_disabled", None)
        if disabled is None:
            disabled = torch.compiler.disable(function)
            function._thermoopt_disabled = disabled  # type: ignore[attr-defined]  # a mark of ours
        return disabled(*args, **kwargs)

    return inner
