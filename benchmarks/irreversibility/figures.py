"""Figures of the irreversibility benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thermoopt.account import running_mean
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
    finish,
    frame,
    legend,
)

__all__ = ["draw_agreement", "draw_paths", "draw_valley"]

Row = dict[str, Any]
COLORS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
LOOKS = {
    "noise": (BLUE, "SGD"),
    "force": (RED, "force -∇φ"),
    "isotropic": (ORANGE, "isotropic"),
    "flow": (GREY, "no noise"),
}
"""Of the dynamics in a valley."""


def draw_agreement(rows: list[Row], path: Path) -> None:
    """Deviation of each measure's gradient from the leading order against ηλ, one panel per field."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    figure = blank(5.0)
    for kind, ax in zip(kinds, np.atleast_1d(figure.subplots(1, len(kinds), sharey=True)), strict=True):
        frame(ax, kind)
        mine = [row for row in rows if row["kind"] == kind]
        scaled = np.array([np.array(row["eta"]) * row["sharpness"] for row in mine]).mean(0)
        for name, color in zip(mine[0]["gradient_error"], COLORS, strict=False):
            errors = np.array([row["gradient_error"][name] for row in mine])
            low, mean, high = errors.min(0), np.exp(np.log(errors + 1e-17).mean(0)), errors.max(0)
            ax.plot(scaled, mean, "o-", ms=4, color=color, label=name)
            ax.fill_between(scaled, low, high, color=color, alpha=0.2, lw=0)
        ax.axvline(2, color=GREY, ls="--", lw=1)
        ax.set(xscale="log", yscale="log", xlabel="ηλ", ylim=(1e-6, 1e2))
        legend(ax)
    finish(
        figure,
        "‖∇φ - ∇(η/4)‖U‖²‖ over ‖∇(η/4)‖U‖²‖; mean and range over seeds; dashed: edge of stability",
        path,
    )


def draw_valley(rows: list[Row], path: Path) -> None:
    """Phi at the bottom of the valley over its start, one panel per experiment; bands are standard errors."""
    rate = max(row["rate"] for row in rows)
    rows = [row for row in rows if row["rate"] == rate]
    panels = list(dict.fromkeys((row["net"], row["noise"]) for row in rows))
    figure = blank(5.2)
    for (net, noise), ax in zip(panels, np.atleast_1d(figure.subplots(1, len(panels))), strict=True):
        frame(ax, f"{net} net, noise of {noise}")
        for row in rows:
            if (row["net"], row["noise"]) == (net, noise):
                color, label = LOOKS[row["dynamics"]]
                phi = np.array(row["phi_bottom"])
                phi = phi / phi[0]
                mean, error = phi.mean(1), phi.std(1, ddof=1) / np.sqrt(phi.shape[1])
                style = "--" if row["dynamics"] == "force" else "-"
                ax.plot(row["step"], mean, style, color=color, lw=2, label=label)
                ax.fill_between(row["step"], mean - error, mean + error, color=color, alpha=0.2, lw=0)
        legend(ax)
    finish(figure, "φ at equal loss over φ at the start; mean and standard error of 3 seeds", path)


def draw_paths(stored: dict[tuple[str, str], NDArray[np.float64]], path: Path) -> None:
    """‖U‖²/4 along the run, one panel per model; bands are standard deviations over seeds."""
    models = list(dict.fromkeys(model for model, _ in stored))
    figure = blank(5.6)
    for model, ax in zip(models, np.atleast_1d(figure.subplots(1, len(models))), strict=True):
        frame(ax, model)
        mine = {schedule: paths for (m, schedule), paths in stored.items() if m == model}
        for (schedule, paths), color in zip(mine.items(), COLORS, strict=False):
            energy = np.stack([running_mean(one, 20) for one in paths[:, :, 0]])
            steps = running_mean(np.arange(1.0, paths.shape[1] + 1), 20)
            mean, sd = energy.mean(0), energy.std(0, ddof=int(len(paths) > 1))
            ax.plot(steps, mean, color=color, lw=1.4, label=schedule)
            ax.fill_between(
                steps, np.maximum(mean - sd, 0.02 * mean), mean + sd, color=color, alpha=0.15, lw=0
            )
        ax.set_yscale("log")
        decades(ax)
        legend(ax, ncols=2)
    finish(figure, "update energy φ/η = ‖U‖²/4 along the run, averaged over 20 steps", path)
