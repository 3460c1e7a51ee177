"""Tables of the laws: a pure function of their rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from thermoopt.benchmarks.laws.fits import (
    PREDICTORS,
    equilibrated,
    final_fit,
    forecast,
    layer_points,
    noise_share,
    over_seeds,
    predicted,
    released,
    slope,
    toy_points,
)
from thermoopt.benchmarks.laws.runs import QUENCHES, SHAPES

__all__ = ["groups", "report"]

Row = dict[str, Any]

LANGUAGE = ("gpt", "gru")

HEATS = ("none", "last rate", "spectrum")

FIT = (
    "The fit is L = L0 + A D^-p + K h, where h is nothing, the last rate, or (*spectrum*) the thermal loss "
    "that the noise and curvature of the hold give for the schedule. *Rms* is that of the residuals in nats, "
    "and the columns after it have that of each shape when it took no part in the fit."
)


def report(rows: Sequence[Row]) -> str:
    """Return the tables as Markdown; experiments without rows are left out.

    Args:
        rows: of :mod:`laws`.
    """
    toys = [r for r in rows if r["experiment"] == "toy"]
    holds = [r for r in rows if r["experiment"] == "hold"]
    grid = [r for r in rows if r["experiment"] == "schedule"]
    seeds = sorted({r["seed"] for r in rows})
    parts = [
        "# Neural thermodynamic laws, measured",
        f"Seeds {', '.join(map(str, seeds))}. Figures are means over seeds ± standard errors; "
        "docs/physics.md explains them. `make bench-laws` makes this page.",
    ]
    if toys:
        parts += ["## The river valley: closed forms against motion", _toy(toys)]
    if holds:
        parts += [
            "## (a) Temperature against noise",
            _temperature(holds),
            "## (b) Quench law",
            _quench(holds),
            _forecasts(holds),
            "## (d) Equipartition across layers",
            _layers(holds),
        ]
    if grid:
        parts += ["## (c) Final loss against D and the last rate", FIT]
        for workload in dict.fromkeys(r["workload"] for r in grid):
            of_it = [r for r in holds if r["workload"] == workload]
            parts.append(_final(workload, [r for r in grid if r["workload"] == workload], of_it))
    return "\n\n".join(parts) + "\n"


def groups(holds: Sequence[Row]) -> dict[tuple[str, float], list[Row]]:
    """Rows of the hold by workload and rate."""
    out: dict[tuple[str, float], list[Row]] = {}
    for row in holds:
        out.setdefault((row["workload"], row["factor"]), []).append(row)
    return dict(sorted(out.items()))


def _table(head: str, lines: Sequence[Sequence[object]]) -> str:
    names = head.split(" | ")
    rule = " | ".join("---" if i == 0 else "---:" for i in range(len(names)))
    body = [f"| {' | '.join(str(cell) for cell in line)} |" for line in lines]
    return "\n".join([f"| {head} |", f"| {rule} |", *body])


def _toy(rows: Sequence[Row]) -> str:
    lines = []
    for law in dict.fromkeys(r["law"] for r in rows):
        points = toy_points(rows, law)
        if law == "entropy":  # nats, which may be 0
            off = [p["measured"] - p["expected"] for p in points]
            errors = [p["error"] for p in points]
            unit = " nats"
        else:
            off = [p["measured"] / p["expected"] - 1 for p in points]
            errors = [p["error"] / abs(p["expected"]) for p in points]
            unit = ""
        worst = int(np.abs(off).argmax())
        at = f"{points[worst]['series']} at {points[worst]['at']:g}"

        def show(x: float, unit: str = unit) -> str:
            return f"{x:.4f}{unit}" if unit else f"{x:.2%}"

        rms = math.sqrt(float(np.mean(np.square(off))))
        lines.append((law, len(points), show(rms), show(off[worst]), show(errors[worst]), at))
    return _table("law | points | rms deviation | largest | its standard error | where", lines)


def _temperature(holds: Sequence[Row]) -> str:
    lines = []
    for (workload, _), rows in groups(holds).items():
        read = over_seeds([r["total"]["thermal_loss"] for r in rows])
        rest = over_seeds([r["lr"] / 4 * r["rest"]["energy"] for r in rows])
        ratio = over_seeds([r["total"]["thermal_loss"] / (r["lr"] / 4 * r["rest"]["energy"]) for r in rows])
        share = over_seeds([noise_share(r) for r in rows])
        share_rest = over_seeds([1 - r["rest"]["signal"] / r["rest"]["energy"] for r in rows])
        r_ = over_seeds([r["total"]["r"] for r in rows])
        coherence = over_seeds([r["total"]["coherence"] for r in rows])
        lines.append((workload, f"{rows[0]['lr']:.2g}", read, rest, ratio, share, share_rest, r_, coherence))
    text = _table(
        "workload | lr | thermal_loss | thermal_loss at rest | ratio | share of noise | share at rest | r | "
        "coherence",
        lines,
    )
    every = [r["total"]["thermal_loss"] / (r["lr"] / 4 * r["rest"]["energy"]) for r in holds]
    shares = [noise_share(r) / (1 - r["rest"]["signal"] / r["rest"]["energy"]) for r in holds]
    slopes = []
    for w in dict.fromkeys(r["workload"] for r in holds):
        of_it = [r for r in holds if r["workload"] == w]
        found = slope([r["lr"] for r in of_it], [r["total"]["thermal_loss"] for r in of_it])
        loss = [(r["lr"], released(r, QUENCHES[-1])) for r in of_it]
        loss = [pair for pair in loss if pair[1] > 0]
        rel = slope(*zip(*loss, strict=True)) if len(loss) > 2 else "-"
        slopes.append((w, found, rel))
    return "\n\n".join(
        [
            "Readings over the last 50 of 300 steps at a constant rate are compared with 48 gradients at the "
            "final weights. thermal_loss is (η/4)B; *at rest* means that B is that of those gradients. The "
            "share of noise is its share in B.",
            text,
            f"The geometric mean of thermal_loss over that at rest is {_gmean(every):.3f}, and a single run "
            f"differs from it by a factor of {_gspread(every):.3f}. For the share of noise, these are "
            f"{_gmean(shares):.3f} and {_gspread(shares):.3f}.",
            "The next table shows how log thermal_loss and the log of the released loss grow with the log of "
            "the learning rate. The slope would be 1 if noise did not depend on where the rate leads.",
            _table("workload | thermal_loss | loss released in 100 steps", slopes),
        ]
    )


def _gmean(values: Sequence[float]) -> float:
    return float(np.exp(np.mean(np.log(values))))


def _gspread(values: Sequence[float]) -> float:
    return float(np.exp(np.std(np.log(values), ddof=1))) if len(values) > 1 else math.nan


def _quench(holds: Sequence[Row]) -> str:
    lines = []
    for (workload, _), rows in groups(holds).items():
        cells: list[object] = [workload, f"{rows[0]['lr']:.2g}"]
        cells.append(over_seeds([r["total"]["thermal_loss"] for r in rows]))
        cells.append(over_seeds([equilibrated(r) for r in rows]))
        for length in QUENCHES:
            cells.append(over_seeds([released(r, length) for r in rows]))
            cells.append(over_seeds([predicted(r, "noise and curvature at rest", length) for r in rows]))
        cells.append(over_seeds([released(r, QUENCHES[-1]) / r["total"]["thermal_loss"] for r in rows]))
        cells.append(over_seeds([r["loss"] - r["quenched"][str(QUENCHES[-1])] for r in rows]))
        lines.append(cells)
    heads = [f"released in {n} | by noise and curvature" for n in QUENCHES]
    about = (
        "- *Equilibrated* is the share of (η/4) times the noise that, given its curvature, can be in "
        "equilibrium after the hold.\n"
        "- *Released* is the loss after half as many steps at the held rate (the same sum of rates) minus "
        "the loss after a linear quench to zero, on one batch of 16 training batches.\n"
        "- *By noise and curvature* is the same difference of thermal losses, mode by mode, from gradients "
        "and Hessian products at the end of the hold, with nothing fitted; - where a mode is beyond the "
        "stable range.\n"
        "- *Since the start* is relative to the loss at the start of the quench, so it includes the river's "
        "progress."
    )
    names = ["workload", "lr", "thermal_loss", "equilibrated", *heads, "released / thermal_loss"]
    head = " | ".join([*names, "since the start"])
    return about + "\n\n" + _table(head, lines)


def _forecasts(holds: Sequence[Row]) -> str:
    lines: list[Sequence[object]] = []
    languages = [r for r in holds if r["workload"] in LANGUAGE]
    for which, some in (("all", holds), ("language models", languages)):
        for name in PREDICTORS:
            for length in QUENCHES:
                found = forecast(some, name, length)
                if found is None:
                    continue
                told = (found.ratio, found.spread, found.unseen, found.correlation)
                numbers = ["-" if math.isnan(x) else f"{x:.2f}" for x in told]
                lines.append((which, name, length, *numbers, f"{found.runs} of {len(some)}"))
    about = (
        "Which quantity predicts the loss that a quench will release? *Ratio* is the geometric mean of the "
        "released over the predicted loss, *spread* the factor by which single runs differ from it, and "
        "*unseen* that factor when the ratio is taken from the other workloads. *Correlation* is that of the "
        "logarithms, and *runs* counts the runs in which both are above 0."
    )
    return (
        about
        + "\n\n"
        + _table("networks | predicted by | steps | ratio | spread | unseen | correlation | runs", lines)
    )


def _layers(holds: Sequence[Row]) -> str:
    lines = []
    for (workload, _), rows in groups(holds).items():
        points = layer_points(rows)
        seen = [p for p in points if p["released"] > 0 and p["thermal"] > 0]
        x, y = [p["thermal"] for p in seen], [p["released"] for p in seen]
        correlation = f"{np.corrcoef(np.log(x), np.log(y))[0, 1]:.2f}" if len(seen) > 2 else "-"
        temperatures = [p["temperature"] for p in points if p["thermal"] > 0]
        whole = over_seeds([r["middle"] - r["averaged"] for r in rows])
        added = over_seeds([sum(r["middle"] - x for x in r["layer_averaged"].values()) for r in rows])
        per = [b / a for a, b in zip(x, y, strict=True)]
        lines.append(
            (
                workload,
                f"{rows[0]['lr']:.2g}",
                f"{len(seen)} of {len(points)}",
                f"{max(temperatures) / min(temperatures):.0f}",
                slope(x, y),
                correlation,
                f"{_gmean(per):.2f}" if per else "-",
                f"{_gspread(per):.2f}" if len(per) > 1 else "-",
                added,
                whole,
            )
        )
    about = (
        "Each layer alone is replaced by its mean over the last 50 steps. The loss that this releases is "
        "compared with the layer's own thermal_loss, for the layers that release any. *Spread of "
        "temperature* is the largest over the smallest 2 thermal_loss per element."
    )
    head = (
        "workload | lr | layers | spread of temperature | slope | correlation | released / thermal_loss | "
        "its spread | sum over layers | all at once"
    )
    return about + "\n\n" + _table(head, lines)


def _final(workload: str, rows: Sequence[Row], holds: Sequence[Row]) -> str:
    below = [r for r in rows if r["factor"] <= 1]
    fits = [
        (rates, final_fit(some, holds, h))
        for rates, some in (("all", rows), ("up to the tuned", below))
        for h in HEATS
        if h != "spectrum" or holds
    ]
    shapes = [s for s in SHAPES if s in {r["shape"] for r in rows}]
    head = "rates | heat at the end | L0 | A | p | K | rms | " + " | ".join(shapes)
    lines = [
        (
            which,
            f.h,
            *(f"{x:.3g}" for x in (f.L0, f.A, f.p, f.K)),
            f"{f.rms:.4f}",
            *(f"{f.left_out[s]:.4f}" if s in f.left_out else "-" for s in shapes),
        )
        for which, f in fits
    ]
    factors = sorted({r["factor"] for r in rows})
    losses = []
    for s in shapes:
        cells: list[object] = [s]
        for factor in factors:
            of_it = [r for r in rows if r["shape"] == s and r["factor"] == factor]
            if not of_it:
                cells += ["-", "-", "-"]
                continue
            value = over_seeds([r["loss"] for r in of_it])
            error = "" if math.isnan(value.error) else f" ± {value.error:.3f}"
            cells += [f"{value.mean:.3f}{error}", f"{of_it[0]['D']:.3g}"]
            cells.append(over_seeds([r["valid"] for r in of_it]))
        losses.append(cells)
    lr = {factor: next(r["lr"] for r in rows if r["factor"] == factor) for factor in factors}
    heads = " | ".join(f"loss at {lr[f]:.2g} | D | valid" for f in factors)
    return "\n\n".join(
        [
            f"### {workload}",
            _table(head, lines),
            _table(f"shape | {heads}", losses),
        ]
    )
