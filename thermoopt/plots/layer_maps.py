"""Heat maps, layer by step: how far each layer is from balance, and since when (extra ``viz``)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from thermoopt.account import HistoryLike
from thermoopt.plots.panels import Array, blank, check_length, finish, frame, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["MAX_FOLD", "WIDE_FOLD", "by_depth", "heat_map", "label_depth", "map_height", "plot_layer_maps"]

MAX_FOLD = 8.0
"""Largest factor away from r = 1 that the colours resolve; beyond it they saturate (the bar has arrows)."""

WIDE_FOLD = 100.0
"""Likewise for R_wd and R_ie, which go from 0 to infinity in healthy runs."""

# More rows than this and an axis names blocks of layers instead of layers.
_MAX_LABELS = 32
# Characters of a label: at 200 of them, panels had no room left at all.
_MAX_LABEL = 40
# Beyond any scale: an infinite balance gets the colour of values off the scale.
_OFF_SCALE = 1e30
# Colours span at least 1/1.5 to 1.5, or the map of a run at balance would show its noise.
_MIN_FOLD = 1.5


def plot_layer_maps(
    history: HistoryLike, *, path: str | Path | None = None, title: str | None = None
) -> Figure:
    """Plot r and the weight-decay balance R_wd of every layer over depth and steps, 1600 pixels wide.

    Colours are logarithmic and centred on 1: equilibrium in one map, a constant norm in the other. Grey means
    undefined: r without Adam's moments, R_wd without decay. An infinite R_wd (decay without a positive
    source) has the colour of values off the scale.

    Args:
        history: an optimizer's ``history``, or anything with the same columns.
        path: where to write the picture; the suffix chooses the format (.png, .pdf, .svg).
        title: a line above the panels.

    Returns:
        The figure, for more drawing.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: the history holds fewer than two readings.
    """
    check_length(history, "a map of layers")
    height = map_height(len(history.layer_names))
    figure = blank(2 * height + (0.5 if title else 0.0))
    r, balance = figure.subplots(2, 1)
    heat_map(
        r,
        history,
        "r",
        title="r of each layer: update energy against thermal equilibrium (grey: undefined)",
        bar="intermittent  ←  r  →  coherent drift",
    )
    heat_map(
        balance,
        history,
        "wd_balance",
        title="R_wd of each layer: weight decay against the growth of the norm (grey: undefined)",
        bar="norm grows  ←  R_wd  →  norm shrinks",
        max_fold=WIDE_FOLD,
    )
    return finish(figure, title, path)


def map_height(layers: int) -> float:
    """Return the height of a map, in hundreds of pixels, at which up to 32 labels are legible."""
    return min(8.0, max(4.0, 1.0 + 0.2 * layers))


def heat_map(
    ax: Axes, history: HistoryLike, name: str, *, title: str, bar: str, max_fold: float = MAX_FOLD
) -> None:
    """Plot one quantity of every layer over depth and steps, coloured by its distance from 1.

    The scale is logarithmic and symmetric about 1, wide enough for 98 % of the values, at most a factor of
    ``max_fold`` to either side. Grey means undefined or negative.

    Args:
        ax: the panel.
        history: the run.
        name: name of a quantity that is a ratio (:data:`thermoopt.physics.QUANTITIES`).
        title: title of the panel.
        bar: label of the colour bar.
        max_fold: factor at which colours saturate.
    """
    from matplotlib.colors import LogNorm, Normalize

    frame(ax, title, grid=False)
    order, names = by_depth(history.layer_names)
    steps = np.asarray(history.layer_steps, dtype=float)
    if len(steps) < 2 or not names:
        words(ax, "no layer readings")
        return
    values = np.asarray(history.layers(name), dtype=float)[:, order].T
    values = np.where(np.isposinf(values), _OFF_SCALE, values)
    shown = np.ma.masked_invalid(np.where(values > 0, values, np.nan))
    # the first readings, before a moment has built up, may be far off; they do not set the scale
    spread = np.abs(np.log(shown[:, max(1, len(steps) // 20) :].compressed()))
    spread = spread[spread < math.log(_OFF_SCALE)]
    fold = min(max_fold, max(_MIN_FOLD, math.exp(float(np.quantile(spread, 0.98))))) if spread.size else 2.0
    norm: Normalize = LogNorm(1 / fold, fold)
    ax.set_facecolor("#BBBBBB")  # undefined
    rows = np.arange(len(names) + 1)
    mesh = ax.pcolormesh(_edges(steps), rows, shown, norm=norm, cmap="RdBu_r", rasterized=True)
    label_depth(ax, names)
    ax.invert_yaxis()
    if not shown.count():
        words(ax, "undefined in every reading")
    colorbar = ax.figure.colorbar(mesh, ax=ax, extend="both", pad=0.01, aspect=22)
    ticks = _ticks(fold)
    colorbar.set_ticks(ticks, labels=[f"{t:.3g}" if t >= 1 else f"{t:.2g}" for t in ticks])
    colorbar.minorticks_off()
    colorbar.ax.tick_params(labelsize=11)
    colorbar.set_label(bar, fontsize=12)


def by_depth(names: Sequence[str]) -> tuple[list[int], list[str]]:
    """Order layers by the model's own order, keeping the layers of a block together.

    Args:
        names: names of the layers.

    Returns:
        Indices into ``names``, and the names in that order.
    """
    first: dict[str, int] = {}
    for i, name in enumerate(names):
        first.setdefault(_block(name), i)
    order = sorted(range(len(names)), key=lambda i: (first[_block(names[i])], i))
    return order, [names[i] for i in order]


def label_depth(ax: Axes, names: Sequence[str]) -> None:
    """Label the rows of a panel with their layers, or with blocks of layers if there are many.

    Args:
        ax: a panel whose row i spans i to i + 1.
        names: of the rows, as :func:`by_depth` orders them.
    """
    blocks = [_block(name) for name in names]
    starts = [i for i in range(len(names)) if i == 0 or blocks[i] != blocks[i - 1]]
    ends = [*starts[1:], len(names)]
    borders = [b for a, b, c in zip(starts, starts[1:], ends[1:], strict=False) if max(b - a, c - b) > 1]
    if borders:
        ax.hlines(borders, 0, 1, colors="black", lw=0.8, transform=ax.get_yaxis_transform())
    if len(names) <= _MAX_LABELS:
        ax.set_yticks(np.arange(len(names)) + 0.5, [_label(name) for name in names])
        ax.tick_params(axis="y", labelsize=10, length=0)
        return
    every = math.ceil(len(starts) / _MAX_LABELS)
    spans = list(zip(starts, ends, strict=True))[::every]
    ax.set_yticks([(a + b) / 2 for a, b in spans], [_label(blocks[a]) for a, _ in spans])
    ax.tick_params(axis="y", labelsize=10, length=0)


def _label(name: str) -> str:
    """Shorten a layer's name to what fits beside a panel: its end, which tells layers apart."""
    name = name.removesuffix(".weight")
    return name if len(name) <= _MAX_LABEL else f"…{name[1 - _MAX_LABEL :]}"


def _block(name: str) -> str:
    """Return the block of a layer: ``blocks.3`` for ``blocks.3.attn.qkv.weight``."""
    found = re.match(r".*?\d+(?=\.|$)", name)
    return found[0] if found else name


def _ticks(fold: float) -> list[float]:
    """Return a few round values between 1/fold and fold."""
    if fold > 2 * MAX_FOLD:
        base: tuple[float, ...] = (1.0, 10.0, 100.0)
    elif fold > 2:
        base = (1.0, 2.0, 4.0, 8.0, 16.0)
    else:
        base = (1.0, 1.5, 2.0)
    up = [b for b in base if b <= fold]
    return [*(1 / b for b in reversed(up[1:])), *up]


def _edges(steps: Array) -> Array:
    middle = (steps[1:] + steps[:-1]) / 2
    return np.concatenate([[1.5 * steps[0] - 0.5 * steps[1]], middle, [1.5 * steps[-1] - 0.5 * steps[-2]]])
