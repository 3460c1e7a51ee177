"""What the demo does unless told otherwise; no torch, so that the command's help needs none."""

from __future__ import annotations

__all__ = ["DEFAULT_STEPS"]

DEFAULT_STEPS = 500
"""Of each way. All three took 160 s for 600 steps on two idle cores: 500 leave a fresh machine, which has to
set up torch first, well within four minutes."""
