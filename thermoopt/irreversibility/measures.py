r"""The four measures of irreversibility of arXiv 2605.21933, and their common leading order.

With the update field U and the step size :math:`\eta`, let disc :math:`=\theta-\eta U(\theta)`; cont the
time-1 flow of :math:`d\vartheta/d\tau=-\eta U(\vartheta)`; fine the result of two half steps;
:math:`\theta^+` = disc; and :math:`\tilde\theta=\theta-\eta U(\theta)+\eta U(\theta^+)`. Then

.. math::
    \nabla\phi_{DE} = (\mathrm{cont}-\mathrm{disc})/\eta,\quad
    \nabla\phi_{TR} = 2(\mathrm{fine}-\mathrm{disc})/\eta,\quad
    \nabla\phi_{TA} = (\theta-\tilde\theta)/(2\eta),\quad
    \phi_{ST} = (\eta/16)\|U(\theta)+U(\theta^+)\|^2

and all are :math:`(\eta/4)\|U\|^2` to leading order if the Jacobian of U is symmetric. On a quadratic with
matrix A (U = Aθ), TR and TA equal it at every :math:`\eta`; DE and ST deviate by about :math:`-\eta\lambda/3`
and :math:`-\eta\lambda`.

The Jacobian of a field P·g with a fixed positive diagonal P (frozen Adam) is not symmetric, except in the
inner product Σ ab/P: with that ``metric`` the leading order is :math:`(\eta/4)\langle\hat m,U\rangle`, and
gradients are vectors, the derivative divided by the metric.

Everything is computed in float64, since differences are :math:`O(\eta^2)`. Three evaluations of U are spent
on checks: that U is a function, and that the step does not overshoot.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thermoopt.irreversibility.fields import FlatField, Point, check_eta

__all__ = ["MEASURES", "UNSTABLE", "Irreversibility", "phi_de", "phi_leading", "phi_st", "phi_ta", "phi_tr"]

NODES, CHECK_NODES = 8, 5
"""Points of the Gauss-Legendre rule for line integrals (exact to degree 15), and of the rule that gives its
error."""

FLOW_TOLERANCE = 1e-8
"""Target error of the flow of DE, relative to cont - disc."""

FLOW_WARNS = 1e-4
"""Error above which a value of DE comes with a warning: far below every deviation that is compared."""

MAX_FLOW_STEPS = 32
"""Most Runge-Kutta steps for the time-1 flow: a smooth field inside the stable range needs 2 to 8."""

REPEATED = 1e-12
"""Relative difference of two evaluations up to which a field counts as a function: another order of
summation, as on a GPU, leaves 1e-16 to 1e-14."""

UNSTABLE = 2.0
"""eta times the curvature along the update from which a step of gradient descent overshoots and grows."""


@dataclass(frozen=True)
class Irreversibility:
    """One measure at one point.

    Attributes:
        name: ``"DE"``, ``"TR"``, ``"TA"``, ``"ST"`` or ``"leading"``.
        eta: the step size.
        value: phi at the parameters minus phi at the reference, in units of the loss if U is a gradient; NaN
            if not requested.
        value_error: error of the quadrature, the difference from a rule with fewer points; 0 without one.
        gradient: gradient of phi, in the structure of the parameters.
        norm: length of the gradient in the metric.
        curvature: eta times the curvature along the update, 1 - <U, U(θ⁺)>/<U, U>: 2 is the edge of
            stability.
        evaluations: number of evaluations of U, one gradient of the loss each.
        products: number of products with the Jacobian, two to three gradients each.
    """

    name: str
    eta: float
    value: float
    value_error: float
    gradient: Any
    norm: float
    curvature: float
    evaluations: int
    products: int


Gradient = Callable[[FlatField, Tensor, Tensor, Tensor, float], Tensor]
Scalar = Callable[[FlatField, Tensor, float], float]


def phi_leading(
    update: Callable[[Any], Any],
    params: Point,
    eta: float,
    *,
    metric: Point | None = None,
    reference: Point | None = None,
    integrate: bool = True,
) -> Irreversibility:
    r"""Measure the common leading order :math:`(\eta/4)\|U\|^2` by its formula.

    The gradient :math:`(\eta/2)J^TU` takes one product with the Jacobian; the value takes one more
    evaluation, at the reference. Arguments and errors are those of :func:`phi_de`.
    """
    return _measure("leading", update, params, eta, metric, reference, integrate, _leading, _leading_value)


def phi_de(
    update: Callable[[Any], Any],
    params: Point,
    eta: float,
    *,
    metric: Point | None = None,
    reference: Point | None = None,
    integrate: bool = True,
) -> Irreversibility:
    r"""Measure the error of the discrete step against the flow.

    .. math:: \nabla\phi_{DE}=(\mathrm{cont}-\mathrm{disc})/\eta

    The flow is integrated with classical Runge-Kutta steps, whose number is doubled and extrapolated
    (Richardson) until two results agree to 1e-8 of cont - disc: 10 to 56 evaluations in the stable range. The
    value is a line integral from the reference,

    .. math::
        \phi(\theta)-\phi(\theta_0) =
        \int_0^1\langle\nabla\phi(\theta_0+s(\theta-\theta_0)),\theta-\theta_0\rangle ds

    by the 8-point Gauss-Legendre rule, with a 5-point rule for its error: 13 gradients.

    Args:
        update: U, from parameters to an update of the same structure. It must be a function: a fixed batch,
            no dropout. :mod:`thermoopt.irreversibility.model_fields` makes one from a model and a loss.
        params: the point: a tensor, or a list or dict of tensors; converted to float64.
        eta: step size.
        metric: weights of inner products, in the structure of ``params``; None takes those of ``update``,
            else 1 everywhere.
        reference: the point at which phi is 0; None for the origin.
        integrate: whether to compute the value too.

    Returns:
        Value, gradient, and their cost.

    Raises:
        TypeError, ValueError: naming the argument; also when two evaluations at the same parameters differ,
            when U vanishes or is not finite, or where a product with the Jacobian is needed and U has none.

    Warns:
        RuntimeWarning: the step overshoots and grows (eta times curvature along U above 2), or the flow did
            not converge to 1e-4, for example because of a ReLU's kink within the step: orders in eta cannot
            be separated then.
    """
    return _measure("DE", update, params, eta, metric, reference, integrate, _discretisation, None)


def phi_tr(
    update: Callable[[Any], Any],
    params: Point,
    eta: float,
    *,
    metric: Point | None = None,
    reference: Point | None = None,
    integrate: bool = True,
) -> Irreversibility:
    r"""Measure the time-renormalised correction, :math:`\nabla\phi_{TR}=2(\mathrm{fine}-\mathrm{disc})/\eta`.

    It equals :math:`U(\theta)-U(\theta-\eta U/2)`: 1 evaluation besides U. Arguments and errors are those of
    :func:`phi_de`.
    """
    return _measure("TR", update, params, eta, metric, reference, integrate, _renormalisation, None)


def phi_ta(
    update: Callable[[Any], Any],
    params: Point,
    eta: float,
    *,
    metric: Point | None = None,
    reference: Point | None = None,
    integrate: bool = True,
) -> Irreversibility:
    r"""Measure the asymmetry under time reversal, :math:`\nabla\phi_{TA}=(\theta-\tilde\theta)/(2\eta)`.

    It equals :math:`(U(\theta)-U(\theta^+))/2`: 1 evaluation besides U. Arguments and errors are those of
    :func:`phi_de`.
    """
    return _measure("TA", update, params, eta, metric, reference, integrate, _reversal, None)


def phi_st(
    update: Callable[[Any], Any],
    params: Point,
    eta: float,
    *,
    metric: Point | None = None,
    reference: Point | None = None,
    integrate: bool = True,
) -> Irreversibility:
    r"""Measure the entropy production of stochastic thermodynamics.

    .. math:: \phi_{ST}=(\eta/16)\|U(\theta)+U(\theta^+)\|^2

    The value needs no line integral; the gradient takes two products with the Jacobian. Arguments and errors
    are those of :func:`phi_de`.
    """
    return _measure("ST", update, params, eta, metric, reference, integrate, _stochastic, _stochastic_value)


MEASURES: dict[str, Callable[..., Irreversibility]] = {
    "DE": phi_de,
    "TR": phi_tr,
    "TA": phi_ta,
    "ST": phi_st,
}
"""The four measures by name."""


def _measure(
    name: str,
    update: Callable[[Any], Any],
    params: Point,
    eta: float,
    metric: Point | None,
    reference: Point | None,
    integrate: bool,
    gradient: Gradient,
    scalar: Scalar | None,
) -> Irreversibility:
    eta = check_eta(eta)
    field = FlatField(update, params, metric)
    theta = field.theta
    start = torch.zeros_like(theta) if reference is None else field.flat(reference, "reference").detach()
    now, after, curvature = _checked(field, eta)
    grad = gradient(field, theta, now, after, eta)
    value, error = math.nan, 0.0
    if integrate and scalar is not None:
        value = scalar(field, theta, eta) - scalar(field, start, eta)
    elif integrate:
        value, error = _line_integral(field, start, eta, gradient)
    return Irreversibility(
        name=name,
        eta=eta,
        value=value,
        value_error=error,
        gradient=field.shaped(grad),
        norm=field.norm(grad),
        curvature=curvature,
        evaluations=field.evaluations,
        products=field.products,
    )


def _checked(field: FlatField, eta: float) -> tuple[Tensor, Tensor, float]:
    """Return U(θ), U(θ⁺) and eta times the curvature along U; raise if a measure would be meaningless."""
    now, again = field(field.theta), field(field.theta)
    apart = float((now - again).norm() / now.norm().clamp_min(torch.finfo(now.dtype).tiny))
    if apart > REPEATED:
        raise ValueError(
            "update must be a function of the parameters, got two evaluations at the same point that "
            f"differ by {apart:.1e} of its length (a batch drawn inside it, dropout, a changing buffer); "
            "differences of order eta**2 would be noise. Fix the batch and call model.eval()"
        )
    energy = field.dot(now, now)
    if energy == 0:
        raise ValueError(
            "update must not vanish at params, where every phi would be 0 with nothing to compare: the "
            "loss is stationary, or its derivative is 0 everywhere, like that of an accuracy or of rounding"
        )
    after = field(field.theta - eta * now)
    curvature = 1 - field.dot(now, after) / energy
    if curvature > UNSTABLE:
        warnings.warn(
            f"eta is {eta!r}, and eta times the curvature along the update is {curvature:.2f}, above 2: the "
            "step overshoots and grows, so orders in eta cannot be separated and phi is not an entropy "
            f"production. Use eta below {eta * UNSTABLE / curvature:.2g}",
            RuntimeWarning,
            stacklevel=4,
        )
    return now, after, curvature


def _line_integral(field: FlatField, start: Tensor, eta: float, gradient: Gradient) -> tuple[float, float]:
    """Integrate a gradient from start to the parameters; the value and its error."""
    way = field.theta - start
    totals = []
    for n in (NODES, CHECK_NODES):
        nodes, weights = np.polynomial.legendre.leggauss(n)
        total = 0.0
        for s, w in zip((nodes + 1) / 2, weights / 2, strict=True):
            at = start + float(s) * way
            now = field(at)
            total += float(w) * field.dot(gradient(field, at, now, now, eta), way)
        totals.append(total)
    return totals[0], abs(totals[0] - totals[1])


def _leading(field: FlatField, at: Tensor, now: Tensor, after: Tensor, eta: float) -> Tensor:
    return field.lift(eta / 2 * field.pullback(at, field.lower(now))[1])


def _leading_value(field: FlatField, at: Tensor, eta: float) -> float:
    now = field(at)
    return eta / 4 * field.dot(now, now)


def _discretisation(field: FlatField, at: Tensor, now: Tensor, after: Tensor, eta: float) -> Tensor:
    def way(steps: int) -> Tensor:
        """Displacement after time 1."""
        h, x = eta / steps, torch.zeros_like(at)
        for i in range(steps):
            k1 = now if i == 0 else field(at + x)
            k2 = field(at + x - h / 2 * k1)
            k3 = field(at + x - h / 2 * k2)
            k4 = field(at + x - h * k3)
            x = x - h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return x

    # differences below the floor are rounding
    steps, row = 1, [way(1)]
    floor = 16 * torch.finfo(at.dtype).eps * (eta * field.norm(now))
    while True:
        steps *= 2
        finer = [way(steps)]
        for order, coarse in enumerate(row, 4):
            finer.append(finer[-1] + (finer[-1] - coarse) / (2**order - 1))
        apart = finer[-1] + eta * now
        size, error = field.norm(apart), field.norm(finer[-1] - finer[-2])
        if error <= max(FLOW_TOLERANCE * size, floor):
            return apart / eta
        if steps >= MAX_FLOW_STEPS:
            break
        row = finer
    # the order is unknown, so there is nothing to extrapolate: use the finest steps
    apart = finer[0] + eta * now
    size, error = field.norm(apart), field.norm(finer[0] - row[0]) / 15
    if not error <= FLOW_WARNS * size:
        warnings.warn(
            f"eta is {eta!r}, and after {steps} Runge-Kutta steps the flow still changes by "
            f"{error / size:.1e} of what DE measures: the loss has kinks or jumps within a step (ReLU, "
            "absolute values, clipping), or eta is outside the stable range; DE means little here",
            RuntimeWarning,
            stacklevel=4,
        )
    return apart / eta


def _renormalisation(field: FlatField, at: Tensor, now: Tensor, after: Tensor, eta: float) -> Tensor:
    return now - field(at - eta / 2 * now)


def _reversal(field: FlatField, at: Tensor, now: Tensor, after: Tensor, eta: float) -> Tensor:
    # along a line integral U(θ⁺) is not known yet
    return (now - (field(at - eta * now) if after is now else after)) / 2


def _stochastic(field: FlatField, at: Tensor, now: Tensor, after: Tensor, eta: float) -> Tensor:
    mean = field.lower(now + after)
    _, pulled = field.pullback(at - eta * now, mean)
    _, back = field.pullback(at, mean - eta * pulled)
    return field.lift(eta / 8 * (pulled + back))


def _stochastic_value(field: FlatField, at: Tensor, eta: float) -> float:
    now = field(at)
    both = now + field(at - eta * now)
    return eta / 16 * field.dot(both, both)
