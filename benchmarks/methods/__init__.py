"""The methods compared: each makes an optimizer, and perhaps a schedule, for a model and a length of run."""

from __future__ import annotations

import difflib

from thermoopt.benchmarks.methods.base import Job, Method, Point, Setup
from thermoopt.benchmarks.methods.baselines import BASELINES
from thermoopt.benchmarks.methods.feedback import FEEDBACK
from thermoopt.benchmarks.methods.lr_free import LR_FREE
from thermoopt.benchmarks.methods.ours import LAWS, OURS
from thermoopt.benchmarks.methods.placebo import PLACEBOS
from thermoopt.benchmarks.methods.scheduled import SCHEDULED

__all__ = ["LAWS", "METHODS", "SCHEDULED", "Job", "Method", "Point", "Setup", "get"]

METHODS: dict[str, Method] = {m.name: m for m in (*BASELINES, *LR_FREE, *FEEDBACK, *OURS, *PLACEBOS)}
"""Every method of the sweeps by name."""


def get(name: str) -> Method:
    """Return a method of the sweeps.

    Raises:
        ValueError: for an unknown name; the message gives the nearest and all.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=3, cutoff=0.4)
        meant = f" (nearest: {', '.join(map(repr, near))})" if near else ""
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, got {name!r}{meant}")
    return METHODS[name]
