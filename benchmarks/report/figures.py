"""Pictures of a sweep (extra ``viz``): ratios, profiles, best of k, sensitivity, curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from thermoopt.benchmarks.report.outcomes import REFERENCE, Cell, Outcomes, Row, label
from thermoopt.benchmarks.report.stats import LIMIT, share_within
from thermoopt.benchmarks.report.tables import best_of, number, ranked
from thermoopt.inspection import Picture
from thermoopt.plots import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    blank,
    decades,
    frame,
    headroom,
    words,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = ["draw"]

COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY)
DASHES = ("-", "--", ":", "-.")
COLUMNS = 3
"""Panels per row."""

FOLD = 2.0
"""Largest ratio that the colours of the map of ratios resolve; most differences are of some per cent."""

TICKS = (0.25, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.5, 2, 3, 4, 5, 7, 10, 20, 50, 100, 1e3, 1e4)
"""Ratios that an axis is labelled at."""


def draw(outcomes: Outcomes, folder: Path) -> dict[str, Picture]:
    """Draw everything as PNG and SVG; the same outcomes give the same bytes.

    Args:
        outcomes: of a sweep.
        folder: exists.

    Returns:
        The PNGs by name, with what they show in words.

    Raises:
        ImportError: matplotlib is missing; the message says what to install.
    """
    drawn = {
        "ratios": (
            _ratios(outcomes),
            "Final loss over that of tuned linear-to-zero",
            "Map of ratios, methods by workloads: blue below 1 is better, red above 1 is worse than tuned "
            "linear-to-zero. The numbers are in the tables of final losses.",
        ),
        "profiles": (
            _profiles(outcomes),
            "Performance profiles",
            "Two panels of rising curves: the share of workloads and seeds whose final loss is within a "
            "ratio, and the share of workloads whose time to the target is within a ratio of the best.",
        ),
        "best_of_k": (
            _best_of_k(outcomes),
            "Best of k",
            "Expected ratio to tuned linear-to-zero against the number of trials of the search.",
        ),
        "sensitivity": (
            _sensitivity(outcomes),
            "Final loss against the learning rate",
            "One panel per workload: final validation loss of every trial against its learning rate.",
        ),
        "curves": (
            _curves(outcomes),
            "Validation loss over the run",
            "One panel per workload: validation loss over steps of the best trials, median over seeds.",
        ),
    }
    return {
        name: Picture(_save(f, folder / f"{name}.png"), title, alt) for name, (f, title, alt) in drawn.items()
    }


def _save(figure: Figure, path: Path) -> Path:
    """Write PNG and SVG without dates and random ids, which change from run to run."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": path.stem}):
        figure.savefig(path)
        figure.set_layout_engine("none")  # laid out already
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    return path


