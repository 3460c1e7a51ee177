"""The dashboard of a run (extra ``viz``): training on one page."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from thermoopt.account import HistoryLike, running_mean
from thermoopt.physics import GAUSSIAN
from thermoopt.plots.actions import plot_actions
from thermoopt.plots.entropy_split import plot_entropy_split, stack_parts
from thermoopt.plots.layer_maps import heat_map, plot_layer_maps
from thermoopt.plots.panels import (
    BLUE,
    GREY,
    ORANGE,
    RED,
    blank,
    check_length,
    decades,
    finish,
    frame,
    gaps,
    headroom,
    layer_band,
    legend,
    line,
    words,
)
from thermoopt.plots.rates import equilibrium_panel, rates_panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["LossCurve", "plot_actions", "plot_dashboard", "plot_entropy_split", "plot_layer_maps"]


# Fraction of a small panel that a two-line legend takes.
_LEGEND = 0.28


@dataclass
class LossCurve:
    """Losses of a run, and a loss to compare them with.

    Attributes:
        train_steps, train: steps and losses of the training batches.
        valid_steps, valid: steps and losses on validation data.
        unigram: entropy of the data without context, drawn as a line; None for no line.
        unit: unit of the losses; empty if unknown.
    """

    train_steps: list[int] = field(default_factory=list)
    train: list[float] = field(default_factory=list)
    valid_steps: list[int] = field(default_factory=list)
    valid: list[float] = field(default_factory=list)
    unigram: float | None = None
    unit: str = "nats/byte"


def plot_dashboard(
    history: HistoryLike,
    losses: LossCurve | None = None,
    *,
    path: str | Path | None = None,
    title: str | None = None,
) -> Figure:
    """Plot the thermodynamics of a run: six panels, 1600 x 1240 pixels; eight with a controller, 1600 x 1600.

    The panels are the loss, entropy production and its parts, ``r`` of every layer over depth and steps, the
    balance of weight decay, gaussianity, and the sizes of the steps. With a controller there are two more:
    the rates that it wanted and held, with the reason if they differ, and phi against its value in
    equilibrium, which judges the rates independently of the law. Undefined values are gaps. Matplotlib's
    global state is not touched, and no display is needed.

    Args:
        history: an optimizer's ``history``, or anything with the same columns.
        losses: plotted in the first panel; without them that panel says so.
        path: file to write; the suffix chooses the format (.png, .pdf, .svg).
        title: a line above the panels.

    Returns:
        The figure, for further drawing.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: for a history of fewer than two readings.
    """
    check_length(history, "a dashboard")
    standings = history.standings
    heights = [1.0, 1.45, 0.95, *([1.05] if standings else [])]
    figure = blank(16 if standings else 12.4)
    grid = figure.add_gridspec(len(heights), 6, height_ratios=heights)
    _loss(figure.add_subplot(grid[0, :3]), losses)
    stack_parts(figure.add_subplot(grid[0, 3:]), history)
    heat = figure.add_subplot(grid[1, :])
    heat_map(
        heat,
        history,
        "r",
        title="r of each layer: update energy against thermal equilibrium",
        bar="intermittent  ←  r  →  coherent drift",
    )
    heat.tick_params(axis="y", labelsize=9)  # rows are lower here than in a separate map
    _balance(figure.add_subplot(grid[2, :2]), history)
    _gaussianity(figure.add_subplot(grid[2, 2:4]), history)
    _pace(figure.add_subplot(grid[2, 4:]), history)
    if standings:
        rates_panel(figure.add_subplot(grid[3, :3]), standings)
        equilibrium_panel(figure.add_subplot(grid[3, 3:]), history)
    return finish(figure, title, path)


def _loss(ax: Axes, losses: LossCurve | None) -> None:
    if losses is None or not (losses.train or losses.valid):
        frame(ax, "Loss")
        _empty(ax, "no losses given")
        return
    frame(ax, f"Loss  [{losses.unit}]" if losses.unit else "Loss")
    if losses.train:
        train = np.asarray(losses.train, dtype=float)
        line(ax, np.asarray(losses.train_steps), train, color=BLUE, alpha=0.25, lw=0.8)
        width = max(1, len(train) // 50)
        x = np.asarray(losses.train_steps, dtype=float)
        label = f"training (mean of {width})" if width > 1 else "training"
        line(ax, running_mean(x, width), running_mean(train, width), color=BLUE, lw=2, label=label)
    if losses.valid:
        ax.plot(losses.valid_steps, losses.valid, "o-", color=RED, ms=4, lw=1.5, label="validation")
        last = losses.valid[-1]
        ax.annotate(
            f"{last:.3f}",
            (losses.valid_steps[-1], last),
            (-4, 12),
            textcoords="offset points",
            ha="right",
            color=RED,
            fontweight="bold",
            bbox={"pad": 1, "fc": "white", "ec": "none", "alpha": 0.8},
        )
    if losses.unigram is not None:
        label = f"no context (unigram entropy {losses.unigram:.2f})"
        ax.axhline(losses.unigram, color=GREY, ls="--", lw=1.2, label=label)
    # the first steps fall from ln 256; they may be cut off so that the rest stays readable
    settled = [*losses.train[len(losses.train) // 20 :], *losses.valid, losses.unigram or 0.0]
    top = max((y for y in settled if math.isfinite(y)), default=0.0)
    low, high = ax.get_ylim()
    if top > low:
        ax.set_ylim(low, min(high, low + 1.15 * (top - low)))
    legend(ax)


def _balance(ax: Axes, history: HistoryLike) -> None:
    frame(ax, "Decay balance R_wd (> 1: norm shrinks)")
    layers = gaps(history.layers("wd_balance"))
    total = gaps(history.total("wd_balance"))
    # 0 means no decay; a negative balance, in old records, that the gradient itself shrinks the weights
    layers, total = np.where(layers > 0, layers, np.nan), np.where(total > 0, total, np.nan)
    if np.isnan(total).all() and np.isnan(layers).all():
        _empty(ax, "undefined: no weight decay")
        return
    layer_band(ax, history.layer_steps, layers)
    line(ax, history.steps, total, color=BLUE, lw=2, label="all parameters")
    ax.axhline(1, color="black", ls="--", lw=1.2, label="1: norm stays")
    ax.set_yscale("log")
    headroom(ax, _LEGEND)
    decades(ax)
    legend(ax, loc="upper right", ncols=2)


def _gaussianity(ax: Axes, history: HistoryLike) -> None:
    frame(ax, "Gaussianity of gradients  N1/d")
    layers, total = gaps(history.layers("gaussianity")), gaps(history.total("gaussianity"))
    if np.isnan(total).all() and np.isnan(layers).all():
        _empty(ax, "undefined: it needs Adam's moments")
        return
    layer_band(ax, history.layer_steps, layers)
    line(ax, history.steps, total, color=BLUE, lw=2, label="all parameters")
    ax.axhline(GAUSSIAN, color="black", ls="--", lw=1.2, label=f"{GAUSSIAN:.3f}: Gaussian")
    ax.set_ylim(bottom=0)
    headroom(ax, _LEGEND)
    legend(ax, loc="upper right", ncols=2)


def _pace(ax: Axes, history: HistoryLike) -> None:
    frame(ax, "Size of a step")
    steps = history.steps
    for name, color, style, label in (
        ("lr_eff", ORANGE, "--", "learning rate"),
        ("angular_step", BLUE, "-", "angular step η‖U‖/‖θ‖"),
    ):
        y = gaps(history.total(name))
        line(ax, steps, np.where(y > 0, y, np.nan), style, color=color, lw=2, label=label)
    ax.set_yscale("log")
    headroom(ax, _LEGEND)
    decades(ax)
    legend(ax, loc="upper right")


def _empty(ax: Axes, why: str) -> None:
    words(ax, why)
    ax.set(xticks=[], yticks=[], xlabel="")
