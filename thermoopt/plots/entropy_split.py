"""Where entropy production goes: its parts over time, by layer, and heat over work (extra ``viz``)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from thermoopt.account import HistoryLike
from thermoopt.plots.layer_maps import WIDE_FOLD, by_depth, heat_map, label_depth, map_height
from thermoopt.plots.panels import (
    BINS,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    Array,
    binned,
    blank,
    check_length,
    finish,
    frame,
    gaps,
    legend,
    line,
    words,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_entropy_split", "stack_parts"]

_PARTS = (
    ("d_eS", GREEN, "productive (d_eS)"),
    ("d_iS_noise", ORANGE, "heat: gradient noise"),
    ("d_iS_momentum", PURPLE, "heat: overshooting momentum"),
    ("d_iS_wd", GREY, "heat: weight decay"),
)


def plot_entropy_split(
    history: HistoryLike, *, path: str | Path | None = None, title: str | None = None
) -> Figure:
    """Plot the split of entropy production: three panels, 1600 pixels wide.

    The panels are the parts of the total, stacked over time; the share of each part in every layer, by
    magnitude over the second half of the run; and R_ie, heat over work, of every layer over depth and steps,
    with colours centred on 1 and grey where work is within its error of 0.

    Args:
        history: an optimizer's ``history``, or anything with the same columns.
        path: file to write; the suffix chooses the format (.png, .pdf, .svg).
        title: a line above the panels.

    Returns:
        The figure, for further drawing.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: for a history of fewer than two readings.
    """
    check_length(history, "a picture of the split")
    height = map_height(len(history.layer_names))
    figure = blank(4.2 + height)
    grid = figure.add_gridspec(2, 2, height_ratios=[4.0, height], width_ratios=[2, 3])
    stack_parts(figure.add_subplot(grid[0, :]), history)
    _shares(figure.add_subplot(grid[1, 0]), history)
    heat = figure.add_subplot(grid[1, 1])
    heat_map(
        heat,
        history,
        "R_ie",
        title="R_ie of each layer: heat over work (grey: work within its error of 0)",
        bar="work  ←  R_ie  →  heat",
        max_fold=WIDE_FOLD,
    )
    if len(history.layer_steps) > 1:
        heat.tick_params(axis="y", labelleft=False)  # the rows are those of the panel beside it
    return finish(figure, title, path)


def stack_parts(ax: Axes, history: HistoryLike) -> None:
    """Stack the parts of the total: production above 0, negative parts below."""
    frame(ax, "Entropy production σ and its parts  [loss units per step]")
    steps = np.asarray(history.steps)
    sigma = gaps(history.total("sigma"))
    line(ax, steps, sigma, color="black", lw=1.8, label="σ", zorder=3)
    low = high = sigma
    parts = {name: gaps(history.total(name)) for name, *_ in _PARTS}
    if len(steps) > 2 * BINS:
        parts = {name: binned(steps, part)[2] for name, part in parts.items()}
        steps, low, _, high = binned(steps, sigma)
    up, down = np.zeros(len(steps)), np.zeros(len(steps))
    for name, color, label in _PARTS:
        part = parts[name]
        if np.isnan(part).all():
            continue  # an optimizer without Adam's moments
        above, below = np.maximum(part, 0), np.minimum(part, 0)
        ax.fill_between(steps, up, up + above, color=color, alpha=0.75, lw=0, label=label)
        ax.fill_between(steps, down, down + below, color=color, alpha=0.75, lw=0)
        up, down = up + np.nan_to_num(above), down + np.nan_to_num(below)
    ax.axhline(0, color="black", lw=0.6)
    # the first readings are cut off where they dwarf the rest of the run
    settled = slice(len(steps) // 20, None)
    if up.max() < 2 * up[settled].max():
        settled = slice(None)
    ax.set_ylim(*_limits(down[settled], up[settled], low[settled], high[settled]))
    legend(ax, ncols=2, loc="upper right")


def _shares(ax: Axes, history: HistoryLike) -> None:
    """Draw one bar per layer: each part's share of the total magnitude over the second half of the run."""
    frame(ax, "Share of each part by layer, second half of the run", grid=False)
    ax.set_xlabel("share of the parts' magnitudes", fontsize=11)
    order, names = by_depth(history.layer_names)
    half = len(history.layer_steps) // 2
    if not names:
        words(ax, "no layer readings")
        return
    sizes = [_mean_size(np.asarray(history.layers(name), dtype=float)[half:, order]) for name, *_ in _PARTS]
    whole = np.sum(sizes, axis=0)
    left = np.zeros(len(names))
    for (_, color, _), size in zip(_PARTS, sizes, strict=True):
        share = np.divide(size, whole, out=np.zeros_like(size), where=whole > 0)
        _bars(ax, left, share, color)
        left += share
    if not (whole > 0).any():
        words(ax, "no split: it needs Adam's moments")
    label_depth(ax, names)
    ax.set_xlim(0, 1)
    ax.set_ylim(len(names), 0)


def _bars(ax: Axes, left: Array, width: Array, color: str) -> None:
    """Draw one bar a row as one collection: of patches, matplotlib draws some hundred a second."""
    from matplotlib.collections import PolyCollection

    low = np.arange(len(left)) + 0.05
    x = np.stack([left, left + width, left + width, left], axis=1)
    y = np.stack([low, low, low + 0.9, low + 0.9], axis=1)
    ax.add_collection(
        PolyCollection(list(np.stack([x, y], axis=2)), facecolors=color, alpha=0.75), autolim=False
    )


def _mean_size(values: Array) -> Array:
    """Return the mean magnitude of the defined values over readings ``[m, n]``; 0 where there are none."""
    known = np.isfinite(values)
    count = known.sum(axis=0)
    total = np.where(known, np.abs(values), 0.0).sum(axis=0)
    return np.divide(total, count, out=np.zeros(values.shape[1]), where=count > 0)


def _limits(*series: Array) -> tuple[float, float]:
    """Return limits that include 0 and every finite value, with room for a legend above."""
    joined = np.concatenate([np.asarray(s, dtype=float) for s in series])
    joined = joined[np.isfinite(joined)]
    low, high = min(0.0, joined.min(initial=0.0)), max(0.0, joined.max(initial=0.0))
    room = (high - low) or 1.0
    return low - 0.05 * room, high + 0.35 * room
