"""A comparison of runs in one picture (extra ``viz``): losses, learning rates, equilibrium, actions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from thermoopt.account import HistoryLike, running_mean
from thermoopt.controllers import Action
from thermoopt.plots.dashboard import LossCurve
from thermoopt.plots.panels import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    Array,
    blank,
    decades,
    frame,
    gaps,
    headroom,
    layer_band,
    legend,
    line,
    words,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ComparedRun", "GroupHistoryLike", "plot_comparison"]

_DECADES = 3.5
"""Decades of learning rate shown below the largest: a cosine over 1000 steps, averaged over 25, spans 3."""

_SAME = 1.01
"""Ratio up to which layers' rates count as equal: rounding, whereas layer factors are 1.09 apart."""


class _Style(NamedTuple):
    color: str
    line: Any
    marker: str


# line style and marker distinguish the runs where colour does not
_STYLES = (
    _Style(ORANGE, "--", "s"),
    _Style(PURPLE, "-.", "^"),
    _Style(BLUE, "-", "o"),
    _Style(GREEN, ":", "D"),
    _Style(RED, (0, (5, 1)), "v"),
    _Style(SKY, (0, (3, 1, 1, 1)), "P"),
    _Style(GREY, (0, (1, 1)), "X"),
    _Style("black", (0, (8, 2)), "*"),
)
_GROUP_LINES = ("-", "--", ":", "-.")


class GroupHistoryLike(HistoryLike, Protocol):
    """The history that a comparison reads, including the columns of single groups."""

    def group(self, index: int, name: str) -> NDArray[Any]:
        """One quantity of one group, ``[n]``."""


@dataclass(frozen=True)
class ComparedRun:
    """One of the runs to compare.

    Attributes:
        name: a short name for legends.
        history: an optimizer's ``history``.
        losses: losses of the run.
        actions: a controller's ``log``, oldest first.
        groups: names of the parameter groups, in the order of the history.
    """

    name: str
    history: GroupHistoryLike
    losses: LossCurve
    actions: Sequence[Action] = ()
    groups: Sequence[str] = ()


def plot_comparison(
    runs: Sequence[ComparedRun], *, path: str | Path | None = None, title: str | None = None
) -> Figure:
    """Plot runs in comparison: four panels, 1600 x 1150 pixels.

    The panels are the losses; the effective learning rates of every group, with the middle 80 % of the layers
    if layers have different rates; ``r`` of all parameters and its equilibrium 1; and the actions on the
    learning rate as markers, above the ``r`` and the set-point that they were based on. Actions on weight
    decay are marks at the lower edge. Undefined values are gaps. No display is needed.

    Args:
        runs: 1 to 8 runs; of up to 4, the last is emphasised.
        path: file to write; the suffix chooses the format (.png, .pdf, .svg).
        title: a line above the panels.

    Returns:
        The figure, for further drawing.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: for no runs, more than 8, or a history of fewer than two readings.
    """
    if not 1 <= len(runs) <= len(_STYLES):
        raise ValueError(f"runs must hold 1 to {len(_STYLES)} runs, got {len(runs)}")
    for run in runs:
        if len(run.history.steps) < 2:
            raise ValueError(
                f"a comparison needs histories of at least 2 readings, got {len(run.history.steps)} in "
                f"{run.name!r}; train for more steps"
            )
    figure = blank(11.5)
    grid = figure.add_gridspec(2, 2)
    styles = _STYLES[: len(runs)] if len(runs) >= 3 else _STYLES[3 - len(runs) : 3]  # the last one is blue
    drawn = list(zip(runs, styles, strict=True))
    _losses(figure.add_subplot(grid[0, 0]), drawn)
    _rates(figure.add_subplot(grid[0, 1]), drawn)
    _equilibrium(figure.add_subplot(grid[1, 0]), drawn)
    parts = grid[1, 1].subgridspec(2, 1, height_ratios=[3, 2])
    target = figure.add_subplot(parts[0])
    _actions(target, figure.add_subplot(parts[1], sharex=target), drawn)
    if title is not None:
        figure.suptitle(title, fontsize=15, fontweight="bold")
    if path is not None:
        figure.savefig(path)
    return figure


_Drawn = Sequence[tuple[ComparedRun, _Style]]


