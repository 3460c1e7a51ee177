"""The widest floating type of a device."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

__all__ = ["forgetful_sum", "widest"]

_Numbers = TypeVar("_Numbers", bound=Any)

WITHOUT_FLOAT64 = frozenset(("mps",))
"""Kinds of devices that know no float64 (torch raises where one is made there)."""


def widest(device: torch.device) -> torch.dtype:
    """Return the type in which small tables of a device are kept.

    Sums over steps that are kept there in float32 are compensated (:func:`forgetful_sum`). Averages of
    readings are kept on the host, in float64.
    """
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def forgetful_sum(total: _Numbers, lost: _Numbers, forget: Any, term: Any) -> tuple[_Numbers, _Numbers]:
    r"""Add a term to a sum that forgets, :math:`N \leftarrow (1-f)N + x`, and keep what rounding lost.

    Written as N plus a small change, so that the factor next to 1 is not rounded, and added with Kahan's
    compensation: in float32 100,000 steps are off by some roundings of N, not by one a step.

    Args:
        total, lost: N and what it lacks, arrays or tensors of one type.
        forget: f, in [0, 1].
        term: x.

    Returns:
        The new sum and what it lacks.

    References:
        Kahan, Further remarks on reducing truncation errors, Communications of the ACM 8 (1965).
    """
    change = term - forget * total - lost
    new = total + change
    return new, (new - total) - change
