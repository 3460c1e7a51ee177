"""What ``thermoopt inspect`` reads: records, files next to them, folders of them."""

from __future__ import annotations

import csv
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from thermoopt.controllers import Action
from thermoopt.diagnosis import diagnose
from thermoopt.inspection.input_error import InputError
from thermoopt.inspection.reading_bar import reading_bar
from thermoopt.inspection.side_by_side import ENDINGS, InspectedRun, records_in
from thermoopt.inspection.words import note_in_words
from thermoopt.plots import LossCurve, as_action
from thermoopt.record import SavedLosses, SavedRun

__all__ = ["expanded", "file_to_write", "folder_to_write", "read_run", "stem"]

_ACTIONS = "must be a JSONL file with one Action.to_dict() per line"


def read_run(
    path: Path, actions: str | Path | None, since: int | None, layers: str | None
) -> tuple[InspectedRun, list[str]]:
    """Read and diagnose a run with the files next to it; return it with remarks.

    Args:
        path: the record.
        actions: a JSONL of actions; None takes those on record, or those next to a run of the demo.
        since: leave out readings before this step.
        layers: leave out layers that do not match.

    Raises:
        InputError: naming the argument that cannot be used.
    """
    saved, notes = _read_record(path, since, layers)
    of_demo = path.name == "history.jsonl"
    if actions is None and of_demo and (path.parent / "actions.jsonl").is_file():
        actions = path.parent / "actions.jsonl"
    moves = _recorded_actions(saved) if actions is None else _read_actions(Path(actions))
    losses = LossCurve(saved.losses.steps.tolist(), saved.losses.values.tolist(), unit="")
    if of_demo and not losses.train and (path.parent / "loss.csv").is_file():
        losses = _read_losses(path.parent / "loss.csv")
        saved.losses = SavedLosses(np.array(losses.train_steps, dtype=np.int64), np.array(losses.train))
    return InspectedRun(path.name, saved, diagnose(saved), losses, moves), notes


def expanded(given: Sequence[Path]) -> list[Path]:
    """Return files, with folders replaced by the records in them.

    Raises:
        InputError: if a folder holds none.
    """
    out: list[Path] = []
    for path in given:
        found = records_in(path) if path.is_dir() else [path]
        if not found:
            raise InputError("run", path, f"holds no file that ends in {', '.join(ENDINGS)}")
        out += found
    return list(dict.fromkeys(out))


def stem(path: Path) -> str:
    """Return the name of a record without its endings."""
    return path.name.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".parquet")


def _read_record(path: Path, since: int | None, layers: str | None) -> tuple[SavedRun, list[str]]:
    with warnings.catch_warnings(record=True) as caught, reading_bar(path.name) as progress:
        warnings.simplefilter("always", RuntimeWarning)
        try:
            run = SavedRun.read(path, since=since, layers=layers, progress=progress)
        except OSError as e:
            raise InputError("run", path, f"{e.strerror or e}; must be a record of readings") from e
        except (ValueError, ImportError) as e:
            raise InputError("run", path, str(e).removeprefix(str(path)).lstrip(":, ")) from e
    notes = [str(warning.message).removeprefix(f"{path}: ") for warning in caught]
    causes = [f"{count} × {cause}" for cause, count in run.skipped.items() if count]
    notes += ["measurements skipped: " + ", ".join(causes)] if causes else []
    steps: dict[str, list[int]] = {}
    for note in run.notes:
        steps.setdefault(note_in_words(note), []).append(note["step"])
    happened = [f"{len(at)} × {what} (step {_some(at)})" for what, at in steps.items()]
    return run, [*notes, *(["events: " + ", ".join(happened)] if happened else [])]


def _some(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps[:3])) + (", …" if len(steps) > 3 else "")


def _recorded_actions(run: SavedRun) -> list[Action]:
    """Actions that the record itself holds; entries that are not actions are left out."""
    out = []
    for note in run.notes:
        if note["note"] == "action":
            try:
                out.append(as_action({k: v for k, v in note.items() if k != "note"}))
            except ValueError:
                continue
    return out


def _read_actions(path: Path) -> list[Action]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as e:
        raise InputError("actions", path, f"{getattr(e, 'strerror', None) or e}; {_ACTIONS}") from e
    moves = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                moves.append(as_action(json.loads(line)))
            except ValueError as e:
                raise InputError("actions", path, f"line {number} is not an action; {_ACTIONS}") from e
    return moves


def _read_losses(path: Path) -> LossCurve:
    """Read the demo's table of losses: step, train, valid."""
    losses = LossCurve()
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for kind, steps, values in (
                    ("train", losses.train_steps, losses.train),
                    ("valid", losses.valid_steps, losses.valid),
                ):
                    if row[kind]:
                        steps.append(int(row["step"]))
                        values.append(float(row[kind]))
    except (OSError, ValueError, KeyError) as e:
        raise InputError("run", path, f"{e!r}; must be the demo's table of step, train and valid") from e
    return losses


def folder_to_write(folder: Path) -> Path:
    """Make a folder.

    Raises:
        InputError: if it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise InputError("out", folder, f"{e.strerror}; must be a writable folder") from e
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError("out", folder, "must be a writable folder")
    return folder


def file_to_write(path: Path) -> Path:
    """Make sure that a file can be written.

    Raises:
        InputError: if it cannot.
    """
    if path.is_dir():
        raise InputError("html", path, "is a folder; must be a writable file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as e:
        raise InputError("html", path, f"{e.strerror}; must be a writable file") from e
    return path
