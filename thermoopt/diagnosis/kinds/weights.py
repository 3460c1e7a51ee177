"""Kinds of finding about weight decay."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from thermoopt.diagnosis.evidence import Array, Evidence, median
from thermoopt.diagnosis.finding import Finding, two_digits
from thermoopt.physics import ANGULAR_BOUND, FREE_FALL, NU, confined_memory, norm_forecast

__all__ = ["weight_decay_collapse", "weight_decay_irrelevant"]

SUSTAINED = 5
"""Successive readings of a layer needed for HIGH, one full averaging time; three for MEDIUM. Measured: at
most two in healthy runs."""

FORGETFUL = 100.0
"""Time 1/(lr decay), in steps, below which decay erases weights while momentum (10 steps) still builds them:
decay should act ten times more slowly (theory, section 4). Measured: at least 330 in healthy runs."""

HELD = 0.125
"""Decay times the rms of weights from which decay holds down a layer that has grown: it then takes an eighth
of the largest step that Adam takes. Derived: in pure noise it is sqrt(1/2M) at a memory of M steps, 0.125 at
32. Measured: 0.065 in points laid out well in a plane (M = 53), 0.65 with ten times their decay, which costs
13 %; 0.19 (M = 33) and 0.38 (M = 10) in a regression to which it costs more."""

ROUNDING = 0.99
"""Factor on a memory to which a controller may have raised decay: less than that is not the controller's."""

IRRELEVANT = 0.01
"""Sum of lr times decay below which decay removed less than 1 % of any weight."""


def weight_decay_collapse(run: Evidence) -> Finding | None:
    r"""Decay removes weights faster than gradients restore them.

    By the norm balance :math:`\|\theta'\|^2 = \alpha^2\|\theta\|^2 + S`, a matrix collapses while its norm is
    forecast to fall below :data:`~thermoopt.physics.NU` of its initial value, decay removes more than twice
    the source (free fall above :data:`~thermoopt.physics.FREE_FALL`; or the norm is that small already and
    not rising), and the angular step at the forecast is above :data:`~thermoopt.physics.ANGULAR_BOUND`. A
    negative source is due to the gradient and does not count. Null: free fall is 0 at equilibrium; the
    forecast of a converged run with tiny decay is its present norm, and the angular step of a scale-invariant
    layer is small; a run whose length is known is forecast to its end at most. HIGH for :data:`SUSTAINED`
    successive readings that reach into the second half of the run, MEDIUM for three; HIGH also if decay
    erases a layer of any dimension within :data:`FORGETFUL` steps and has done so for as long, while its norm
    is no larger than at the start or decay holds it down (:data:`HELD`): a larger one shows that gradients
    restore what decay takes. In a run of known length that time is at most the memory to which a controller
    confines weights that are no longer driven (:func:`~thermoopt.physics.confined_memory`, 60 to 100 steps in
    runs shorter than 830).
    """
    if not run.enough:
        return None
    m = run.matrix
    with np.errstate(divide="ignore", invalid="ignore"):
        norm, forecast = run.layers("param_norm")[:, m], run.layers("norm_forecast")[:, m]
        fall, angular = run.layers("free_fall")[:, m], run.layers("angular_step")[:, m]
        small = norm < NU * run.start[m]
        forecast = np.maximum(forecast, _at_the_end(run, norm, fall, m))
        falls = ((fall > FREE_FALL) & (fall <= 1)) | (small & (fall >= 0) & (fall <= 1))
        falls &= (forecast < NU * run.start[m]) & (angular * norm / forecast > ANGULAR_BOUND)
        rate = run.layers("lr_eff") * run.layers("wd_eff")
    length = _longest(falls)
    names = np.array(run.names)[m]
    # whatever its dimensions: a constant of physics may be a scalar
    erased = _long_enough(run, rate)
    collapsing = length >= 3
    if collapsing.any():
        worst = int(np.argmax(np.where(collapsing, length, 0)))
        last = int(np.flatnonzero(falls[:, worst])[-1])
        start = run.start[m][worst]
        with np.errstate(divide="ignore", invalid="ignore"):
            excess = run.layers("wd_balance")[last, m][worst]
        now, ahead = norm[last, worst] / start, forecast[last, worst] / start
        # lambda_new = S / (2 lr nu**2 ||theta_0||**2), as a factor on the present one
        factor = excess * NU**2 / now**2
        layers = tuple(names[collapsing])
        return Finding(
            "weight_decay_collapse",
            "HIGH" if length.max() >= SUSTAINED or (erased[m] & collapsing).any() else "MEDIUM",
            _fall(str(names[worst]), float(excess), float(now), float(ahead)),
            f"Lower weight decay by a factor of about {two_digits(max(factor, 1.5))}."
            if math.isfinite(factor)
            else "Set weight decay to 0 until gradients restore the norm.",
            measure="wd_balance",
            effect=float(excess),
            null=1.0,
            readings=int(length.max()),
            layers=layers,
            layer_type=run.type_of(layers),
        )
    if erased.any():
        tau = 1 / float(np.nanmax(rate[run.layers_late][:, erased]))
        layers = run.select(erased)
        return Finding(
            "weight_decay_collapse",
            "HIGH",
            f"decay erases a weight within 1/(lr * weight decay) = {tau:.3g} steps; momentum alone needs 10 "
            "to build it.",
            f"Lower weight decay by a factor of {two_digits(10 * FORGETFUL / tau)} or more.",
            measure="1/(lr decay)",
            effect=tau,
            null=math.inf,
            readings=int(run.layers_late.sum()),
            layers=layers,
            layer_type=run.type_of(layers),
        )
    return None


