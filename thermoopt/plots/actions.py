"""Actions of controllers: scales over steps, with a mark and a reason for every change (extra ``viz``)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thermoopt.account import HistoryLike
from thermoopt.controllers import Action
from thermoopt.plots.panels import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    blank,
    decades,
    finish,
    frame,
    gaps,
    headroom,
    legend,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["as_action", "caption", "plot_actions"]

MAX_CAPTIONS = 12
"""Most actions described in words below the panels: nobody would read more."""

_COLORS = (BLUE, ORANGE, GREEN, PURPLE, RED, SKY)
_LINES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_KINDS = {"lr": "Learning-rate scale", "wd": "Weight-decay scale"}


def plot_actions(
    actions: Sequence[Action | Mapping[str, Any]],
    history: HistoryLike | None = None,
    *,
    path: str | Path | None = None,
    title: str | None = None,
) -> Figure:
    """Plot the target scales of controllers, one line per group and one mark per action, 1600 pixels wide.

    There is one panel for each kind of scale that changed and, with a history, one for the resulting
    effective rates (mean over all parameters), including schedule, slew limits and layer factors. Below are
    the reasons of at most twelve actions, the largest ones.

    Args:
        actions: a controller's ``log``, or its actions as ``Action.to_dict`` gives them.
        history: history of the run; None leaves the effective rates out.
        path: file to write; the suffix chooses the format (.png, .pdf, .svg).
        title: a line above the panels.

    Returns:
        The figure, for further drawing.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if there are no actions, or one is not such a mapping.
    """
    moves = sorted((as_action(a) for a in actions), key=lambda a: a.step)
    if not moves:
        raise ValueError("actions must be a controller's log with at least one action, got none")
    told = _told(moves)
    kinds = [*dict.fromkeys(a.kind for a in moves)]
    rates = history if history is not None and len(history.steps) > 1 else None
    count = len(kinds) + (rates is not None)
    heights = [*([3.4] * count), 0.5 + 0.3 * len(told)]
    figure = blank(sum(heights))
    *panels, text = figure.subplots(len(heights), 1, height_ratios=heights)
    end = max([moves[-1].step, *(rates.steps[-1:] if rates is not None else ())])
    for ax, kind in zip(panels, kinds, strict=False):
        frame(ax, f"{_KINDS.get(kind, kind)}: targets of the controllers")
        _scales(ax, [a for a in moves if a.kind == kind], end, told)
        ax.set_xlim(0, end * 1.01)
    if rates is not None:
        _effective(panels[-1], rates, moves)
        panels[-1].set_xlim(0, end * 1.01)
    _reasons(text, told, len(moves))
    return finish(figure, title, path)


def as_action(saved: Action | Mapping[str, Any]) -> Action:
    """Return an action from its JSON form, in which null stands for an unknown error, NaN.

    Raises:
        ValueError: if the mapping is not an action.
    """
    if isinstance(saved, Action):
        return saved
    try:
        evidence = {
            name: tuple(math.nan if x is None else float(x) for x in pair)
            for name, pair in saved["evidence"].items()
        }
        return Action.from_dict({**saved, "evidence": evidence})
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"actions must be a controller's actions, or dicts as Action.to_dict gives, got {saved!r}"
        ) from error


def caption(action: Action) -> str:
    """Describe in one line what a controller did and on what evidence."""
    what = {"lr": "rate", "wd": "decay"}.get(action.kind, action.kind)
    known = ", ".join(
        f"{name} {value:.3g}" + (f" ± {error:.2g}" if error > 0 else "")
        for name, (value, error) in action.evidence.items()
    )
    return (
        f"step {action.step}  {action.controller}: {what} of {action.group} {action.old:.3g} → "
        f"{action.new:.3g}, {action.reason}" + (f"  ({known})" if known else "")
    )


def _told(moves: Sequence[Action]) -> list[Action]:
    """Return the actions to describe in words: the largest, in the order of the run."""
    sized = sorted(range(len(moves)), key=lambda i: -_size(moves[i]))
    return [moves[i] for i in sorted(sized[:MAX_CAPTIONS])]


def _size(action: Action) -> float:
    if action.old > 0 and action.new > 0:
        return abs(math.log(action.new / action.old))
    return 0.0 if action.old == action.new else math.inf


def _scales(ax: Axes, moves: Sequence[Action], end: int, told: Sequence[Action]) -> None:
    for i, group in enumerate(dict.fromkeys(a.group for a in moves)):
        own = [a for a in moves if a.group == group]
        color, marker = _COLORS[i % len(_COLORS)], _MARKERS[i % len(_MARKERS)]
        # before the first action the scale had that action's old value
        x = [0, *(a.step for a in own), end]
        y = [own[0].old, *(a.new for a in own), own[-1].new]
        line = _LINES[i % len(_LINES)]
        ax.plot(x, y, color=color, ls=line, lw=1.6, drawstyle="steps-post")
        name = "all groups" if group == "all" else group
        label = f"{name}: {len(own)} action{'s' if len(own) > 1 else ''}"
        ax.plot(x[1:-1], y[1:-1], ls="", marker=marker, ms=6, color=color, label=label)
        for a in own:
            if a in told:
                number = str(told.index(a) + 1)
                ax.annotate(
                    number,
                    (a.step, a.new),
                    (6, 5),
                    textcoords="offset points",
                    fontsize=11,
                    bbox={"pad": 0.5, "fc": "white", "ec": "none", "alpha": 0.8},
                )
    if min(min(a.old, a.new) for a in moves) > 0:
        ax.set_yscale("log")
        headroom(ax, 0.3)
        decades(ax)
    else:
        headroom(ax, 0.3)
    legend(ax, loc="upper left", ncols=4)


def _effective(ax: Axes, history: HistoryLike, moves: Sequence[Action]) -> None:
    frame(ax, "Effective rates of the parameters")
    for name, color, style, label in (
        ("lr_eff", BLUE, "-", "learning rate"),
        ("wd_eff", ORANGE, "--", "weight decay"),
    ):
        y = gaps(history.total(name))
        if (y > 0).any():
            y[~(y > 0)] = math.nan
            ax.plot(history.steps, y, style, color=color, lw=2, label=label)
            ax.set_yscale("log")
    for step in sorted({a.step for a in moves}):
        ax.axvline(step, color=GREY, lw=0.6, alpha=0.5)
    if ax.get_legend_handles_labels()[1]:
        headroom(ax, 0.2)
        decades(ax)
        legend(ax, loc="upper left", ncols=2)


def _reasons(ax: Axes, told: Sequence[Action], count: int) -> None:
    ax.set_axis_off()
    which = "all of them" if len(told) == count else f"the {len(told)} largest of {count}"
    ax.set_title(f"Why: {which}", loc="left", fontsize=13, fontweight="bold")
    lines = [f"{i:>2}   {caption(action)}" for i, action in enumerate(told, 1)]
    text = ax.text(0, 1, "\n".join(lines), va="top", fontsize=11, linespacing=1.5, transform=ax.transAxes)
    text.set_in_layout(False)  # a long name in a reason must not squeeze the panels
