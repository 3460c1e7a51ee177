r"""The record of a run on file, format 2: lines of JSON that are small, and quick to write and to read.

A *head* holds the names that the lines after it leave out::

    {"thermoopt": 2, "session": "9f3a61c2", "started": "2026-11-27T23:10:00Z", "scopes": ["total", "decay"],
     "quantities": ["sigma", ...], "skips": ["nonfinite", ...], "run": {"start_norms": {...}, ...}}

The first head of a session holds under ``run`` what is known of the run before its first reading; what is
learned later is a note of kind :data:`RUN`.

A *reading* has one list of quantities per scope, null for undefined ones; a *note* says what happened::

    {"step":120,"loss":2.318,"skipped":[0,0,0,0],"values":[[0.002216,...],[0.002215,...]]}
    {"note":"action","step":120,...}

Layers are in a separate file (:mod:`thermoopt.sinks`): a *layout* names layers and terms, a *row* holds
the extensive terms of all layers at one step, packed (:func:`pack_terms`)::

    {"thermoopt": 2, "layout": "5be0c1d2", "names": ["wte.weight", ...], "terms": ["SIGMA", ...]}
    {"layout":"5be0c1d2","session":"9f3a61c2","step":120,"why":"","gap":20,"packed":"..."}

``why`` is empty for rows of the schedule, whose distance is ``gap``, and says for others what happened.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thermoopt.physics import QUANTITIES, Term, quantities

__all__ = [
    "BEGUN_AT",
    "ENDED",
    "EXACTLY",
    "LAST",
    "RUN",
    "VERSION",
    "facts_of",
    "head_line",
    "journal_path",
    "lasting",
    "layer_path",
    "layout_line",
    "layout_of",
    "merged_facts",
    "note_line",
    "pack_terms",
    "reading_lines",
    "rounded",
    "row_line",
    "scope_values",
    "unpack_terms",
]

Array = NDArray[np.float64]

VERSION = 2
"""Files without a head, with one object per reading that names every quantity, are version 1."""

LAST = "last"
"""``why`` of the newest reading's row, which is kept until a newer row is written."""

RUN = "run"
"""The kind of notes with facts about the run that readings do not have: initial norms, steps skipped."""

AVERAGED, EXACT = 4, 7
"""Significant digits. An average over the default 50 steps has a standard error of 10 %, 1/sqrt(2 * 50 - 1),
of one step's scatter; where that scatter is 1 % of the value or more, rounding to 4 digits (5e-5) is a
twentieth of the error at most. Norms, distances, rates and losses are not averages of noise, and their
differences matter."""

EXACTLY = ("param_norm", "norm_forecast", "distance", "lr_eff", "wd_eff")
_FORMS = ",".join(
    "%.17g" if name == "numel" else f"%.{EXACT if name in EXACTLY else AVERAGED}g" for name in QUANTITIES
)

_BYTES = 3
"""Bytes kept of each float32 of a layer's term: 16 bits of mantissa, a relative error of at most 8e-6."""


ENDED = "ended"
"""The fact that the process has ended, or closed the record."""

BEGUN_AT = "begun_at"
"""The fact, in a head, how many steps the run had taken when what follows began: 0 of a new run, more of one
that goes on from a checkpoint."""

UP_TO_NOW = ("steps", ENDED)
"""Facts that hold until the next reading."""


def head_line(
    session: str,
    started: str,
    groups: Sequence[str],
    skips: Sequence[str],
    facts: Mapping[str, Any] | None = None,
) -> str:
    """Return the line that names the columns of the readings after it and holds the facts about the run."""
    head = {
        "thermoopt": VERSION,
        "session": session,
        "started": started,
        "scopes": ["total", *groups],
        "quantities": list(QUANTITIES),
        "skips": list(skips),
        **({RUN: _plain(facts)} if facts else {}),
    }
    return json.dumps(head, allow_nan=False) + "\n"


def note_line(kind: str, step: int, fields: Mapping[str, Any]) -> str:
    """Return the line of an event; values that JSON cannot hold become null or text."""
    return json.dumps({"note": kind, "step": step, **_plain(dict(fields))}, allow_nan=False) + "\n"


