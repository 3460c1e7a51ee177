"""Saved state: whether it has a number wherever one belongs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["check_numbers"]


def check_numbers(saved: Any, own: Any, where: str, *, gaps: bool = False) -> None:
    """Check that a saved state has a finite number wherever one belongs.

    Args:
        saved: nested dicts and lists of plain data.
        own: what the object that goes on holds in the same places, which tells by example where a number
            belongs; a single number if one belongs everywhere.
        where: what to call the state in a message.
        gaps: whether None is allowed in place of a number.

    Raises:
        ValueError: naming the key, its value and what is allowed.
    """
    if isinstance(saved, Mapping):
        for key, value in saved.items():
            mine = own.get(key) if isinstance(own, Mapping) else _if_number(own)
            check_numbers(value, mine, f"{where}[{key!r}]", gaps=gaps)
    elif isinstance(saved, (list, tuple)):
        for i, value in enumerate(saved):
            mine = (own[i] if i < len(own) else None) if isinstance(own, (list, tuple)) else _if_number(own)
            check_numbers(value, mine, f"{where}[{i}]", gaps=gaps)
    elif _if_number(saved) is None:
        if _if_number(own) is not None and not (gaps and saved is None):
            raise ValueError(f"{where} must be a finite number, got {saved!r}")
    elif not math.isfinite(saved):
        raise ValueError(f"{where} must be a finite number, got {saved!r}")


def _if_number(x: Any) -> float | None:
    """Return a number, None for anything else."""
    return x if isinstance(x, (int, float)) and not isinstance(x, bool) else None
