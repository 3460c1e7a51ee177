"""The sums that one AdamW step yields for free: their names, order and definition.

Every kernel returns them as one ``[n_tensors, len(Sum)]`` array, which all other code indexes with
:class:`Sum`.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = ["Sum"]


class Sum(IntEnum):
    r"""Columns of the reductions of one step, one row per tensor.

    Notation: the gradient ``g`` (sign flipped under ``maximize``), the parameter ``th`` *before* the step,
    the bias-corrected moments ``mh = m / (1 - beta1**t)`` and ``vh = v / (1 - beta2**t)`` *after* the update
    with ``g``, the preconditioner ``P = 1 / (sqrt(vh) + eps)`` and the update direction ``U = P mh``
    (no learning rate, no decay). Under ``amsgrad``, ``P`` uses the running maximum of ``v`` and everything
    else the current ``v``. Complex tensors count as their real view.

    Units: ``[L]`` is the unit of the loss, ``[th]`` that of a parameter; ``U`` and ``P g`` have neither.
    """

    A = 0
    """``<g, U>``, signed, [L/th]: entropy production is lr * A."""
    B = 1
    """``sum g**2 / (sqrt(vh) + eps)``, [L/th]."""
    UU = 2
    """``||U||**2``, no unit."""
    TU = 3
    """``<th, U>``, signed, [th]."""
    TT = 4
    """``||th||**2``, ``[th**2]``."""
    MU = 5
    """``<mh, U>``, [L/th]."""
    SV = 6
    """``sum vh / (sqrt(vh) + eps)``, [L/th]."""
    GG = 7
    """``||g||**2``, ``[L**2/th**2]``."""
    GT = 8
    """``<g, th>``, signed, [L]."""
    V = 9
    """sum vh, ``[L**2/th**2]``."""
    M2 = 10
    """``sum mh**2``, ``[L**2/th**2]``."""
    C = 11
    """``sum g**2 / (vh + eps**2)``, no unit: d times the present over the remembered energy."""
    N1 = 12
    """``sum |g| / (sqrt(vh) + eps)``, no unit: sqrt(2/pi) * d for Gaussian gradients."""
    D = 13
    """number of elements with vh > 0: an embedding row that was never used does not count."""
