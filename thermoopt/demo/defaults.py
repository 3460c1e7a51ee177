"""What the demo does unless told otherwise; no torch, so that the command's help needs none."""

from __future__ import annotations

__all__ = ["DEFAULT_STEPS"]

DEFAULT_STEPS = 600
"""Of each way. 1000 steps took 182 to 402 s on two cores for all three, by what else ran: 600 are to take six
tenths of that."""
