"""``thermoopt inspect``: a saved run as tables, diagnosis, pictures and one page."""

from __future__ import annotations

import csv
import json
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from thermoopt.account import SavedLosses, SavedRun
from thermoopt.controllers import Action
from thermoopt.diagnosis import DiagnosticReport, diagnose
from thermoopt.inspection.input_error import InputError
from thermoopt.inspection.page import Picture, page
from thermoopt.inspection.run_tables import layer_table, total_table, type_table
from thermoopt.inspection.words import actions_in_words
from thermoopt.plots import (
    LossCurve,
    as_action,
    plot_actions,
    plot_dashboard,
    plot_entropy_split,
    plot_layer_maps,
)

__all__ = ["Inspection", "inspect_run"]

Say = Callable[[str], None]

MAX_LAYERS = 32
"""Layers listed in a terminal; of more, those furthest from r = 1. The page lists all."""

NAME = 32
"""Characters of a layer's name in a terminal; the end is kept, which tells layers of a block apart."""


_ACTIONS = "must be a JSONL with one Action.to_dict() a line"


@dataclass
class Inspection:
    """What an inspection found and wrote.

    Attributes:
        run: the run read.
        report: its diagnosis.
        pictures: files written.
        html: the page written, or None.
    """

    run: SavedRun
    report: DiagnosticReport
    pictures: list[Path] = field(default_factory=list)
    html: Path | None = None


def inspect_run(
    run: str | Path,
    out: str | Path | None = None,
    html: str | Path | None = None,
    actions: str | Path | None = None,
    *,
    say: Say = print,
    width: int | None = None,
) -> Inspection:
    """Read a saved run; say what it did and what is wrong with it; draw it; make a page of it.

    A file called ``history.jsonl`` is taken for one of the demo's, and ``loss.csv`` and ``actions.jsonl``
    beside it for the run's own.

    Args:
        run: a JSONL of readings.
        out: folder for the pictures, made if missing; None for ``NAME_inspect`` beside ``NAME.jsonl``.
        html: where to write one self-contained page; None writes none.
        actions: a JSONL of a controller's actions (``Action.to_dict``); None looks beside the run only.
        say: takes every line.
        width: columns of the terminal; None asks it.

    Returns:
        The :class:`Inspection`.

    Raises:
        InputError: an argument cannot be used; nothing was written.
    """
    path = Path(run)
    saved, notes = _read_run(path)
    of_demo = path.name == "history.jsonl"
    if actions is None and of_demo and (path.parent / "actions.jsonl").is_file():
        actions = path.parent / "actions.jsonl"
    moves = [] if actions is None else _read_actions(Path(actions))
    losses = LossCurve(saved.losses.steps.tolist(), saved.losses.values.tolist(), unit="")
    if of_demo and not losses.train and (path.parent / "loss.csv").is_file():
        losses = _read_losses(path.parent / "loss.csv")
        saved.losses = SavedLosses(np.array(losses.train_steps, dtype=np.int64), np.array(losses.train))
    target = None if html is None else _file(Path(html))
    folder = _folder(path.parent / f"{path.stem}_inspect" if out is None else Path(out))
    report = diagnose(saved)

    about = _about(saved)
    for line in (
        f"run         {path}",
        f"            {about}",
        *(f"            {note}" for note in notes),
        "",
    ):
        say(line)
    pictures = _draw(saved, losses, moves, folder, say)
    total, types = total_table(saved), type_table(saved)
    if target is not None:
        name, tables = "/".join(path.parts[-2:]), [total, types, layer_table(saved)]
        target.write_text(page(name, about, report, tables, pictures, moves, notes), encoding="utf-8")
    width = shutil.get_terminal_size((120, 24)).columns if width is None else width
    for lines in (
        total.lines(width),
        types.lines(width),
        layer_table(saved, MAX_LAYERS, NAME).lines(width),
        [str(report)],
        actions_in_words(moves) if moves else [],
    ):
        for line in [*lines, ""] if lines else []:
            say(line)
    if pictures:
        say(f"pictures lie in {folder}/: {', '.join(p.path.name for p in pictures)}")
    if target is not None:
        say(f"page        {target}")
    return Inspection(saved, report, [p.path for p in pictures], target)


def _about(run: SavedRun) -> str:
    history = run.history
    parts = [
        (len(history), "reading"),
        (len(history.layer_names), "layer"),
        (len(history.group_names), "group"),
    ]
    readings, layers, groups = (f"{n} {word}{'' if n == 1 else 's'}" for n, word in parts)
    return f"{readings} of {layers} in {groups}, steps {history.steps[0]} to {history.steps[-1]}"


# -------------------------------------------------------------------- pictures


def _draw(run: SavedRun, losses: LossCurve, moves: Sequence[Action], folder: Path, say: Say) -> list[Picture]:
    history = run.history
    r = history.total("r")
    went = f"r of all parameters goes from {r[0]:.2f} to {r[-1]:.2f}"
    drawn = []
    todo: list[tuple[str, str, str, Callable[[Path], Any]]] = [
        (
            "dashboard.png",
            "Overview",
            f"Six panels: loss, σ, r by layer, decay balance, gaussianity, size of a step; {went}.",
            lambda path: plot_dashboard(history, losses, path=path),
        ),
        (
            "entropy_split.png",
            "Entropy split",
            "Parts of entropy production over time, their shares by layer, and heat over work by layer.",
            lambda path: plot_entropy_split(history, path=path),
        ),
        (
            "layer_maps.png",
            "Layers over time",
            "Two heat maps, layer by step: r against 1, and the weight-decay balance R_wd against 1.",
            lambda path: plot_layer_maps(history, path=path),
        ),
    ]
    if moves:
        todo.append(
            (
                "actions.png",
                "Actions of the controllers",
                f"Scales of learning rate and weight decay over steps with {len(moves)} actions marked.",
                lambda path: plot_actions(moves, history, path=path),
            )
        )
    for name, title, alt, draw in todo:
        try:
            draw(folder / name)
        except (ImportError, ValueError) as error:
            say(f"no {name}: {error}")
            continue
        drawn.append(Picture(folder / name, title, alt))
    return drawn


# -------------------------------------------------------------------- files


def _read_run(path: Path) -> tuple[SavedRun, list[str]]:
    """Read the run; what there is to note about it comes with it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        try:
            run = SavedRun.read(path)
        except OSError as e:
            raise InputError("run", path, f"{e.strerror or e}; must be a JSONL of readings") from e
        except ValueError as e:
            raise InputError("run", path, str(e).removeprefix(str(path)).lstrip(":, ")) from e
    notes = [str(warning.message).removeprefix(f"{path}: ") for warning in caught]
    causes = [f"{count} × {cause}" for cause, count in run.skipped.items() if count]
    return run, [*notes, *(["measurements skipped: " + ", ".join(causes)] if causes else [])]


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
                raise InputError("actions", path, f"line {number} is no action; {_ACTIONS}") from e
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


def _folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise InputError("out", folder, f"{e.strerror}; must be a folder that can be made") from e
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError("out", folder, "must be a folder that can be written")
    return folder


def _file(path: Path) -> Path:
    if path.is_dir():
        raise InputError("html", path, "is a folder; must be a file that can be written")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as e:
        raise InputError("html", path, f"{e.strerror}; must be a file that can be written") from e
    return path
