"""A controller's rates in a record: notes of kind ``rates``, one list per column.

    {"note":"rates","step":120,"rate":"all","steps":[120,125],"wanted":[0.012,null],"held":[0.01,0.01],
     "given":[0.01,0.01],"phi":[2.1e-05,2e-05],"phi_star":[2e-05,2e-05],"why":[[0,"..."],[1,"no signal ..."]]}

``why`` holds a pair for each change of the reason: its position in the lists, and the reason. Values that are
not finite are null.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from thermoopt.physics import Standing, by_rate

__all__ = ["RATES", "condensed", "rate_notes", "standings_in"]

RATES = "rates"
"""The kind of these notes."""

_NUMBERS = ("wanted", "held", "given", "phi", "phi_star")

_DIGITS = 5
"""Significant digits: a hundredth of the change below which a thermostat leaves a rate alone."""


def rate_notes(standings: Iterable[Standing]) -> list[dict[str, Any]]:
    """Return one note per rate."""
    notes = []
    for own in by_rate(standings).values():
        why = [[i, s.why] for i, s in enumerate(own) if i == 0 or s.why != own[i - 1].why]
        columns = {name: [_short(getattr(s, name)) for s in own] for name in _NUMBERS}
        steps = [s.step for s in own]
        head = {"note": RATES, "step": steps[0], "rate": own[0].rate, "steps": steps}
        notes.append({**head, **columns, "why": why})
    return notes


def standings_in(notes: Sequence[Mapping[str, Any]]) -> tuple[list[Standing], list[dict[str, Any]]]:
    """Split notes into the standings of rates, oldest first, and the rest.

    If the steps of a rate go back, the run was resumed from there, and later standings are dropped.

    Raises:
        ValueError: for a note of this kind that lacks a column or whose columns differ in length.
    """
    stacks: dict[str, list[Standing]] = {}
    for note in notes:
        for standing in _of_note(note) if note.get("note") == RATES else ():
            stack = stacks.setdefault(standing.rate, [])
            while stack and stack[-1].step >= standing.step:
                stack.pop()
            stack.append(standing)
    found = sorted((s for stack in stacks.values() for s in stack), key=lambda s: s.step)
    return found, [dict(note) for note in notes if note.get("note") != RATES]


def condensed(notes: Sequence[Mapping[str, Any]], most: int) -> list[dict[str, Any]]:
    """Merge the notes of this kind into one per rate, with at most ``most`` readings, evenly spread."""
    kept = []
    for own in by_rate(standings_in(notes)[0]).values():
        stride = -(-len(own) // most)
        kept += own[::stride]
    return rate_notes(kept)


def _of_note(note: Mapping[str, Any]) -> list[Standing]:
    try:
        steps, reasons, why, out = note["steps"], dict(map(tuple, note["why"])), "", []
        for i, (step, *numbers) in enumerate(zip(steps, *(note[n] for n in _NUMBERS), strict=True)):
            why = reasons.get(i, why)
            named = dict(zip(_NUMBERS, numbers, strict=True))
            out.append(Standing.from_dict({"rate": note["rate"], "step": step, "why": why, **named}))
        return out
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"a note of where rates stood must hold equal columns, got {error!r}") from error


def _short(value: float) -> float | None:
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
