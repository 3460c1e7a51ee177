"""Numbers behind the tables of the laws: pure functions of rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thermoopt.benchmarks.laws.runs import held_rates, rates
from thermoopt.landscape import NoiseSpectrum

__all__ = [
    "PREDICTORS",
    "FinalFit",
    "Forecast",
    "Value",
    "equilibrated",
    "final_fit",
    "forecast",
    "layer_points",
    "noise_share",
    "over_seeds",
    "predicted",
    "released",
    "slope",
    "toy_points",
]

Row = dict[str, Any]
Array = NDArray[np.float64]

BETA1 = 0.9
"""Of every run."""

POWERS = np.linspace(0.05, 3.0, 60)
"""Exponents of D that a fit tries."""


@dataclass(frozen=True)
class Value:
    """A mean over seeds and its standard error, which is NaN for one seed."""

    mean: float
    error: float

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "-"
        return f"{self.mean:.3g}" + ("" if math.isnan(self.error) else f" ± {self.error:.1g}")


def over_seeds(values: Sequence[float]) -> Value:
    """Mean over seeds."""
    x = np.asarray(values, dtype=float)
    return Value(float(x.mean()), float(x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else math.nan)


def toy_points(rows: Sequence[Row], law: str) -> list[dict[str, Any]]:
    """Return a law's points pooled over seeds: means of the measured, errors added in quadrature."""
    pooled: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for row in rows:
        if row["experiment"] == "toy" and row["law"] == law:
            for point in row["points"]:
                pooled.setdefault((point["series"], point["at"]), []).append(point)
    return [
        {
            "series": series,
            "at": at,
            "measured": float(np.mean([p["measured"] for p in points])),
            "error": math.sqrt(sum(p["error"] ** 2 for p in points)) / len(points),
            "expected": points[0]["expected"],
        }
        for (series, at), points in pooled.items()
    ]


# ---------------------------------------------------------------- quenches


