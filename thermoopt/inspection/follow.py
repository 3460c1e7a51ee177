"""``thermoopt inspect --follow``: a view of a run in progress, redrawn as its record grows."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from thermoopt.diagnosis import diagnose
from thermoopt.inspection.input_error import InputError
from thermoopt.inspection.run_tables import layer_table, total_table
from thermoopt.inspection.words import note_in_words
from thermoopt.record import SavedRun, journal_path

__all__ = ["follow_run"]

EVERY = 2.0
"""Seconds between checks of the file, as often as a record is written."""

PATIENCE = 4.0
"""Minimum pause between two reads of the record, in durations of a read."""

LAYERS = 8
"""Layers in the view: those furthest from r = 1."""

_CLEAR = "\x1b[H\x1b[2J"


def follow_run(
    path: Path,
    *,
    since: int | None = None,
    layers: str | None = None,
    say: Callable[[str], None] = print,
    width: int = 120,
    height: int = 40,
    views: int | None = None,
) -> None:
    """Show a run in progress until interrupted.

    On a terminal the view is redrawn in place, otherwise views are printed one after the other. If the file
    does not exist yet, wait for it.

    Args:
        path: the record.
        since: leave out readings before this step.
        layers: patterns of layers to show, as for :meth:`SavedRun.read`.
        say: called with each view as one string.
        width, height: size of the terminal.
        views: end after this many views; None never ends.

    Raises:
        InputError: if the file cannot be read, or needs an extra that is not installed.
    """
    seen: object = ()
    shown = 0
    while views is None or shown < views:
        now = _state(path)
        if now == seen:
            time.sleep(EVERY)
            continue
        seen = now
        began = time.monotonic()
        lines = _view(path, since, layers, width) if now is not None else [f"waiting for {path}"]
        took = time.monotonic() - began
        clear = _CLEAR if sys.stdout.isatty() else ""
        say(clear + "\n".join(_cut(lines, height) if clear else lines))
        shown += 1
        if views is None or shown < views:
            time.sleep(max(EVERY, PATIENCE * took))


def _state(path: Path) -> list[tuple[int, float]] | None:
    """Size and time of the files in which readings stand, None where there is none yet."""
    parts = [path, journal_path(path)] if path.suffix == ".parquet" else [path]
    found = []
    for part in parts:
        try:
            stat = os.stat(part)
        except FileNotFoundError:
            continue
        found.append((stat.st_size, stat.st_mtime))
    return found or None


def _cut(lines: list[str], height: int) -> list[str]:
    """As many lines as a terminal has, with a word on those left out."""
    if len(lines) <= height:
        return lines
    return [*lines[: height - 1], f"({len(lines) - height + 1} more lines in a taller window)"]


def _view(path: Path, since: int | None, layers: str | None, width: int) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        try:
            run = SavedRun.read(path, since=since, layers=layers)
        except ValueError as error:
            return [f"{error}", "waiting for the next reading"]
        except (ImportError, OSError) as error:
            raise InputError("run", path, str(getattr(error, "strerror", None) or error)) from error
    history = run.history
    report = diagnose(run)
    lines = [
        f"{path}: {len(history)} readings to step {run.steps}; {datetime.now():%H:%M:%S} (Ctrl-C ends)",
        *(str(warning.message).removeprefix(f"{path}: ") for warning in caught),
        *(f"{f.confidence:6} {f.kind.replace('_', ' ')}: {f.message}" for f in report.findings[:6]),
        *([] if report.findings else [report.summary]),
    ]
    if run.notes:
        lines.append(
            "events: " + ", ".join(f"{note_in_words(n)} at step {n['step']}" for n in run.notes[-4:])
        )
    lines += ["", *total_table(run).lines(width)]
    if history.layer_names:
        lines += ["", *layer_table(run, LAYERS, 32).lines(width)]
    return lines