def _losses(ax: Axes, drawn: _Drawn) -> None:
    unit = drawn[0][0].losses.unit
    validated = any(run.losses.valid for run, _ in drawn)
    what = "validation (marked), training (thin)" if validated else "training"
    frame(ax, f"Loss{f'  [{unit}]' if unit else ''}: {what}")
    if not any(run.losses.valid or run.losses.train for run, _ in drawn):
        words(ax, "no losses recorded")
        return
    settled: list[float] = []
    for run, style in drawn:
        losses = run.losses
        train, x = np.asarray(losses.train, dtype=float), np.asarray(losses.train_steps, dtype=float)
        if len(train):
            width = max(1, len(train) // 50)
            label = None if validated else f"{run.name}: {train[-width:].mean():.3f}"
            line(
                ax,
                running_mean(x, width),
                running_mean(train, width),
                color=style.color,
                lw=1,
                alpha=0.6,
                label=label,
            )
            # the steep first steps may be cut off so that the rest stays readable
            settled += losses.train[len(train) // 20 :]
        if not validated:
            continue
        last = f": {losses.valid[-1]:.3f}" if losses.valid else ""
        ax.plot(
            losses.valid_steps,
            losses.valid,
            color=style.color,
            ls=style.line,
            marker=style.marker,
            ms=5,
            lw=1.8,
            label=f"{run.name}{last}",
        )
        settled += losses.valid
    top = max((y for y in settled if math.isfinite(y)), default=0.0)
    low, high = ax.get_ylim()
    if top > low:
        ax.set_ylim(low, min(high, low + 1.05 * (top - low)))
    title = "final validation" if validated else "last fiftieth"
    legend(ax, loc="upper right", title=title, title_fontsize=11)


def _rates(ax: Axes, drawn: _Drawn) -> None:
    frame(ax, "Effective learning rate")
    top = 0.0
    for run, style in drawn:
        layers = gaps(run.history.layers("lr_eff"))
        layers = np.where(layers > 0, layers, np.nan)
        if _differ(layers):
            layer_band(ax, run.history.layer_steps, layers, style.color)
        count = max(1, len(run.groups))
        for index in range(count):
            values = gaps(run.history.group(index, "lr_eff") if run.groups else run.history.total("lr_eff"))
            values = np.where(values > 0, values, np.nan)
            top = max(top, float(np.nan_to_num(values).max()))
            label = f"{run.name}, {run.groups[index]}" if count > 1 else run.name
            dashes = _GROUP_LINES[index % len(_GROUP_LINES)] if count > 1 else style.line
            line(ax, run.history.steps, values, color=style.color, ls=dashes, lw=2, label=label)
    if top > 0:
        ax.set_yscale("log")
        low, high = ax.get_ylim()
        ax.set_ylim(max(low, top * 10**-_DECADES), high)
        headroom(ax, 0.22)
        decades(ax)
    legend(ax, loc="upper right", ncols=2)


def _equilibrium(ax: Axes, drawn: _Drawn) -> None:
    frame(ax, "r of all parameters: update energy against thermal equilibrium")
    any_drawn = False
    for run, style in drawn:
        r = gaps(run.history.total("r"))
        r = np.where(r > 0, r, np.nan)
        any_drawn = any_drawn or bool(np.isfinite(r).any())
        line(ax, run.history.steps, r, color=style.color, ls=style.line, lw=2, label=run.name)
    ax.axhline(1, color="black", ls="--", lw=1.2, label="1: equilibrium; above: drift")
    if any_drawn:
        ax.set_yscale("log")
        headroom(ax, 0.22)
        decades(ax)
    legend(ax, loc="upper right", ncols=2)


def _actions(target: Axes, evidence: Axes, drawn: _Drawn) -> None:
    """Plot the target learning rates, and below them the evidence for them."""
    frame(target, "Actions: target rate")
    frame(evidence, "")
    target.set_xlabel("")
    target.tick_params(labelbottom=False)
    evidence.set_ylabel("evidence: r", fontsize=11)
    target.set_xlim(0, max(int(run.history.steps[-1]) for run, _ in drawn) * 1.01)
    moved = False
    for run, style in drawn:
        end = int(run.history.steps[-1])
        rates = [a for a in run.actions if a.kind == "lr"]
        for index, group in enumerate(dict.fromkeys(a.group for a in rates)):
            own = [a for a in rates if a.group == group]
            _targets(target, own, end, style, _GROUP_LINES[index % len(_GROUP_LINES)], run.name)
            _decided_on(evidence, own, style)
            moved = True
        decays = [a.step for a in run.actions if a.kind == "wd"]
        if decays:
            target.plot(
                decays,
                [0.04] * len(decays),
                ls="",
                marker="v",
                ms=8,
                color=RED,
                transform=target.get_xaxis_transform(),
                label=f"weight decay moved: {len(decays)}",
            )
    if moved:
        target.set_yscale("log")
        headroom(target, 0.35)
        decades(target)
        headroom(evidence, 0.4)
        legend(evidence, loc="upper right", ncols=2)
    else:
        for panel, text in ((target, "no action on the rate"), (evidence, "no evidence")):
            panel.set_yticks([])
            words(panel, text)
    if target.get_legend_handles_labels()[1]:
        legend(target, loc="upper left", ncols=2)


def _targets(ax: Axes, actions: Sequence[Action], end: int, style: _Style, line: str, name: str) -> None:
    # before the first action the rate had that action's old value
    x = [0, *(a.step for a in actions), end]
    y = [actions[0].old, *(a.new for a in actions), actions[-1].new]
    group = "" if actions[0].group == "all" else f", {actions[0].group}"
    ax.plot(x, y, color=style.color, ls=line, lw=1.5, drawstyle="steps-post")
    ax.plot(
        x[1:-1],
        y[1:-1],
        ls="",
        marker=style.marker,
        ms=5,
        color=style.color,
        label=f"{name}{group}: {len(actions)} actions",
    )


def _decided_on(ax: Axes, actions: Sequence[Action], style: _Style) -> None:
    known = [(a.step, a.evidence) for a in actions if "r" in a.evidence]
    labels = ax.get_legend_handles_labels()[1]
    if known:
        values: Array = np.array([e["r"] for _, e in known], dtype=float)
        errors = np.where(np.isfinite(values[:, 1]), values[:, 1], 0.0)
        ax.errorbar(
            [step for step, _ in known],
            values[:, 0],
            errors,
            fmt=style.marker,
            ms=5,
            color=style.color,
            label=None if "r" in labels else "r",
        )
    goals = [(step, e["r_setpoint"][0]) for step, e in known if "r_setpoint" in e]
    if goals:
        ax.plot(
            *zip(*goals, strict=True),
            color="black",
            ls="--",
            lw=1.2,
            marker="_",
            label=None if "set-point r*" in labels else "set-point r*",
        )


def _differ(layers: Array) -> bool:
    """Whether layers ``[m, n_layers]`` have different rates at any time."""
    for row in layers:
        row = row[np.isfinite(row)]
        if row.size and row.max() > _SAME * row.min():
            return True
    return False
