"""A controller's actions in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from thermoopt.controllers import Action

__all__ = ["actions_in_words", "note_in_words"]

FIRST = 4
"""Number of actions described from the start of a run, before the last one."""


def note_in_words(note: Mapping[str, Any]) -> str:
    """Name what a note of a record says happened: ``spike of loss``, ``action``."""
    return f"{note['note']} of {note['of']}" if "of" in note else str(note["note"])


def actions_in_words(actions: Sequence[Action]) -> list[str]:
    """Describe the first few actions and the last, each with its evidence."""
    if not actions:
        return ["No action was taken: rates stayed where they started."]
    told = actions if len(actions) <= FIRST + 1 else [*actions[:FIRST], actions[-1]]
    which = "" if len(told) == len(actions) else f", of which the first {FIRST} and the last"
    lines = [f"Actions of the controllers: {len(actions)}{which}"]
    for action in told:
        what = {"lr": "rate", "wd": "decay"}.get(action.kind, action.kind)
        lines.append(
            f"  step {action.step:>5}  {action.controller}: {what} of {action.group} "
            f"{action.old:.3g} → {action.new:.3g}, {action.reason}"
        )
        lines.append("              " + ", ".join(_evidence(*item) for item in action.evidence.items()))
    return lines


def _evidence(name: str, value: tuple[float, float]) -> str:
    error = f" ± {value[1]:.2g}" if value[1] > 0 else ""
    return f"{name} {value[0]:.3g}{error}"
