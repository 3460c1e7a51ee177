r"""Irreversibility of an update: four measures, their leading order, the force, and the symmetries it breaks.

The parts: :mod:`thermoopt.irreversibility.model_fields` (an update as a function of parameters),
:mod:`thermoopt.irreversibility.measures` (the measures), :mod:`thermoopt.irreversibility.emergent_force`,
:mod:`thermoopt.irreversibility.symmetries`, and here :func:`compare_irreversibility`, which sets the
measures beside :math:`(\eta/4)\|U\|^2`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from thermoopt.irreversibility.emergent_force import EmergentForce, asymmetry, emergent_force, sharpness
from thermoopt.irreversibility.fields import FlatField, Point, UpdateField, check_eta
from thermoopt.irreversibility.measures import (
    MEASURES,
    UNSTABLE,
    Irreversibility,
    phi_de,
    phi_leading,
    phi_st,
    phi_ta,
    phi_tr,
)
from thermoopt.irreversibility.model_fields import Loss, adam_field, momentum_field, sgd_field
from thermoopt.irreversibility.symmetries import (
    Symmetry,
    SymmetryBreaking,
    permutation,
    rescaling,
    rotation,
    symmetry_breaking,
)
from thermoopt.plots import BLUE, GREEN, GREY, ORANGE, RED, blank, finish, frame, legend

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Comparison",
    "EmergentForce",
    "Fit",
    "Irreversibility",
    "Symmetry",
    "SymmetryBreaking",
    "UpdateField",
    "adam_field",
    "compare_irreversibility",
    "compare_measures",
    "emergent_force",
    "momentum_field",
    "permutation",
    "phi_de",
    "phi_leading",
    "phi_st",
    "phi_ta",
    "phi_tr",
    "rescaling",
    "rotation",
    "sgd_field",
    "symmetry_breaking",
]

Array = NDArray[np.float64]

SMALL = 0.1
"""Largest eta times curvature included in fits: the next order is then below a tenth."""

FLOOR = 1e-9
"""Deviations below this are rounding and integration errors; no slope is fitted to them."""

PARTED = 0.1
"""Relative deviation of its gradient from which a measure counts as having left the leading order."""

_COLORS = {"DE": BLUE, "TR": ORANGE, "TA": GREEN, "ST": RED}


@dataclass(frozen=True)
class Fit:
    """A straight line fitted to logarithms.

    Attributes:
        slope: the exponent; NaN with fewer than two points.
        error: its standard error from the scatter; NaN with fewer than three points.
        points: number of points.
    """

    slope: float
    error: float
    points: int

    def __str__(self) -> str:
        return f"{self.slope:.3f} ± {self.error:.1g}" if self.points > 2 else f"{self.slope:.3f}"


@dataclass(frozen=True)
class Comparison:
    """All four measures against (eta/4)‖U‖² over a grid of step sizes, at one point.

    Attributes:
        eta: ``[n]`` step sizes, ascending.
        leading: ``[n]`` (eta/4)‖U‖² minus its value at the reference.
        values: ``[n]`` phi minus phi at the reference, by name of the measure.
        gradient_errors: ``[n]`` ‖∇φ - ∇φ_leading‖/‖∇φ_leading‖, by name.
        curvature: ``[n]`` eta times the curvature along the update.
        sharpness: largest eigenvalue of the Jacobian; steps are stable below eta = 2/sharpness.
        asymmetry: asymmetry of the Jacobian
            (:func:`~thermoopt.irreversibility.emergent_force.asymmetry`): if it is not 0, the gradients of
            DE, TR and TA differ from the leading order's even as eta goes to 0.
        evaluations: total number of evaluations of U.
        products: total number of products with the Jacobian.
    """

    eta: Array
    leading: Array
    values: dict[str, Array]
    gradient_errors: dict[str, Array]
    curvature: Array
    sharpness: float
    asymmetry: float
    evaluations: int
    products: int

    @property
    def relative_errors(self) -> dict[str, Array]:
        """``[n]`` value over leading order, minus 1, by name."""
        return {name: value / self.leading - 1 for name, value in self.values.items()}

    def slopes(self) -> dict[str, Fit]:
        """Fit log value to log leading order where eta times the sharpness is at most 0.1: 1 in theory.

        Magnitudes are used where both have the same sign: phi is negative if the reference is the hotter end.
        """
        small, sign = self._small, np.sign(self.leading)
        return {
            name: _fit((sign * self.leading)[small], (sign * v)[small]) for name, v in self.values.items()
        }

    def error_slopes(self) -> dict[str, Fit]:
        """Fit log relative deviation of the values to log eta, likewise: 1 where it shrinks linearly."""
        small = self._small
        return {
            name: _fit(self.eta[small], np.abs(e[small]), FLOOR) for name, e in self.relative_errors.items()
        }

    def gradient_slopes(self) -> dict[str, Fit]:
        """Fit log relative deviation of the gradients to log eta, likewise."""
        small = self._small
        return {name: _fit(self.eta[small], e[small], FLOOR) for name, e in self.gradient_errors.items()}

    def parts_at(self) -> dict[str, float | None]:
        """Return the smallest eta at which each gradient deviates by more than a tenth, or None, by name."""
        return {
            name: next(
                (float(eta) for eta, error in zip(self.eta, e, strict=True) if not error <= PARTED), None
            )
            for name, e in self.gradient_errors.items()
        }

    @property
    def _small(self) -> NDArray[np.bool_]:
        return self.eta * abs(self.sharpness) <= SMALL

    def __str__(self) -> str:
        small = self.eta[self._small]
        reach = f"{small[0]:.2g} to {small[-1]:.2g}" if len(small) else "none small enough"
        lines = [
            f"largest eigenvalue {self.sharpness:.3g}, asymmetry of the Jacobian {self.asymmetry:.1e}; fits "
            f"over eta {reach}",
            "| measure | slope | slope of deviation | slope of gradient's deviation | deviation, first to "
            "last eta | parts at |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        slopes, errors, gradients, parts = (
            self.slopes(), self.error_slopes(), self.gradient_slopes(), self.parts_at()
        )  # fmt: skip
        for name in self.values:
            relative = self.relative_errors[name]
            at = parts[name]
            lines.append(
                f"| {name} | {slopes[name]} | {errors[name]} | {gradients[name]} | {relative[0]:.1e} to "
                f"{relative[-1]:.1e} | {'nowhere' if at is None else f'{at:.2g}'} |"
            )
        return "\n".join(lines)

    def plot(self, path: str | Path | None = None, title: str | None = None) -> Figure:
        """Plot the values over the leading order, and the deviations of values and gradients over eta.

        Args:
            path: file to write; the suffix chooses the format.
            title: a line above the panels.

        Raises:
            ImportError: matplotlib is missing.
        """
        figure = blank(5.4)
        values, errors, gradients = figure.subplots(1, 3)
        frame(values, "φ against (η/4)‖U‖²")
        sign = np.sign(self.leading)
        size = sign * self.leading
        values.plot(size, size, color=GREY, lw=1, label="(η/4)‖U‖²")
        frame(errors, "deviation of the values")
        frame(gradients, "deviation of the gradients")
        slopes, second, third = self.slopes(), self.error_slopes(), self.gradient_slopes()
        for (name, value), marker in zip(self.values.items(), "os^v", strict=False):
            look: dict[str, Any] = {"marker": marker, "ms": 5, "lw": 1.2, "color": _COLORS.get(name)}
            above = np.where(sign * value > 0, sign * value, np.nan)
            values.plot(size, above, label=f"{name}: slope {slopes[name]}", **look)
            deviation = np.abs(self.relative_errors[name])
            for ax, error, fit in (
                (errors, deviation, second),
                (gradients, self.gradient_errors[name], third),
            ):
                shown = np.where(error > 0, error, np.nan)
                slope = f"slope {fit[name].slope:.2f}" if fit[name].points > 1 else "exact to rounding"
                ax.plot(self.eta, shown, label=f"{name}: {slope}", **look)
        values.set(xscale="log", yscale="log", xlabel="(η/4)‖U‖²", ylabel="φ")
        for ax in (errors, gradients):
            ax.set(xscale="log", yscale="log", xlabel="η")
            if self.sharpness > 0:
                ax.axvline(2 / self.sharpness, color=GREY, ls="--", lw=1, label="edge of stability, 2/λ")
        for ax in (values, errors, gradients):
            legend(ax)
        return finish(figure, title, path)


def compare_irreversibility(
    model: nn.Module,
    loss: Loss,
    eta_grid: Iterable[float],
    *,
    field: Callable[[nn.Module, Loss], UpdateField] = sgd_field,
    reference: Point | None = None,
    path: str | Path | None = None,
) -> Comparison:
    """Compare all four phi of a model's update with (eta/4)‖U‖² over a grid of step sizes.

    Args:
        model, loss: as in :func:`sgd_field`.
        eta_grid: step sizes, at least two.
        field: returns the update for a model and a loss; for frozen Adam use ``partial(adam_field,
            optimizer=optimizer)``.
        reference: parameters by name at which phi is 0; None for the origin.
        path: file for a plot of the comparison (needs matplotlib).

    Returns:
        The comparison: print it for a table, or call its ``plot``. The cost, 300 to 800 gradients per step
        size in the stable range, is mostly that of the line integral of DE.

    Raises:
        TypeError, ValueError: naming the argument; see :func:`sgd_field` and :func:`phi_de`.

    Warns:
        RuntimeWarning: the grid reaches beyond the edge of stability, or as :func:`phi_de`.
    """
    made = field(model, loss)
    return compare_measures(made, made.params, eta_grid, reference=reference, path=path)


def compare_measures(
    update: Callable[[Any], Any],
    params: Point,
    eta_grid: Iterable[float],
    *,
    metric: Point | None = None,
    reference: Point | None = None,
    path: str | Path | None = None,
) -> Comparison:
    """Compare the four measures of any update: :func:`compare_irreversibility` for a custom field."""
    etas = sorted(check_eta(eta, "eta_grid's step size") for eta in eta_grid)
    if len(etas) < 2:
        raise ValueError(f"eta_grid must hold at least two step sizes, got {etas!r}")
    field = FlatField(update, params, metric)
    largest, apart = sharpness(field), asymmetry(field)
    values: dict[str, list[float]] = {name: [] for name in MEASURES}
    errors: dict[str, list[float]] = {name: [] for name in MEASURES}
    leading, curvature = [], []
    evaluations, products = field.evaluations, field.products
    unstable = [eta for eta in etas if eta * largest > UNSTABLE]
    if unstable:
        warnings.warn(
            f"eta_grid reaches {etas[-1]!r}, beyond the edge of stability at {UNSTABLE / largest:.3g} = "
            "2/sharpness: there the largest mode overshoots and grows, the measures diverge from each other, "
            "and phi is not an entropy production",
            RuntimeWarning,
            stacklevel=2,
        )
    for eta in etas:
        with warnings.catch_warnings():
            if eta in unstable:  # already warned about
                warnings.simplefilter("ignore", RuntimeWarning)
            base = phi_leading(update, params, eta, metric=metric, reference=reference)
            found = {
                name: f(update, params, eta, metric=metric, reference=reference)
                for name, f in MEASURES.items()
            }
        against = field.flat(base.gradient, "gradient")
        leading.append(base.value)
        curvature.append(base.curvature)
        for name, it in found.items():
            values[name].append(it.value)
            errors[name].append(
                field.norm(field.flat(it.gradient, "gradient") - against) / field.norm(against)
            )
        evaluations += sum(it.evaluations for it in (base, *found.values()))
        products += sum(it.products for it in (base, *found.values()))
    out = Comparison(
        eta=np.array(etas),
        leading=np.array(leading),
        values={name: np.array(v) for name, v in values.items()},
        gradient_errors={name: np.array(e) for name, e in errors.items()},
        curvature=np.array(curvature),
        sharpness=largest,
        asymmetry=apart,
        evaluations=evaluations,
        products=products,
    )
    if path is not None:
        out.plot(path)
    return out


def _fit(x: Array, y: Array, floor: float = 0.0) -> Fit:
    """Least squares on the logarithms of the values above a floor."""
    use = np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > floor)
    n = int(use.sum())
    if n < 2:
        return Fit(float("nan"), float("nan"), n)
    a, b = np.log(x[use]), np.log(y[use])
    a = a - a.mean()
    slope = float(a @ b / (a @ a))
    if n < 3:
        return Fit(slope, float("nan"), n)
    rest = b - b.mean() - slope * a
    return Fit(slope, float(np.sqrt(rest @ rest / (n - 2) / (a @ a))), n)
