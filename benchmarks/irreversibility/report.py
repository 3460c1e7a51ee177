"""Tables of the irreversibility benchmark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from thermoopt.benchmarks.irreversibility.agreement import KINDS, SYMMETRIES
from thermoopt.benchmarks.irreversibility.figures import draw_agreement, draw_paths, draw_valley
from thermoopt.benchmarks.irreversibility.models import ABOUT, BUILD, LR
from thermoopt.benchmarks.irreversibility.paths import SCHEDULES
from thermoopt.benchmarks.irreversibility.paths import Path as Run
from thermoopt.benchmarks.irreversibility.valley import DYNAMICS

__all__ = ["write_report"]

Row = dict[str, Any]

MEASURES = ("DE", "TR", "TA", "ST")

PARTED = 0.1
"""Deviation of the gradient from which a measure has parted, as in :mod:`thermoopt.irreversibility`."""


def write_report(out: Path, rows: list[Row]) -> None:
    """Write ``report.md``, its figures and ``means.npz`` from the rows and the stored paths."""
    parts = {
        part: [r for r in rows if r["part"] == part]
        for part in ("agreement", "symmetries", "valley", "paths")
    }
    words = out / "words.md"
    text = [
        "# Irreversibility of training, measured",
        f"torch {torch.__version__}, one thread. Spreads are standard deviations over seeds unless "
        "stated otherwise. `make bench-irreversibility` makes this page.",
        *([words.read_text().strip()] if words.exists() else []),
    ]
    if parts["agreement"]:
        draw_agreement(parts["agreement"], out / "agreement.png")
        text += [*_agreement(parts["agreement"]), "![](agreement.png)"]
    if parts["symmetries"]:
        text += _symmetries(parts["symmetries"])
    if parts["valley"]:
        draw_valley(parts["valley"], out / "valley.png")
        text += [*_valley(parts["valley"]), "![](valley.png)"]
    if parts["paths"]:
        stored = _stored(out, parts["paths"])
        if stored:
            means: dict[str, Any] = dict(_means(stored))
            np.savez_compressed(out / "means.npz", **means)
            draw_paths(stored, out / "paths.png")
        text += [*_paths(parts["paths"], stored), "![](paths.png)"]
    (out / "report.md").write_text("\n\n".join(text) + "\n")


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Markdown; the first column is words."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *lines))


def spread(values: Iterable[float], form: str | None = None) -> str:
    """Mean ± standard deviation of the finite values."""
    known = np.array([v for v in values if v is not None and math.isfinite(v)])
    if not known.size:
        return "–"
    mean, sd = known.mean(), known.std(ddof=1) if known.size > 1 else None
    if form is None:
        form = ",.0f" if abs(mean) >= 100 else ".3g"
    return f"{mean:{form}}" + ("" if sd is None else f" ± {sd:,.0f}" if sd >= 10 else f" ± {sd:.1g}")


def _agreement(rows: list[Row]) -> list[str]:
    lines = []
    for kind in (k for k in KINDS if any(r["kind"] == k for r in rows)):
        mine = [r for r in rows if r["kind"] == kind]
        for name in MEASURES:
            exact = all(max(map(abs, r["value_error"][name])) < 1e-9 for r in mine)
            lines.append([
                f"{kind}: {name}",
                spread((r["slope"][name] for r in mine), ".4f"),
                "exact" if exact else spread((r["error_slope"][name] for r in mine), ".3f"),
                "exact" if exact else spread((r["gradient_slope"][name] for r in mine), ".3f"),
                spread((np.median(_small(r, name)) for r in mine), ".1e"),
                "nowhere" if exact else spread((_parts(r, name) for r in mine), ".2g"),
            ])  # fmt: skip
    apart = max(r["asymmetry"] for r in rows)
    return [
        "## Four measures against (η/4)‖U‖²",
        "Slopes are fitted where ηλ ≤ 0.1, λ being the largest eigenvalue of the Jacobian. A measure *parts* "
        "from (η/4)‖U‖² where its gradient deviates by a tenth (interpolated; the edge of stability is at "
        f"ηλ = 2). The largest asymmetry of a Jacobian in its metric is {apart:.0e}. A comparison of 8 step "
        f"sizes takes {np.mean([r['evaluations'] for r in rows]):,.0f} gradients.",
        table(
            ["field, measure", "slope", "slope of the value's deviation", "slope of the gradient's deviation",
             "gradient's deviation at ηλ = 0.001", "parts at ηλ"],
            lines,
        ),
    ]  # fmt: skip


def _small(row: Row, name: str) -> float:
    return row["gradient_error"][name][0]


def _parts(row: Row, name: str) -> float:
    """Where the gradient's deviation crosses a tenth, by interpolation of logarithms, else NaN."""
    eta, error = np.log(np.array(row["eta"]) * row["sharpness"]), np.log(row["gradient_error"][name])
    beyond = np.flatnonzero(error > math.log(PARTED))
    if not beyond.size or beyond[0] == 0:
        return math.nan
    i = beyond[0]
    return float(np.exp(np.interp(math.log(PARTED), error[i - 1 : i + 1], eta[i - 1 : i + 1])))


def _symmetries(rows: list[Row]) -> list[str]:
    lines = [[name, *(f"{r['found'][name]:.2g}" for r in rows)] for name in SYMMETRIES]
    return ["## Theorems 6 and 7", table(["", *(f"seed {r['seed']}" for r in rows)], lines)]


# ------------------------------------------------------------------ valley