def facts_of(notes: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Split notes into facts about the run, of which later ones count, and the rest."""
    facts: dict[str, Any] = {}
    for note in notes:
        if note.get("note") == RUN:
            facts = merged_facts(facts, note)
    return facts, [dict(note) for note in notes if note.get("note") != RUN]


def lasting(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the facts that a later reading makes untrue."""
    return {name: fact for name, fact in facts.items() if name not in UP_TO_NOW}


def merged_facts(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Merge facts about a run: newer ones count, except for a later first loss."""
    out = {**old, **new}
    norms = {**old.get("start_norms", {}), **new.get("start_norms", {})}
    if norms:
        out["start_norms"] = norms
    first, again = old.get("first_loss"), new.get("first_loss")
    if first is not None and again is not None and first[0] < again[0]:  # the run continued from a checkpoint
        out["first_loss"] = first
    return out


def reading_lines(
    steps: Sequence[int],
    losses: Sequence[float | None],
    skipped: Sequence[Sequence[int]],
    group_terms: Sequence[Array],
) -> str:
    """Return one line per reading, for readings that have the same groups and skip causes.

    All numbers are computed and formatted at once: a call for many readings costs little more than for one.

    Args:
        steps, losses, skipped: of each of ``k`` readings.
        group_terms: ``[len(Term), n_groups]`` of each.
    """
    values = _values(group_terms)
    k, scopes, _ = values.shape
    causes = len(skipped[0])
    form = (
        '{"step":%d,"loss":%.7g,"skipped":['
        + ",".join(["%d"] * causes)
        + '],"values":['
        + ",".join([f"[{_FORMS}]"] * scopes)
        + "]}\n"
    )
    flat: list[float] = []
    for i, row in enumerate(values.reshape(k, -1).tolist()):
        loss = losses[i]
        flat += [steps[i], float("nan") if loss is None else loss, *skipped[i], *row]
    text = (form * k) % tuple(flat)
    # JSON has neither; these lines hold no names, so nothing else can match
    return text.replace("-inf", "null").replace("inf", "null").replace("nan", "null")


def scope_values(group_terms: Sequence[Array]) -> list[list[list[str]]]:
    """Return quantities as text, by reading, scope (total, then groups) and quantity; empty if undefined."""
    form = (_FORMS.replace(",", " ") + "\n") * group_terms[0].shape[1] + _FORMS.replace(",", " ")
    return [
        [
            ["" if "n" in text else text for text in line.split(" ")]
            for line in (form % tuple(row)).split("\n")
        ]
        for row in _values(group_terms).reshape(len(group_terms), -1).tolist()
    ]


def _values(group_terms: Sequence[Array]) -> Array:
    """Quantities of total and groups, ``[k, 1 + n_groups, len(QUANTITIES)]``."""
    groups = np.stack(group_terms, axis=1)  # [terms, k, groups]
    terms = np.concatenate([groups.sum(axis=2, keepdims=True), groups], axis=2)
    formed = quantities(terms)
    return np.stack([formed[name] for name in QUANTITIES], axis=2)


def layout_of(names: Sequence[str]) -> str:
    """Return a short identifier of layers in this order."""
    return f"{zlib.crc32(json.dumps(list(names)).encode()):08x}"


def layout_line(names: Sequence[str]) -> str:
    """Return the line that names the layers and terms of a layout's rows."""
    head = {"thermoopt": VERSION, "layout": layout_of(names), "names": list(names)}
    return json.dumps({**head, "terms": [term.name for term in Term]}) + "\n"


def row_line(layout: str, session: str, step: int, why: str, gap: int, terms: NDArray[Any]) -> str:
    """Return the line of all layers at one step.

    Args:
        layout: of the layers (:func:`layout_of`).
        session: who writes.
        step: of the reading.
        why: what happened; empty for rows of the schedule.
        gap: steps between rows of the schedule.
        terms: ``[len(Term), n_layers]``, NaN for layers never seen.
    """
    head = json.dumps({"layout": layout, "session": session, "step": step, "why": why, "gap": gap})
    return f'{head[:-1]}, "packed": "{pack_terms(terms)}"}}\n'


def pack_terms(terms: NDArray[Any]) -> str:
    """Return terms as base64 of the upper three bytes of rounded float32, all first bytes first."""
    planes = rounded(terms).ravel().view(np.uint8).reshape(-1, 4)[:, 4 - _BYTES :].T
    return base64.b64encode(planes.tobytes()).decode("ascii")


def rounded(values: NDArray[Any]) -> NDArray[np.float32]:
    """Round values to the nearest float32 whose last byte is 0; values beyond float32 become infinite."""
    with np.errstate(over="ignore"):
        bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    finite = np.isfinite(bits.view("<f4"))
    return np.where(finite, (bits + np.uint32(0x80)) & np.uint32(0xFFFFFF00), bits).view("<f4")


def unpack_terms(packed: str, n_terms: int) -> NDArray[np.float32]:
    """Return the terms that :func:`pack_terms` was given, ``[n_terms, n_layers]``.

    Raises:
        ValueError: for text that is not of this form.
    """
    try:
        raw = np.frombuffer(base64.b64decode(packed, validate=True), np.uint8)
    except binascii.Error as error:
        raise ValueError(f"packed terms are not base64 ({error})") from error
    if not n_terms or len(raw) % (_BYTES * n_terms):
        raise ValueError(f"{len(raw)} bytes of packed terms are not {n_terms} terms a layer")
    whole = np.zeros((len(raw) // _BYTES, 4), np.uint8)
    whole[:, 4 - _BYTES :] = raw.reshape(_BYTES, -1).T
    return whole.view("<f4").reshape(n_terms, -1)


def _plain(value: Any) -> Any:
    """Convert a value to one that JSON can hold."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)


def journal_path(path: Path) -> Path:
    """Path of readings that are not in a row group yet: ``run.journal.jsonl.gz`` for ``run.parquet``."""
    return path.with_name(f"{path.stem}.journal.jsonl.gz")


def layer_path(path: Path) -> Path:
    """Path of a record's rows of layers: ``run.layers.jsonl.gz`` for ``run.jsonl.gz``.

    Those of ``run.parquet`` lie beside its journal, so that it can be kept next to a ``run.jsonl.gz``.
    """
    if path.suffix == ".parquet":
        path = journal_path(path)
    stem, *rest = re.split(r"(?=\.jsonl(?:\.gz)?$|\.gz$)", path.name)
    return path.with_name(f"{stem}.layers{''.join(rest)}")
