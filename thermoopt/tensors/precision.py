"""The widest floating type of a device."""

from __future__ import annotations

import torch

__all__ = ["widest"]

WITHOUT_FLOAT64 = frozenset(("mps",))
"""Kinds of devices that know no float64 (torch raises where one is made there)."""


def widest(device: torch.device) -> torch.dtype:
    """Return the type in which small tables of a device are kept.

    Sums over steps in float32 are off by a rounding, 6e-8, a step. Those kept on a device forget within
    1/(1 - sqrt(beta2)), 2,000 steps at 0.999, so that roundings of either sign add up to some 3e-6 of the
    largest term. Averages of readings are kept on the host there, in float64.
    """
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64
