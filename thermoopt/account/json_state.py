"""Nested state as one leaf: distributed checkpoints take dicts apart, and load what a fresh state has."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["as_leaf", "from_leaf"]


def as_leaf(state: Any) -> str:
    """Return plain data as JSON, with NaN and infinity as Python writes them; floats keep every bit."""
    return json.dumps(state)


def from_leaf(saved: Any) -> Any:
    """Return what :func:`as_leaf` was given; what is no string is returned as it is."""
    return json.loads(saved) if isinstance(saved, str) else saved
