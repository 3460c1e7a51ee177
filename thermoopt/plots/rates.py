"""Panels of a dashboard that show a control loop: rates wanted and held, phi and phi* (extra ``viz``)."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from thermoopt.account import HistoryLike
from thermoopt.physics import Standing
from thermoopt.plots.panels import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    decades,
    frame,
    gaps,
    headroom,
    legend,
    line,
    words,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["equilibrium_panel", "rates_panel"]

MAX_LINES = 4
"""Rates or groups drawn by themselves: more lines cannot be told apart in half a page."""

_COLORS = (BLUE, ORANGE, GREEN, PURPLE)
_STATES = {
    "follows": SKY,
    "on its way": GREEN,
    "bound": RED,
    "lowered": ORANGE,
    "cooling": BLUE,
    "waits": PURPLE,
    "no signal": GREY,
}
_DECADES = 4
"""Decades shown below the largest rate: cooling ends at 0."""

_WIDTH = 80
"""Characters of a line that fit into half a page."""

_STRIP = 0.05
"""Height of the strip of states, as a share of the panel."""


def rates_panel(ax: Axes, standings: Sequence[Standing]) -> None:
    """Draw each rate: wanted as a wide pale line, held on top of it, given (warmed up and cooled) dotted.

    Strips at the lower edge, one per rate, show whether the rate held is the rate wanted, and if not, why.

    Args:
        ax: the panel.
        standings: of a history, at least one.
    """
    frame(ax, "Set-point: rate wanted, rate held, and why they differ")
    rates = list(dict.fromkeys(s.rate for s in standings))
    shown, seen = rates[:MAX_LINES], []
    for i, rate in enumerate(shown):
        own = [s for s in standings if s.rate == rate]
        steps = np.array([s.step for s in own])
        color = _COLORS[i]
        name = "all groups" if rate == "all" else rate
        for values, style, label in (
            ([s.wanted for s in own], {"lw": 6, "alpha": 0.3, "solid_capstyle": "butt"}, "wanted"),
            ([s.held for s in own], {"lw": 2}, "held"),
            ([s.given for s in own], {"lw": 1.2, "ls": ":"}, "given"),
        ):
            y = gaps(np.array(values))
            line(ax, steps, np.where(y > 0, y, np.nan), color=color, label=f"{name}: {label}", **style)
        seen += [s.state for s in own]
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    low = max(low, high / 10**_DECADES)
    height = _STRIP * len(shown)
    ax.set_ylim(low / (high / low) ** (1.5 * height + 0.18), high)
    for i, rate in enumerate(shown):
        _strip(ax, [s for s in standings if s.rate == rate], i * _STRIP)
    _reason(ax, [s for s in standings if s.rate in shown and s.state != "follows"], 1.2 * height)
    headroom(ax, 0.22 + 0.06 * len(shown))
    decades(ax)
    from matplotlib.patches import Patch

    handles, _ = ax.get_legend_handles_labels()
    states = [Patch(color=color, label=state) for state, color in _STATES.items() if state in seen]
    legend(ax, loc="upper left", ncols=3, handles=[*handles, *states], columnspacing=1.2)
    if len(rates) > len(shown):
        ax.set_title(f"{len(shown)} of {len(rates)} rates", loc="right", fontsize=11)


def _strip(ax: Axes, own: Sequence[Standing], bottom: float) -> None:
    """Draw the states of a rate as bars along the lower edge."""
    steps = [s.step for s in own]
    ends = [*steps[1:], steps[-1] + (steps[-1] - steps[-2] if len(steps) > 1 else 1)]
    first = 0
    for i in range(1, len(own) + 1):
        if i == len(own) or own[i].state != own[first].state:
            start, end = steps[first], ends[i - 1]
            ax.axvspan(start, end, bottom, bottom + 0.8 * _STRIP, color=_STATES[own[first].state], lw=0)
            first = i


def _reason(ax: Axes, parted: Sequence[Standing], bottom: float) -> None:
    """Write above the strip why rates wanted and held most often differed."""
    if parted:
        why, n = Counter(s.why for s in parted).most_common(1)[0]
        text = textwrap.fill(f"mostly ({n} of {len(parted)} readings): {why}", _WIDTH, max_lines=2)
        written = ax.text(0.01, bottom, text, transform=ax.transAxes, fontsize=10, va="bottom")
        written.set_in_layout(False)  # a long reason must not squeeze the panels


def equilibrium_panel(ax: Axes, history: HistoryLike) -> None:
    """Draw phi and its value in equilibrium, for each group if there are only a few, else for all together.

    Args:
        ax: the panel.
        history: of the run.
    """
    frame(ax, "Equilibrium: φ = (η/4)‖U‖² and φ* = (η/4) d n₀(t);  r = φ/φ*")
    names = list(history.group_names)
    several = 1 < len(names) <= MAX_LINES
    drawn = missing = False
    for i, name in enumerate(names if several else ["all parameters"]):
        for column, style in (("phi", "-"), ("phi_star", "--")):
            y = gaps(history.group(i, column) if several else history.total(column))
            y = np.where(y > 0, y, np.nan)
            if not np.isfinite(y).any():
                missing = column == "phi_star"
                continue
            drawn = True
            label = f"{name}: {'φ' if column == 'phi' else 'φ*'}"
            line(ax, history.steps, y, style, color=_COLORS[i], lw=2, label=label)
    if not drawn:
        words(ax, "undefined: no measured step moved the weights")
        return
    ax.set_yscale("log")
    headroom(ax, 0.12 + 0.08 * (len(names) if several else 1))
    decades(ax)
    legend(ax, loc="upper right", ncols=2)
    if missing:
        ax.text(0.01, 0.02, "φ* is undefined: it needs Adam's moments", transform=ax.transAxes, fontsize=10)
