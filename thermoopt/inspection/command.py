"""``thermoopt inspect``: saved runs as tables, diagnosis, pictures and one page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from thermoopt.controllers import Action
from thermoopt.diagnosis import DiagnosticReport
from thermoopt.inspection.input_error import InputError
from thermoopt.inspection.page import Picture, page, page_of_several
from thermoopt.inspection.run_tables import layer_table, rate_table, total_table, type_table
from thermoopt.inspection.side_by_side import (
    InspectedRun,
    compared,
    findings_table,
    runs_table,
    short_names,
)
from thermoopt.inspection.sources import expanded, file_to_write, folder_to_write, read_run, stem
from thermoopt.inspection.words import actions_in_words
from thermoopt.plots import (
    LossCurve,
    plot_actions,
    plot_comparison,
    plot_dashboard,
    plot_entropy_split,
    plot_layer_maps,
)
from thermoopt.record import SavedRun

__all__ = ["Inspection", "inspect_run"]

Say = Callable[[str], None]

MAX_LAYERS = 32
"""Layers listed in a terminal: those furthest from r = 1."""

PAGE_LAYERS = 2000
"""Layers listed on a page, chosen likewise: 500 bytes each, so that the page stays under 3 MB."""

NAME = 32
"""Characters of a layer's name in a terminal; its end is kept, which distinguishes the layers of a block."""

MAX_COMPARED = 8
"""Runs in one picture, as many as have distinguishable colours. The table has all runs."""


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
    run: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    html: str | Path | None = None,
    actions: str | Path | None = None,
    *,
    since: int | None = None,
    layers: str | None = None,
    say: Say = print,
    width: int | None = None,
) -> Inspection | list[InspectedRun]:
    """Read a saved run; say what it did and what is wrong with it; draw it; write a page about it.

    Several runs, or a folder that holds several, are shown side by side: a table, one picture, the findings
    of each. A file called ``history.jsonl`` counts as a run of the demo, and ``loss.csv`` and
    ``actions.jsonl`` next to it as that run's losses and actions.

    Args:
        run: a record, a folder of records, or several of these.
        out: folder for the pictures, created if missing. None uses ``NAME_inspect`` next to ``NAME.jsonl``,
            and ``inspect`` in the folder that several runs share.
        html: where to write a self-contained page; None writes none.
        actions: a JSONL file of a controller's actions (``Action.to_dict``); None uses those in the record,
            or those next to a run of the demo.
        since: leave out readings before this step.
        layers: leave out layers that do not match: ``*`` and ``?`` as in a shell, commas between patterns.
        say: called with every line.
        width: columns of the terminal; None asks the terminal.

    Returns:
        The :class:`Inspection`; for several runs, one for each.

    Raises:
        InputError: if an argument cannot be used; nothing was written.
    """
    width = shutil.get_terminal_size((120, 24)).columns if width is None else width
    given = [Path(run)] if isinstance(run, (str, Path)) else [Path(path) for path in run]
    paths = expanded(given)
    if len(paths) > 1:
        if actions is not None:
            raise InputError("actions", Path(actions), "belongs to one run, but several are given")
        return _inspect_several(paths, out, html, since, layers, say, width)
    path = paths[0]
    one, notes = read_run(path, actions, since, layers)
    saved, report = one.run, one.report
    target = None if html is None else file_to_write(Path(html))
    folder = folder_to_write(path.parent / f"{stem(path)}_inspect" if out is None else Path(out))

    about = _about(saved)
    for line in (f"run         {path}", *(f"            {words}" for words in (about, *notes)), ""):
        say(line)
    pictures = _draw(saved, one.losses, one.actions, folder, say)
    total, types = total_table(saved), type_table(saved)
    rates = [rate_table(saved)] if saved.history.standings else []
    if target is not None:
        name, tables = "/".join(path.parts[-2:]), [total, *rates, types, layer_table(saved, PAGE_LAYERS)]
        target.write_text(page(name, about, report, tables, pictures, one.actions, notes), encoding="utf-8")
    for lines in (
        total.lines(width),
        *(table.lines(width) for table in rates),
        types.lines(width),
        layer_table(saved, MAX_LAYERS, NAME).lines(width),
        [str(report)],
        actions_in_words(one.actions) if one.actions else [],
    ):
        for line in [*lines, ""] if lines else []:
            say(line)
    _say_files(folder, pictures, target, say)
    return Inspection(saved, report, [p.path for p in pictures], target)


def _inspect_several(
    paths: Sequence[Path],
    out: str | Path | None,
    html: str | Path | None,
    since: int | None,
    layers: str | None,
    say: Say,
    width: int,
) -> list[InspectedRun]:
    runs, told = [], []
    for name, path in zip(short_names(paths), paths, strict=True):
        try:
            one, notes = read_run(path, None, since, layers)
        except InputError as error:
            told.append(f"{path}: left out: {error.why}")
            continue
        runs.append(replace(one, name=name))
        told += [f"{name}: {note}" for note in notes]
    if not runs:
        raise InputError("run", paths[0], f"none of {len(paths)} files holds a run; {told[0]}")
    target = None if html is None else file_to_write(Path(html))
    shared = Path(os.path.commonpath([path.parent for path in paths]))
    folder = folder_to_write(shared / "inspect" if out is None else Path(out))
    for line in (f"runs        {len(runs)} in {shared}", *(f"            {note}" for note in told), ""):
        say(line)
    pictures = []
    shown = runs[:MAX_COMPARED]
    title = f"{len(runs)} runs" if shown == runs else f"{MAX_COMPARED} of {len(runs)} runs"
    try:
        plot_comparison(list(compared(shown)), path=folder / "comparison.png", title=title)
    except (ImportError, ValueError) as error:
        say(f"no comparison.png: {error}")
    else:
        alt = f"Losses, learning rates, r and actions of {title}, each in its own colour and line."
        pictures.append(Picture(folder / "comparison.png", "Side by side", alt))
    tables = [runs_table(runs), findings_table(runs)]
    for table in tables:
        for line in [*table.lines(width), ""]:
            say(line)
    if target is not None:
        sections = [(one.name, _about(one.run), one.report) for one in runs]
        text = page_of_several(f"{len(runs)} runs in {shared}", told, tables, pictures, sections)
        target.write_text(text, encoding="utf-8")
    _say_files(folder, pictures, target, say)
    return runs


def _say_files(folder: Path, pictures: Sequence[Picture], target: Path | None, say: Say) -> None:
    if pictures:
        say(f"pictures    {folder}/: {', '.join(p.path.name for p in pictures)}")
    if target is not None:
        say(f"page        {target}")


def _about(run: SavedRun) -> str:
    history = run.history
    parts = [
        (len(history), "reading"),
        (len(history.layer_names), "layer"),
        (len(history.group_names), "group"),
    ]
    readings, layers, groups = (f"{n} {word}{'' if n == 1 else 's'}" for n, word in parts)
    return f"{readings} of {layers} in {groups}, steps {history.steps[0]} to {history.steps[-1]}"


def _draw(run: SavedRun, losses: LossCurve, moves: Sequence[Action], folder: Path, say: Say) -> list[Picture]:
    history = run.history.with_events()
    r = history.total("r")
    went = f"r of all parameters went from {r[0]:.2f} to {r[-1]:.2f}"
    loop = ", rates wanted and held, φ and φ*" if history.standings else ""
    drawn = []
    todo: list[tuple[str, str, str, Callable[[Path], Any]]] = [
        (
            "dashboard.png",
            "Overview",
            f"Loss, σ, r by layer, decay balance, gaussianity, size of a step{loop}; {went}.",
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