def _fall(name: str, excess: float, now: float, ahead: float) -> str:
    """Say where a norm is and where it is heading, as fractions of its initial value."""
    if now < NU and ahead > 0.8 * now:
        return f"decay has reduced {name} to {now:.2g} times its initial norm and keeps it there."
    takes = f"removes {two_digits(excess)} times as much of {name} as gradients restore"
    if math.isinf(excess):
        takes = f"shrinks {name}, and gradients restore nothing"
    return f"decay {takes}: its norm is at {now:.2g} times its initial value and heading for {ahead:.2g}."


def _at_the_end(run: Evidence, norm: Array, fall: Array, matrix: NDArray[np.bool_]) -> Array:
    """Return the norms to which the present balance leads by the end of the run, 0 if its length is unknown.

    A forecast looks 1/(1 - beta2) steps ahead, a thousand by default; a run that ends sooner keeps more.

    Args:
        run: the evidence.
        norm, fall: ``[m, n]`` norm and free fall at m readings of n matrices.
        matrix: ``[layers]`` which layers these are.
    """
    if run.length is None:
        return np.zeros_like(norm)
    left = np.maximum(run.length - run.layer_steps, 0.0)[:, None]
    pull = (run.layers("lr_eff") * run.layers("wd_eff"))[:, matrix]
    return np.sqrt(np.maximum(norm_forecast(norm**2, (1 - fall) * 2 * pull * norm**2, 1 - pull, left), 0.0))


def _longest(falls: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Length of each column's longest run of successive readings that ends in the second half, ``[n]``."""
    best, current = np.zeros((2, falls.shape[1]), dtype=int)
    for i, row in enumerate(falls):
        current = np.where(row, current + 1, 0)
        if i >= len(falls) // 2:
            best = np.maximum(best, current)
    return best


def _long_enough(run: Evidence, rate: Array) -> NDArray[np.bool_]:
    """Whether decay erased weights within too few steps for at least FORGETFUL steps in total, ``[n]``."""
    few = FORGETFUL if run.length is None else min(FORGETFUL, ROUNDING * confined_memory(run.length))
    norm = run.layers("param_norm")
    with np.errstate(divide="ignore", invalid="ignore"):
        held = run.layers("wd_eff") * norm / np.sqrt(run.layers("numel")) > HELD
    erases = (rate > 1 / few) & ((norm <= run.start) | held)
    return (erases * run.layer_spans[:, None]).sum(axis=0) >= FORGETFUL


def weight_decay_irrelevant(run: Evidence) -> Finding | None:
    r"""Decay that cannot have mattered: :math:`\sum\eta\lambda \ll 1`, so that removing it changes nothing.

    Always LOW: nothing is wrong with such a run, but the setting deserves no credit. No null is needed:
    :math:`1-\prod(1-\eta_t\lambda_t)` is the exact fraction of a weight that decay removed.
    """
    if not run.enough:
        return None
    rate = run.total("lr_eff") * run.total("wd_eff")
    share = float((rate * np.diff(run.steps, prepend=0)).sum())
    if not 0 < share < IRRELEVANT:
        return None
    decays = run.total("wd_eff")
    decay = median(decays[decays > 0])
    return Finding(
        "weight_decay_irrelevant",
        "LOW",
        f"weight decay of {decay:.2g} removed only {two_digits(100 * share)} % of each weight in {run.taken} "
        "steps (sum of lr * decay).",
        "It can be left out; only in a longer run would it matter.",
        measure="sum of lr * decay",
        effect=share,
        null=1.0,
        readings=run.n,
    )
