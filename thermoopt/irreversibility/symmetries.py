r"""Symmetries of a loss, and which of them irreversibility breaks.

A symmetry moves parameters without changing the loss. If it is continuous, with generator Q (the velocity
:math:`d\theta/ds`), theorem 6 of arXiv 2605.21933 says that :math:`\phi=(\eta/4)\|U\|^2` changes along it by

.. math:: d\phi/ds = -(\eta/4)\,U^T(J_Q+J_Q^T)U

if U is the gradient of the loss: a force acts unless this vanishes, as it does for rotations. Theorem 7: phi
is constant along an orthogonal symmetry.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thermoopt.irreversibility.fields import FlatField, Point, UpdateField, check_eta

__all__ = ["Symmetry", "SymmetryBreaking", "permutation", "rescaling", "rotation", "symmetry_breaking"]

BROKEN = 1e-9
"""Fraction of its largest possible value from which theorem 6's form counts as different from 0: rounding in
float64 leaves about 1e-15 times the square root of the number of parameters."""

Parameters = Mapping[str, Tensor]


@dataclass(frozen=True)
class Symmetry:
    """A continuous symmetry.

    Attributes:
        generator: Q, from parameters to their velocity at s = 0.
        act: from parameters and s to the moved parameters.
    """

    generator: Callable[[Parameters], dict[str, Tensor]]
    act: Callable[[Parameters, float], dict[str, Tensor]]


@dataclass(frozen=True)
class SymmetryBreaking:
    """Theorem 6 applied to one symmetry at one point.

    Attributes:
        value: Uᵀ(J_Q + J_Qᵀ)U, in units of ‖U‖².
        slope: dφ/ds = -(eta/4)·value, the theorem's prediction for a gradient.
        measured: ⟨∇φ, Q⟩, the actual dφ/ds for the given update.
        mismatch: |⟨U, Q⟩|/(‖U‖‖Q‖): 0 if U is the gradient of a loss with symmetry Q.
        broken: whether ``value`` differs from 0 by more than rounding.
        cost: number of evaluations of U, and of products with its Jacobian.
    """

    value: float
    slope: float
    measured: float
    mismatch: float
    broken: bool
    cost: tuple[int, int]


def symmetry_breaking(
    generator: Symmetry | Callable[[Any], Any], update: Callable[[Any], Any], params: Point, eta: float
) -> SymmetryBreaking:
    """Evaluate theorem 6's condition: whether the emergent force acts along a symmetry.

    Args:
        generator: Q, from parameters to their velocity along the symmetry, in differentiable operations; or a
            :class:`Symmetry`.
        update, params, eta: as in :func:`thermoopt.irreversibility.phi_de`. The theorem holds for U the
            gradient of the loss; for another U compare ``measured``. Inner products use no metric.

    Raises:
        TypeError, ValueError: naming the argument, for another structure or non-finite values.
    """
    eta = check_eta(eta)
    field = FlatField(update.function if isinstance(update, UpdateField) else update, params)
    moves = generator.generator if isinstance(generator, Symmetry) else generator
    velocity = FlatField(moves, params)
    now = field(field.theta)
    start = field.theta.clone().requires_grad_(True)
    q = velocity.flat(moves(velocity.shaped(start)), "generator's value")
    along = torch.zeros_like(now)
    if q.requires_grad:
        (along,) = torch.autograd.grad(q, start, now)
    q = q.detach()
    value = 2 * float(now @ along)
    _, pulled = field.pullback(field.theta, now)
    size = float(now.norm())
    most = 2 * size * float(along.norm())
    lengths = size * float(q.norm())
    return SymmetryBreaking(
        value=value,
        slope=-eta / 4 * value,
        measured=eta / 2 * float(pulled @ q),
        mismatch=abs(float(now @ q)) / lengths if lengths else math.nan,
        broken=abs(value) > BROKEN * most,
        cost=(field.evaluations, field.products),
    )


def rescaling(first: Sequence[str], second: Sequence[str], *, unit: int | None = None) -> Symmetry:
    r"""Return the rescaling :math:`(W_1,W_2)\to(e^sW_1,e^{-s}W_2)`, Q = (W₁, -W₂).

    It is a symmetry of two layers with nothing, or a positively homogeneous function like ReLU, between them.
    Along it :math:`\phi(c)=(\eta/4)(\|U_1\|^2/c^2+c^2\|U_2\|^2)`: a force towards ‖U₁‖ = ‖U₂‖.

    Args:
        first: names of the parameters leading into the hidden layer: its weight and bias.
        second: names of the parameters leading out of it: the next weight, without the bias.
        unit: index of one hidden unit to rescale alone: rows of ``first``, columns of ``second``.

    Raises:
        ValueError: if a name is in both; on use, KeyError for a name that the parameters lack.
    """
    _apart(first, second)

    def weights(params: Parameters, name: str, sign: float) -> Tensor:
        mask = torch.zeros_like(params[name])
        if unit is None:
            mask += sign
        elif name in first:
            mask[unit] = sign
        else:
            mask[:, unit] = sign
        return mask

    def exponents(params: Parameters) -> dict[str, Tensor]:
        _known(params, (*first, *second))
        signs = {**dict.fromkeys(first, 1.0), **dict.fromkeys(second, -1.0)}
        return {name: weights(params, name, signs.get(name, 0.0)) for name in signs}

    def generator(params: Parameters) -> dict[str, Tensor]:
        moved = exponents(params)
        return {name: p * moved[name] if name in moved else torch.zeros_like(p) for name, p in params.items()}

    def act(params: Parameters, s: float) -> dict[str, Tensor]:
        moved = exponents(params)
        return {name: p * (s * moved[name]).exp() if name in moved else p for name, p in params.items()}

    return Symmetry(generator, act)


def rotation(first: Sequence[str], second: Sequence[str], i: int, j: int) -> Symmetry:
    r"""Return the rotation of two hidden units, :math:`(W_1,W_2)\to(RW_1,W_2R^T)`, by s in their plane.

    It is a symmetry of two layers with nothing between them, and orthogonal: phi of SGD does not change.

    Args:
        first: names of the parameters leading into the hidden layer, whose rows are rotated.
        second: names of the parameters leading out of it, whose columns are rotated.
        i, j: the two hidden units.

    Raises:
        ValueError: if a name is in both, or the units are the same; on use, KeyError for a name that the
            parameters lack.
    """
    _apart(first, second)
    if i == j:
        raise ValueError(f"j must be another hidden unit than i, got {j!r} for both")

    def turned(w: Tensor, c: float, s: float) -> Tensor:
        """Return the matrix with rows i and j rotated; differentiable."""
        rows = list(w.unbind(0))
        rows[i], rows[j] = c * w[i] - s * w[j], s * w[i] + c * w[j]
        return torch.stack(rows)

    def spun(w: Tensor) -> Tensor:
        rows = [torch.zeros_like(row) for row in w.unbind(0)]
        rows[i], rows[j] = -w[j], w[i].clone()
        return torch.stack(rows)

    def over(params: Parameters, change: Callable[[Tensor], Tensor], rest: Callable[[Tensor], Tensor]) -> Any:
        _known(params, (*first, *second))
        out = {}
        for name, p in params.items():
            if name in first:
                out[name] = change(p)
            else:
                out[name] = change(p.transpose(0, 1)).transpose(0, 1) if name in second else rest(p)
        return out

    def act(params: Parameters, s: float) -> dict[str, Tensor]:
        return over(params, lambda w: turned(w, math.cos(s), math.sin(s)), lambda p: p)

    return Symmetry(lambda params: over(params, spun, torch.zeros_like), act)


def permutation(
    first: Sequence[str], second: Sequence[str], order: Sequence[int], signs: Sequence[int] | None = None
) -> Callable[[Parameters], dict[str, Tensor]]:
    """Return a permutation of hidden units, optionally with sign changes: from parameters to parameters.

    It is discrete and has no generator. Without signs it is a symmetry of any two layers; with signs, of two
    layers with nothing or an odd function like tanh between them. It is orthogonal and acts element by
    element, so it changes phi neither of SGD nor of Adam.

    Args:
        first: names of the parameters leading into the hidden layer, whose rows are reordered.
        second: names of the parameters leading out of it, whose columns are reordered.
        order: the old index of each new unit.
        signs: 1 or -1 for each new unit; None for 1.

    Raises:
        ValueError: if ``order`` is not a permutation, ``signs`` has another length or other values, or a name
            is in both; on use, KeyError for a name that the parameters lack.
    """
    _apart(first, second)
    order = list(order)
    if sorted(order) != list(range(len(order))):
        raise ValueError(f"order must be a permutation of 0 to {len(order) - 1}, got {order!r}")
    signs = [1] * len(order) if signs is None else list(signs)
    if len(signs) != len(order) or any(sign not in (1, -1) for sign in signs):
        raise ValueError(f"signs must be {len(order)} values of 1 or -1, got {signs!r}")

    def act(params: Parameters) -> dict[str, Tensor]:
        _known(params, (*first, *second))
        out = dict(params)
        for name in (*first, *second):
            p = params[name]
            factor = torch.tensor(signs, dtype=p.dtype, device=p.device)
            if name in first:
                out[name] = p[order] * factor.view(-1, *[1] * (p.dim() - 1))
            else:
                out[name] = p[:, order] * factor.view(-1, *[1] * (p.dim() - 2))
        return out

    return act


def _apart(first: Sequence[str], second: Sequence[str]) -> None:
    for name, value in (("first", first), ("second", second)):
        if isinstance(value, str):
            raise TypeError(f"{name} must be a sequence of names, got {value!r}")
    both = [name for name in first if name in second]
    if both:
        raise ValueError(f"first and second must not share a name, got {both[0]!r} in both")


def _known(params: Parameters, names: Sequence[str]) -> None:
    for name in names:
        if name not in params:
            raise KeyError(f"no parameter named {name!r}; there are {', '.join(params)}")