def _look(outcomes: Outcomes, method: str) -> dict[str, Any]:
    """Colour and dashes of a method, the same in every picture: the reference is black and thick."""
    if method == REFERENCE:
        return {"color": "black", "lw": 2.6, "zorder": 5}
    i = [m for m in outcomes.methods if m != REFERENCE].index(method)
    return {"color": COLOURS[i % len(COLOURS)], "ls": DASHES[i // len(COLOURS) % len(DASHES)], "lw": 1.6}


def _label_ratios(axis: Axis) -> None:
    """Label a log axis of ratios at :data:`TICKS`, or at powers of ten where it spans much."""
    low, high = axis.get_view_interval()
    ticks = [t for t in TICKS if low <= t <= high and (high < 30 * low or math.log10(t).is_integer())]
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_ticks([], minor=True)


def _key(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend below all panels, in the order of the methods' first line."""
    found: dict[str, Any] = {}
    for ax in axes:
        for line, name in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(name, line)
    if found:
        figure.legend(
            found.values(), found.keys(), loc="outside lower center", ncols=5, frameon=False, fontsize=11
        )


def _panels(outcomes: Outcomes, cells: Sequence[Cell]) -> tuple[Figure, list[Axes]]:
    """One panel per cell, and room for the legend."""
    lines = max(1, math.ceil(len(cells) / COLUMNS))
    figure = blank(4.2 * lines + 0.3 * math.ceil(len(outcomes.methods) / 5))
    return figure, [figure.add_subplot(lines, COLUMNS, i + 1) for i in range(len(cells))]


def _ratios(outcomes: Outcomes) -> Figure:
    methods = [method for method in ranked(outcomes) if method != REFERENCE]
    figure = blank(1.6 + 0.42 * max(1, len(methods)))
    ax = figure.add_subplot()
    frame(ax, "Final validation loss over that of tuned linear-to-zero, paired by seed", grid=False)
    if not methods or not any(outcomes.strata(method) for method in methods):
        words(ax, f"nothing has run beside {REFERENCE}")
        return figure
    found = [[outcomes.ratio(cell, method) for cell in outcomes.cells] for method in methods]
    logs = np.array([[math.nan if r is None else math.log2(r.value) for r in line] for line in found])
    top = math.log2(FOLD)
    image = ax.imshow(np.ma.masked_invalid(logs), cmap="RdBu_r", vmin=-top, vmax=top, aspect="auto")
    ax.set_facecolor("#e8e8e8")
    for i, line in enumerate(found):
        for j, ratio in enumerate(line):
            light = ratio is not None and abs(logs[i, j]) > 0.7 * top
            sure = ratio is not None and ratio.known and (ratio.low > 1 or ratio.high < 1)
            text = "missing" if ratio is None else number(ratio.value) + ("*" if sure else "")
            ax.text(j, i, text, ha="center", va="center", fontsize=11, color="white" if light else "black")
    ax.set_xticks(range(len(outcomes.cells)), [label(cell) for cell in outcomes.cells])
    ax.set_yticks(range(len(methods)), methods)
    ax.set_xlabel("workload and steps; * where the 95 % interval over seeds leaves out 1", fontsize=11)
    bar = figure.colorbar(image, ax=ax, extend="both", ticks=[-top, -top / 2, 0, top / 2, top])
    bar.ax.set_yticklabels([f"{2**t:.3g}" for t in (-top, -top / 2, 0, top / 2, top)])
    return figure


def _profiles(outcomes: Outcomes) -> Figure:
    figure = blank(6.2 + 0.3 * math.ceil(len(outcomes.methods) / 5))
    left, right = figure.add_subplot(121), figure.add_subplot(122)
    frame(left, "Final loss: share of workloads × seeds within τ of tuned linear")
    frame(right, "Steps to the target: share of workloads within τ of the fastest")
    taus = np.geomspace(1 / LIMIT, LIMIT, 1001)
    times = outcomes.time_ratios()
    least = 0.9
    for method in outcomes.methods:
        look = _look(outcomes, method)
        ratios = [math.exp(value) for logs in outcomes.strata(method).values() for value in logs]
        absent = len(outcomes.cells) * len(outcomes.seeds) - len(ratios)
        if ratios:
            least = max(min(least, *ratios), 1 / LIMIT)
            left.plot(taus, share_within([*ratios, *[math.inf] * absent], taus), label=method, **look)
        if times[method]:
            all_cells = [times[method].get(cell, math.inf) for cell in outcomes.cells]
            after = taus[taus >= 1]
            right.step(after, share_within(all_cells, after), where="post", label=method, **look)
    for ax, low in ((left, least), (right, 1.0)):
        ax.set(xscale="log", xlim=(low, LIMIT), ylim=(-0.02, 1.03), xlabel="τ", ylabel="share")
        _label_ratios(ax.xaxis)
    left.axvline(1, color=GREY, lw=0.8)
    _key(figure, (left, right))
    return figure


def _best_of_k(outcomes: Outcomes) -> Figure:
    figure = blank(6.0 + 0.3 * math.ceil(len(outcomes.methods) / 5))
    ax = figure.add_subplot()
    frame(ax, "Expected best of k trials over tuned linear-to-zero, geometric mean over workloads and seeds")
    most = 1
    for method in outcomes.methods:
        curve = best_of(outcomes, method)
        if not curve:
            continue
        most = max(most, *curve)
        look = _look(outcomes, method)
        marker = "o" if len(curve) > 1 else "D"
        ax.plot(list(curve), list(curve.values()), marker=marker, ms=5, label=method, **look)
        if not outcomes.tunables(method):
            ax.axhline(curve[1], alpha=0.5, **{**look, "lw": 0.8})
    ax.set(
        xscale="log",
        yscale="log",
        ylabel="ratio",
        xlabel="k: trials of the search (diamond: searches nothing)",
    )
    ticks = sorted({k for k in (1, 2, 4, 8, 16, 32, 64) if k <= most} | {most})
    ax.set_xticks(ticks, [str(k) for k in ticks])
    ax.minorticks_off()
    ax.axhline(1, color=GREY, lw=0.8)
    _label_ratios(ax.yaxis)
    _key(figure, [ax])
    return figure


def _sensitivity(outcomes: Outcomes) -> Figure:
    methods = [method for method in outcomes.methods if "lr" in outcomes.tunables(method)]
    figure, axes = _panels(outcomes, outcomes.cells)
    for cell, ax in zip(outcomes.cells, axes, strict=True):
        frame(ax, label(cell))
        ax.set(xlabel="lr", ylabel=outcomes.metric(cell) or "loss")
        lowest = []
        for method in methods:
            rows = [row for s in outcomes.seeds for row in outcomes.trials(cell, method, s) if row["lr"]]
            if rows:
                rows.sort(key=lambda row: row["lr"])
                losses = [max(min(row["valid"], row["initial"]), outcomes.floor(cell)) for row in rows]
                lowest += losses
                lrs = [row["lr"] for row in rows]
                look = _look(outcomes, method)
                ax.plot(lrs, losses, marker="o", ms=3.5, label=method, **look)
        if not lowest:
            words(ax, "no method with an lr has run")
            continue
        ax.set_xscale("log")
        start = median([row["initial"] for m in methods for row in outcomes.all_trials(cell, m)])
        ax.axhline(start, color=GREY, lw=0.8, ls=":")
        if min(lowest) > 0:
            ax.set_yscale("log")
            decades(ax)
    _key(figure, axes)
    return figure


def _curves(outcomes: Outcomes) -> Figure:
    figure, axes = _panels(outcomes, outcomes.cells)
    for cell, ax in zip(outcomes.cells, axes, strict=True):
        frame(ax, label(cell))
        ax.set_ylabel(outcomes.metric(cell) or "loss")
        for method in outcomes.methods:
            best = list(outcomes.best(cell, method).values())
            if best:
                steps, losses = _median_curve(best)
                ax.plot(
                    steps, np.maximum(losses, outcomes.floor(cell)), label=method, **_look(outcomes, method)
                )
        target = outcomes.target(cell)
        if target is not None:
            ax.axhline(target, color=GREY, lw=0.9, ls=":")
        ax.set_yscale("log")
        headroom(ax, 0.03)
        decades(ax)
    _key(figure, axes)
    return figure


def _median_curve(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Median over runs at the steps that the first was judged at; where one was stopped, over the others."""
    steps = np.array([step for step, _ in rows[0]["curve"]], dtype=float)
    losses = []
    for row in rows:
        own = np.array([[s, math.nan if loss is None else loss] for s, loss in row["curve"]], dtype=float)
        losses.append(np.interp(steps, own[:, 0], own[:, 1], right=math.nan))
    known = [[loss for loss in at_step if math.isfinite(loss)] for at_step in np.transpose(losses)]
    return steps, np.array([median(finite) if finite else math.nan for finite in known])
