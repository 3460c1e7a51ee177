r"""The force that irreversibility exerts, and how well the assumption behind it holds.

.. math:: F = -\nabla\phi = -(\eta/2)J^TU,\qquad \phi = (\eta/4)\|U\|^2

A step of size :math:`\eta` follows the flow of U + ∇φ to second order if the Jacobian J of U is symmetric
(arXiv 2605.21933); otherwise the correction of the discrete step is :math:`(\eta/2)JU`, which is not a
gradient.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from thermoopt.irreversibility.fields import FlatField, Point, check_eta

__all__ = ["EmergentForce", "asymmetry", "emergent_force", "sharpness"]

PROBES = 8
"""Pairs of random vectors: they give the asymmetry to about a quarter of its value."""

ASYMMETRIC = 1e-3
"""Asymmetry from which the assumption counts as violated: rounding in float64 leaves about 1e-12."""

POWER_STEPS = 30
"""Steps of the power iteration: they give the largest eigenvalue to a few percent, unless the next is very
close, in which case either will do."""


@dataclass(frozen=True)
class EmergentForce:
    """The emergent force at one point.

    Attributes:
        force: -∇φ in the structure of the parameters (with a metric: the derivative divided by it).
        phi: (eta/4)‖U‖², in units of the loss if U is a gradient.
        norm: length of the force in the metric.
        alignment: cosine between the force and the update step -U.
        asymmetry: asymmetry of the Jacobian, 0 to √2 (:func:`asymmetry`).
        evaluations: number of evaluations of U, one gradient of the loss each.
        products: number of products with the Jacobian, two to three gradients each.
    """

    force: Any
    phi: float
    norm: float
    alignment: float
    asymmetry: float
    evaluations: int
    products: int


def emergent_force(
    update: Callable[[Any], Any],
    params: Point,
    eta: float,
    *,
    metric: Point | None = None,
    probes: int = PROBES,
    seed: int = 0,
) -> EmergentForce:
    r"""Return :math:`-\nabla\phi=-(\eta/2)J^TU` by one product with the Jacobian.

    The Jacobian is never formed: for SGD this is one Hessian-vector product. Cost: 1 product, plus 2 for each
    pair of probes.

    Args:
        update, params, eta, metric: as in :func:`thermoopt.irreversibility.phi_de`.
        probes: pairs of random vectors to test the Jacobian's symmetry; with 0 the asymmetry is NaN.
        seed: seed of the probes.

    Raises:
        TypeError, ValueError: naming the argument, or because U has no derivative.

    Warns:
        RuntimeWarning: the Jacobian's asymmetry is above 1e-3, so that this is not the force on discrete
            steps.
    """
    eta = check_eta(eta)
    if isinstance(probes, bool) or not isinstance(probes, int):
        raise TypeError(f"probes must be an integer >= 0, got {probes!r}")
    if probes < 0:
        raise ValueError(f"probes must be an integer >= 0, got {probes!r}")
    field = FlatField(update, params, metric)
    now = field(field.theta)
    _, pulled = field.pullback(field.theta, field.lower(now))
    force = field.lift(-eta / 2 * pulled)
    apart = asymmetry(field, probes, seed) if probes else math.nan
    if apart > ASYMMETRIC:
        warnings.warn(
            f"the Jacobian of update is not symmetric (asymmetry {apart:.2g} of at most 1.41): -grad phi is "
            "not the force on discrete steps, which is -(eta/2) J U and not a gradient. For an update P g "
            "with fixed diagonal P, pass metric = 1/P",
            RuntimeWarning,
            stacklevel=2,
        )
    norm, size = field.norm(force), field.norm(now)
    return EmergentForce(
        force=field.shaped(force),
        phi=eta / 4 * size**2,
        norm=norm,
        alignment=-field.dot(force, now) / (norm * size) if norm and size else math.nan,
        asymmetry=apart,
        evaluations=field.evaluations,
        products=field.products,
    )


def asymmetry(field: FlatField, probes: int = PROBES, seed: int = 0) -> float:
    r"""Estimate how far a Jacobian is from symmetric, without forming it.

    .. math:: \sqrt{\sum(u^TJv-v^TJu)^2\,/\,\sum((u^TJv)^2+(v^TJu)^2)}

    over pairs of standard normal vectors u, v, with the expectation
    :math:`\|J-J^T\|_F/(\sqrt2\|J\|_F)`: 0 if symmetric, 1 if J and its transpose are unrelated, √2 if
    antisymmetric. With a metric M it is that of :math:`M^{1/2}JM^{-1/2}`. Two products per pair. NaN if J is
    0.
    """
    rng = torch.Generator(device=field.theta.device).manual_seed(seed)
    root = None if field.metric is None else field.metric.sqrt()
    apart = total = 0.0
    for _ in range(probes):
        pair = [
            torch.randn(field.theta.shape, generator=rng, dtype=torch.float64, device=field.theta.device)
            for _ in range(2)
        ]
        up, down = (pair, pair) if root is None else ([root * x for x in pair], [x / root for x in pair])
        a = float(field.pullback(field.theta, up[0])[1] @ down[1])
        b = float(field.pullback(field.theta, up[1])[1] @ down[0])
        apart += (a - b) ** 2
        total += a**2 + b**2
    return math.sqrt(apart / total) if total else math.nan


def sharpness(field: FlatField, steps: int = POWER_STEPS, seed: int = 0) -> float:
    """Return the Jacobian's eigenvalue of largest magnitude, by power iteration on the transpose.

    For SGD it is the Hessian's: steps are stable below eta = 2/sharpness. One product per iteration.
    """
    rng = torch.Generator(device=field.theta.device).manual_seed(seed)
    v = torch.randn(field.theta.shape, generator=rng, dtype=torch.float64, device=field.theta.device)
    value = 0.0
    for _ in range(steps):
        v = v / v.norm()
        _, w = field.pullback(field.theta, v)
        value = (
            float(v @ w) if field.metric is None else float((v / field.metric) @ w / ((v / field.metric) @ v))
        )
        if not float(w.norm()):
            return 0.0
        v = w
    return value
