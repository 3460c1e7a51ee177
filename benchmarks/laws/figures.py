"""Pictures of the laws (extra ``viz``): toy, temperature, quench, layers, final losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from thermoopt.benchmarks.laws.fits import (
    final_fit,
    layer_points,
    noise_share,
    over_seeds,
    predicted,
    released,
    toy_points,
)
from thermoopt.benchmarks.laws.report import groups
from thermoopt.benchmarks.laws.runs import QUENCHES, SHAPES
from thermoopt.benchmarks.laws.toy import LAWS
from thermoopt.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, blank, decades, finish, frame, legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw"]

Row = dict[str, Any]

COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY)
MARKERS = "osD^v<>"

TOY_LOG = ("thermal loss, sgd", "thermal loss, sign", "thermal loss, adam", "conduction", "greedy 1/t")
"""Laws drawn on two logarithmic axes, or one where the variable is a step."""


def draw(rows: Sequence[Row], out: Path) -> list[Path]:
    """Draw the figures of the experiments that have rows.

    Returns:
        The PNGs written.

    Raises:
        ImportError: matplotlib is missing; the message says what to install.
    """
    toys = [r for r in rows if r["experiment"] == "toy"]
    holds = [r for r in rows if r["experiment"] == "hold"]
    grid = [r for r in rows if r["experiment"] == "schedule"]
    pictures: dict[str, tuple[bool, Callable[[], Figure], str]] = {
        "toy": (bool(toys), lambda: _toy(toys), "The river valley: motion (points) and closed forms (lines)"),
        "temperature": (
            bool(holds),
            lambda: _temperature(holds),
            "Readings on the way and gradients at rest",
        ),
        "quench": (bool(holds), lambda: _quench(holds), "Loss released by cooling, and what tells it"),
        "layers": (bool(holds), lambda: _layers(holds), "Layer by layer: loss released by averaging it"),
        "final": (bool(grid), lambda: _final(grid, holds), "Final losses over a grid of schedules"),
    }
    written = []
    for name, (there, make, title) in pictures.items():
        if there:
            finish(make(), title, out / f"{name}.png")
            written.append(out / f"{name}.png")
    return written


def _style(i: int) -> dict[str, Any]:
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "ms": 5, "ls": "none"}


def _logarithmic(ax: Axes, axes: str = "xy") -> None:
    """Make axes logarithmic after the points have been drawn."""
    for name in axes:
        getattr(ax, f"set_{name}scale")("log")
    decades(ax, axes)


def _diagonal(ax: Axes, slope: float = 1.0, label: str | None = None) -> None:
    """Draw the line on which both numbers agree."""
    low, high = ax.get_xlim()
    ax.plot([low, high], [slope * low, slope * high], color=GREY, lw=1, ls="-" if slope == 1 else ":",
            label=label, zorder=0)  # fmt: skip
    ax.set_xlim(low, high)


def _toy(rows: Sequence[Row]) -> Figure:
    laws = [law for law in LAWS if any(r["law"] == law for r in rows)]
    lines = math.ceil(len(laws) / 3)
    figure = blank(4.0 * lines)
    for i, law in enumerate(laws):
        ax = figure.add_subplot(lines, 3, i + 1)
        frame(ax, law)
        points = toy_points(rows, law)
        for j, series in enumerate(dict.fromkeys(p["series"] for p in points)):
            of_it = [p for p in points if p["series"] == series]
            at, measured, error, expected = (
                [p[key] for p in of_it] for key in ("at", "measured", "error", "expected")
            )
            ax.errorbar(at, measured, error, label=series, **_style(j))
            ax.plot(at, expected, color=COLOURS[j % len(COLOURS)], lw=1.2)
        ax.set_xlabel(LAWS[law][0])
        if law in TOY_LOG:
            _logarithmic(ax, "xy" if LAWS[law][0] == "eta" else "y")
        if law == "final loss":
            ax.plot([p["at"] for p in points], [p["expected"] for p in points], "_", color=GREY, ms=30)
            ax.set_xticks(range(4), [p["series"] for p in points])
            ax.set_xlabel("")
        else:
            legend(ax)
    return figure


def _temperature(holds: Sequence[Row]) -> Figure:
    figure = blank(6.0)
    left, right = figure.add_subplot(121), figure.add_subplot(122)
    frame(left, "thermal_loss, nats")
    frame(right, "share of noise in the gradient's energy")
    for i, workload in enumerate(dict.fromkeys(r["workload"] for r in holds)):
        of_it = [rows for (w, _), rows in groups(holds).items() if w == workload]
        pairs = (
            (left, lambda r: r["lr"] / 4 * r["rest"]["energy"], lambda r: r["total"]["thermal_loss"]),
            (right, lambda r: 1 - r["rest"]["signal"] / r["rest"]["energy"], noise_share),
        )
        for ax, at_rest, read in pairs:
            x = [over_seeds([at_rest(r) for r in rows]) for rows in of_it]
            y = [over_seeds([read(r) for r in rows]) for rows in of_it]
            _cross(ax, x, y, workload, i)
    _logarithmic(left)
    for ax in (left, right):
        ax.set_xlabel("48 gradients at rest", fontsize=11)
        ax.set_ylabel("reading on the way", fontsize=11)
        _diagonal(ax)
    legend(left)
    legend(right, loc="lower right")
    return figure


def _cross(ax: Axes, x: Sequence[Any], y: Sequence[Any], label: str, i: int) -> None:
    """Draw points with error bars in both directions."""
    ax.errorbar(
        [v.mean for v in x],
        [v.mean for v in y],
        np.nan_to_num([v.error for v in y]),
        np.nan_to_num([v.error for v in x]),
        label=label,
        **_style(i),
    )


def _quench(holds: Sequence[Row]) -> Figure:
    figure = blank(6.0)
    length = QUENCHES[-1]
    tellers = ("thermal_loss", "noise and curvature at rest", "weights averaged over 50 steps")
    for j, name in enumerate(tellers):
        ax = figure.add_subplot(1, len(tellers), j + 1)
        frame(ax, name)
        for i, workload in enumerate(dict.fromkeys(r["workload"] for r in holds)):
            of_it = [rows for (w, _), rows in groups(holds).items() if w == workload]
            x = [over_seeds([predicted(r, name, length) for r in rows]) for rows in of_it]
            y = [over_seeds([released(r, length) for r in rows]) for rows in of_it]
            _cross(ax, x, y, workload, i)
        _logarithmic(ax)
        ax.set_xlabel("told, nats", fontsize=11)
        ax.set_ylabel(f"released by a quench of {length} steps, nats", fontsize=11)
        _diagonal(ax)
        _diagonal(ax, 0.5, "half of it")
        legend(ax)
    return figure


def _layers(holds: Sequence[Row]) -> Figure:
    cells = {w: rows for (w, factor), rows in groups(holds).items() if factor == 1.0}
    cells = cells or {w: rows for (w, _), rows in groups(holds).items()}
    lines = math.ceil(len(cells) / 3)
    figure = blank(5.0 * lines)
    for i, (workload, rows) in enumerate(cells.items()):
        ax = figure.add_subplot(lines, 3, i + 1)
        every = layer_points(rows)
        points = [p for p in every if p["released"] > 0 and p["thermal"] > 0]
        hidden = len(every) - len(points)
        frame(ax, f"{workload} ({hidden} layers that released nothing are not drawn)" if hidden else workload)
        matrices = [p for p in points if p["numel"] >= 1000]
        for j, (some, label) in enumerate(
            (
                (matrices, "1000 elements and more"),
                ([p for p in points if p not in matrices], "smaller"),
            )
        ):
            if some:
                x, y, e = ([p[key] for p in some] for key in ("thermal", "released", "error"))
                ax.errorbar(x, y, np.nan_to_num(e), label=label, **_style(j))
        _logarithmic(ax)
        ax.set_xlabel("the layer's thermal_loss, nats", fontsize=11)
        ax.set_ylabel("released by averaging it alone, nats", fontsize=11)
        _diagonal(ax)
        legend(ax)
    return figure


def _final(grid: Sequence[Row], holds: Sequence[Row]) -> Figure:
    workloads = list(dict.fromkeys(r["workload"] for r in grid))
    figure = blank(9.5)
    shapes = [s for s in SHAPES if s in {r["shape"] for r in grid}]
    for i, workload in enumerate(workloads):
        rows = [r for r in grid if r["workload"] == workload]
        of_it = [r for r in holds if r["workload"] == workload]
        top = figure.add_subplot(2, len(workloads), i + 1)
        bottom = figure.add_subplot(2, len(workloads), len(workloads) + i + 1)
        fit = final_fit(rows, of_it, "last rate")
        below = final_fit([r for r in rows if r["factor"] <= 1], of_it, "last rate")
        frame(top, f"{workload}: loss over D")
        frame(bottom, f"up to the tuned rate: rms {below.rms:.3f}")
        for j, shape in enumerate(shapes):
            points = sorted((p for p in fit.points if p["shape"] == shape), key=lambda p: p["D"])
            d, loss, error = ([p[key] for p in points] for key in ("D", "loss", "error"))
            top.errorbar(d, loss, np.nan_to_num(error), label=shape, **{**_style(j), "ls": "-", "lw": 0.8})
            points = [p for p in below.points if p["shape"] == shape]
            told, loss, error = ([p[key] for p in points] for key in ("fitted", "loss", "error"))
            bottom.errorbar(told, loss, np.nan_to_num(error), label=shape, **_style(j))
        _logarithmic(top, "x")
        top.set(xlabel="D, sum of the rates", ylabel="final loss, nats")
        bottom.set(xlabel="fit L0 + A D^-p + K × last rate, nats", ylabel="final loss, nats")
        _diagonal(bottom)
        legend(top)
    return figure