def decline(row: Row, points: int = 20) -> NDArray[np.float64]:
    """Rate at which ln phi of the bottom falls over the first half of a walk, per 1000 steps, ``[seeds]``."""
    steps, phi = np.array(row["step"][: points + 1]) / 1000, np.array(row["phi_bottom"])[: points + 1]
    return -np.polyfit(steps, np.log(phi), 1)[0]


def _valley(rows: list[Row]) -> list[str]:
    lines = []
    for net, noise, step in dict.fromkeys((r["net"], r["noise"], r["rate"]) for r in rows):
        mine = {r["dynamics"]: r for r in rows if (r["net"], r["noise"], r["rate"]) == (net, noise, step)}
        for dynamics in (d for d in DYNAMICS if d in mine):
            row = mine[dynamics]
            phi, loss = np.array(row["phi_bottom"]), np.array(row["loss_bottom"])
            balance = np.array(row["balance"])
            rate = decline(row)
            against: Any = rate / decline(mine["force"]) if "force" in mine and dynamics == "noise" else []
            lines.append([
                f"{net}, {noise}, η {step:g}: {dynamics}",
                spread(phi[-1] / phi[0]),
                spread(loss[-1] - loss[0], ".1e"),
                f"{loss[0].mean():.2g}",
                spread(balance[-1] / balance[0]),
                spread(rate),
                spread(against) if len(against) else "",
            ])  # fmt: skip
    return [
        "## Along a valley of equal loss",
        "Two-layer nets at the bottom of the valley of rescalings, started at c = 2. φ = (η/4) E‖g‖² is "
        "taken at the bottom below each point (after 400 steps of full-batch descent), so losses are equal. "
        "`noise` is SGD, `force` is descent on E + φ, `isotropic` has noise of the same energy in every "
        "direction, and `flow` is descent without noise. The *rate of decline* is that of ln φ per 1000 "
        "steps, over the first half.",
        table(
            ["net, noise, η: dynamics", "φ, end/start", "change of loss", "loss", "‖W₁‖²-‖W₂‖², end/start",
             "rate of decline", "relative to the force's"],
            lines,
        ),
    ]  # fmt: skip


# ------------------------------------------------------------------ paths

Stored = dict[tuple[str, str], NDArray[np.float64]]


def _stored(out: Path, rows: list[Row]) -> Stored:
    """Paths ``[seeds, steps, columns]`` by model and schedule."""
    found: Stored = {}
    for model in BUILD:
        for schedule in SCHEDULES:
            mine = [r for r in rows if (r["model"], r["schedule"]) == (model, schedule)]
            steps = max((r["steps"] for r in mine), default=0)
            files = [
                out / "paths" / f"{Run(model, schedule, r['seed'], r['steps']).name}.npy"
                for r in mine
                if r["steps"] == steps
            ]
            arrays = [np.load(file).astype(float) for file in files if file.exists()]
            if arrays:
                found[model, schedule] = np.stack(arrays)
    return found


def _means(stored: Stored, width: int = 20) -> dict[str, NDArray[np.float32]]:
    """Mean and standard deviation over seeds of energies averaged over 20 steps, ``[2, steps/20]`` each."""
    out = {}
    for (model, schedule), paths in stored.items():
        n = paths.shape[1] // width * width
        energy = paths[:, :n, 0].reshape(len(paths), -1, width).mean(axis=2)
        name = f"{model}_{schedule.replace('/', '')}"
        out[name] = np.stack([energy.mean(0), energy.std(0, ddof=len(paths) > 1)]).astype(np.float32)
    return out


def _paths(rows: list[Row], stored: Stored) -> list[str]:
    lines = []
    for model in (m for m in BUILD if any(r["model"] == m for r in rows)):
        for schedule in SCHEDULES:
            mine = [r for r in rows if (r["model"], r["schedule"]) == (model, schedule)]
            paths = stored.get((model, schedule), np.zeros((0, 0, 0)))
            if mine:
                tenths = np.array([r["tenths"] for r in mine])
                lines.append([
                    f"{model}: {schedule}",
                    *(spread(tenths[:, i]) for i in (0, 2, 4, 7, 9)),
                    spread(np.nanmean(paths[:, -paths.shape[1] // 10 :, 1], axis=1)) if len(paths) else "",
                    spread(r["valid"] for r in mine),
                    str(len(mine)),
                ])  # fmt: skip
    checked = [(r["model"], r["recomputed"]) for r in rows if r["recomputed"] is not None]
    confirmed = ", ".join(f"{model} {worst:.0e}" for model, worst in checked)
    cost = ", ".join(
        f"{model} {1000 * np.min([r['seconds'] / r['steps'] for r in rows if r['model'] == model]):.1f} ms"
        for model in BUILD
        if any(r["model"] == model for r in rows)
    )
    return [
        "## Update energy along six schedules",
        "φ/η = ‖U‖²/4 comes from ThermoAdamW's own readings of every step (Adam, no decay), as means over "
        f"tenths of the run. Peak learning rates: {', '.join(f'{k} {v:g}' for k, v in LR.items())}. Largest "
        "relative difference from float64 moments fed the same gradients, over the first 200 steps of the "
        f"cosine: {confirmed}. Fastest step: {cost}.",
        "\n".join(f"- {model}: {about}." for model, about in ABOUT.items()),
        table(
            ["model: schedule", "1st tenth", "3rd", "5th", "8th", "10th", "r in the 10th", "valid", "seeds"],
            lines,
        ),
    ]