def released(row: Row, length: int) -> float:
    """Return the loss after length/2 steps at the held rate minus that after a quench of length steps.

    Both have the same sum of rates.
    """
    return row["constant"][str(length // 2)] - row["quenched"][str(length)]


def noise_share(row: Row) -> float:
    """Return the noise in a gradient's energy by the reading: d_iS_noise is eta (1 - beta1) times it."""
    return row["total"]["d_iS_noise"] / (4 * (1 - BETA1) * row["total"]["thermal_loss"])


def _spectrum(row: Row) -> NoiseSpectrum:
    """Return the spectrum scaled to the noise of 48 gradients; two start vectors measure the noise badly."""
    weights = np.array(row["spectrum"]["weights"])
    noise = row["rest"]["energy"] - row["rest"]["signal"]
    return NoiseSpectrum(np.array(row["spectrum"]["curvatures"]), weights * noise / weights.sum())


def _by_curvature(row: Row, length: int) -> float:
    """Return thermal loss at the held rate minus that after the quench, by mode; NaN if unstable."""
    spectrum = _spectrum(row)
    if row["lr"] >= spectrum.largest_rate(BETA1):
        return math.nan
    held = spectrum.thermal_losses(held_rates(row["lr"], row["steps"], extra=length // 2), BETA1)[-1]
    cold = spectrum.thermal_losses(held_rates(row["lr"], row["steps"], quench=length), BETA1)[-1]
    return float(held - cold)


def equilibrated(row: Row) -> float:
    """Return the fraction of (eta/4) times the noise present at the end of the hold; NaN if unstable."""
    spectrum = _spectrum(row)
    if row["lr"] >= spectrum.largest_rate(BETA1):
        return math.nan
    return spectrum.equilibrated_fraction(held_rates(row["lr"], row["steps"]), BETA1)


PREDICTORS: dict[str, Callable[[Row, int], float]] = {
    "thermal_loss": lambda row, length: row["total"]["thermal_loss"],
    "thermal_loss x share of noise": lambda row, length: row["total"]["thermal_loss"] * noise_share(row),
    "thermal_loss x layers in equilibrium": lambda row, length: row["total"]["thermal_loss"] * row["in_band"],
    "gradients at rest": lambda row, length: row["lr"] / 4 * row["rest"]["energy"],
    "noise and curvature at rest": _by_curvature,
    "weights averaged over 50 steps": lambda row, length: row["middle"] - row["averaged"],
}
"""Candidate predictors of the loss that a quench releases, from a row and the quench's length, [L]."""


def predicted(row: Row, name: str, length: int) -> float:
    """One predictor's number for a row."""
    return PREDICTORS[name](row, length)


@dataclass(frozen=True)
class Forecast:
    """How well a predictor predicts the released loss.

    Attributes:
        ratio: geometric mean of released over predicted.
        spread: factor by which single runs differ from it (exp of the standard deviation of the logarithm).
        unseen: the same for a workload whose runs were not used for the ratio, root mean square over all
            runs.
        correlation: correlation of the logarithms.
        runs: number of runs in which both are positive; the others cannot be judged.
    """

    ratio: float
    spread: float
    unseen: float
    correlation: float
    runs: int


def forecast(rows: Sequence[Row], name: str, length: int) -> Forecast | None:
    """Judge a predictor on the rows of the hold; return None for fewer than three runs."""
    pairs = [(r["workload"], released(r, length), predicted(r, name, length)) for r in rows]
    pairs = [p for p in pairs if p[1] > 0 and p[2] > 0]
    if len(pairs) < 3:
        return None
    workloads = np.array([w for w, _, _ in pairs])
    measured, told = (np.log([p[i] for p in pairs]) for i in (1, 2))
    logs = measured - told
    out = [logs[i] - logs[workloads != w].mean() for i, w in enumerate(workloads) if (workloads != w).any()]
    unseen = math.exp(math.sqrt(np.mean(np.square(out)))) if out else math.nan
    return Forecast(
        ratio=math.exp(logs.mean()),
        spread=math.exp(logs.std(ddof=1)),
        unseen=unseen,
        correlation=float(np.corrcoef(measured, told)[0, 1]),
        runs=len(pairs),
    )


def slope(x: Sequence[float], y: Sequence[float]) -> Value:
    """Slope of log y over log x by least squares, and its standard error."""
    u, v = np.log(x), np.log(y)
    if len(u) < 3:
        return Value(math.nan, math.nan)
    (a, b), residual = np.polyfit(u, v, 1), 0.0
    residual = float(np.sum((v - a * u - b) ** 2))
    return Value(float(a), math.sqrt(residual / (len(u) - 2) / float(np.sum((u - u.mean()) ** 2))))


# ---------------------------------------------------------------- layers


def layer_points(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Layers of the rows of one workload and rate, averaged over seeds.

    Returns:
        One entry per layer: ``name``, ``numel``, ``thermal`` (the reading's (eta/4) B), ``released`` (by
        averaging it alone) with ``error``, and ``temperature``, 2 thermal / numel.
    """
    out = []
    for name in rows[0]["layers"]:
        thermal = over_seeds([r["layers"][name]["thermal_loss"] for r in rows])
        loss = over_seeds([r["middle"] - r["layer_averaged"][name] for r in rows])
        numel = rows[0]["layers"][name]["numel"]
        out.append(
            {
                "name": name,
                "numel": numel,
                "thermal": thermal.mean,
                "released": loss.mean,
                "error": loss.error,
                "temperature": 2 * thermal.mean / numel,
            }
        )
    return out


# ---------------------------------------------------------------- schedules


@dataclass(frozen=True)
class FinalFit:
    """A fit of final losses, L = L0 + A D^-p + K h.

    Attributes:
        h: the measure of the final heat: ``"none"``, ``"last rate"`` or ``"spectrum"``.
        L0, A, p, K: parameters of the fit, K in [L] over the unit of h.
        rms: root mean square of the residuals, [L].
        left_out: the same for each shape when it is left out of the fit.
        points: shape, factor, measured (mean over seeds), its error, fitted, fitted without the shape.
    """

    h: str
    L0: float
    A: float
    p: float
    K: float
    rms: float
    left_out: dict[str, float]
    points: list[dict[str, Any]]


def _heat(h: str, shape: str, factor: float, lr: float, steps: int, holds: Sequence[Row]) -> float:
    etas = rates(shape, lr, steps)
    if h == "none":
        return 0.0
    if h == "last rate":
        return float(etas[-1])
    spectra = [_spectrum(r) for r in holds if r["factor"] == factor]
    found = [s.thermal_losses(etas, BETA1)[-1] for s in spectra if etas.max() < s.largest_rate(BETA1)]
    return float(np.mean(found))


def _solve(d: Array, heat: Array, loss: Array) -> tuple[float, Array]:
    """Best exponent and coefficients (L0, A, K)."""
    best: tuple[float, float, Array] | None = None
    for p in POWERS:
        design = np.stack([np.ones_like(d), (d / d.max()) ** -p, heat], axis=1)
        if not heat.any():
            design = design[:, :2]
        coefficients = np.linalg.lstsq(design, loss, rcond=None)[0]
        error = float(np.sum((design @ coefficients - loss) ** 2))
        if best is None or error < best[0]:
            best = (error, float(p), np.append(coefficients, 0.0)[:3])
    assert best is not None
    _, p, coefficients = best
    coefficients[1] *= d.max() ** p
    return p, coefficients


def _told(p: float, coefficients: Array, d: Array, heat: Array) -> Array:
    return coefficients[0] + coefficients[1] * d**-p + coefficients[2] * heat


def final_fit(rows: Sequence[Row], holds: Sequence[Row], h: str) -> FinalFit:
    """Fit the final losses of one workload.

    Args:
        rows: of the grid of schedules.
        holds: of the hold, for the spectrum at each rate.
        h: see :class:`FinalFit`.
    """
    groups: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["shape"], row["factor"]), []).append(row)
    shapes = np.array([shape for shape, _ in groups])
    d = np.array([g[0]["D"] for g in groups.values()])
    heat = np.array([_heat(h, s, f, g[0]["lr"], g[0]["steps"], holds) for (s, f), g in groups.items()])
    values = [over_seeds([r["loss"] for r in g]) for g in groups.values()]
    loss = np.array([v.mean for v in values])
    p, coefficients = _solve(d, heat, loss)
    fitted = _told(p, coefficients, d, heat)
    unseen = np.empty_like(loss)
    for shape in set(shapes):
        out = shapes == shape
        unseen[out] = _told(*_solve(d[~out], heat[~out], loss[~out]), d[out], heat[out])
    left_out = {s: float(np.sqrt(np.mean((unseen - loss)[shapes == s] ** 2))) for s in dict.fromkeys(shapes)}
    points = [
        {
            "shape": s, "factor": f, "D": d[i], "heat": heat[i], "loss": v.mean, "error": v.error,
            "fitted": fitted[i], "unseen": unseen[i],
        }
        for i, ((s, f), v) in enumerate(zip(groups, values, strict=True))
    ]  # fmt: skip
    rms = float(np.sqrt(np.mean((fitted - loss) ** 2)))
    l0, a, k = (float(c) for c in coefficients[:3])
    return FinalFit(h, l0, a, p, k, rms, left_out, points)
