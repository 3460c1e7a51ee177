"""From extensive terms to the quantities users read: ratios are formed here, after summing over layers."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from thermoopt.physics.terms import Term

__all__ = [
    "GAUSSIAN",
    "LR",
    "LR_TIMES_D",
    "NO_LR",
    "QUANTITIES",
    "R_IE_CAP",
    "check_quantity",
    "dispersion",
    "quantities",
]

Array = NDArray[np.float64]

GAUSSIAN = float(np.sqrt(2 / np.pi))
"""E|x| of a standard normal: the value of ``gaussianity`` for Gaussian gradients."""


R_IE_CAP = 1e3
"""Largest ``R_ie`` reported: beyond a thousand times the work, the exact ratio tells nothing more."""


UNDEFINED_SIGMAS = 2.0
"""``R_ie`` is undefined while d_eS lies within two standard errors of 0 (the usual 95 % interval)."""

COSINE_ROUNDING = 1e-3
"""Excess of a cosine over 1 that counts as rounding: sums in float32 and records are exact to 1e-5."""


LR = "lr"
"""What ``lr_eff`` is for most optimizers: their lr, with a controller's factors."""

LR_TIMES_D = "lr times d"
"""What it is where an optimizer finds a factor for its lr by itself (D-Adaptation's and Prodigy's d)."""

NO_LR = "none"
"""It is 1 where an optimizer steps at a rate of its own and holds no lr."""


QUANTITIES = (
    "sigma",
    "sigma_sgd",
    "d_eS",
    "d_iS",
    "d_iS_noise",
    "d_iS_momentum",
    "d_iS_wd",
    "R_ie",
    "phi",
    "phi_star",
    "r",
    "coherence",
    "energy_ratio",
    "gaussianity",
    "grad_norm",
    "param_norm",
    "update_norm",
    "grad_param_ratio",
    "angular_step",
    "wd_balance",
    "free_fall",
    "norm_forecast",
    "thermal_loss",
    "rho_momentum",
    "rho",
    "distance",
    "lr_eff",
    "wd_eff",
    "numel",
)
"""Names of the quantities of a reading, in the order they are reported."""


def check_quantity(name: str) -> None:
    """Raise unless a quantity has that name.

    Raises:
        KeyError: if there is none; the message lists all names.
    """
    if name not in QUANTITIES:
        raise KeyError(f"no quantity named {name!r}; the names are {', '.join(QUANTITIES)}")


@np.errstate(all="ignore")  # values become infinite or NaN in a run that diverges
def quantities(terms: Array) -> dict[str, Array]:
    r"""Compute every quantity of a reading from extensive terms, of one layer or summed over many.

    ====================  =========================================================  ==============
    name                  formula                                                    unit
    ====================  =========================================================  ==============
    sigma                 :math:`\eta\langle g,U\rangle`                             L per step
    sigma_sgd             :math:`\eta\|g\|^2`                                        L^2/th^2
    d_eS                  :math:`\eta(\mathrm{signal}+\max(\mathrm{memory},0))`      L per step
    d_iS                  d_iS_noise + d_iS_momentum + d_iS_wd                       L per step
    R_ie                  (noise + abs momentum + abs decay) / d_eS, capped          none
    phi, phi_star         :math:`(\eta/4)\|U\|^2`, :math:`(\eta/4)\,d\,n_0(t)`       :math:`\eta`
    r                     :math:`\|U\|^2/(d\,n_0)` = coherence * energy_ratio        none
    coherence             :math:`\|U\|^2/(C\,n_0)`                                   none
    energy_ratio          C / d                                                      none
    gaussianity           :math:`\sum|g|/(\sqrt{\hat v}+\epsilon)/d`                 none
    angular_step          :math:`\eta\|U\|/\|\theta\|`                               rad per step
    wd_balance            :math:`\lambda/\lambda_{bal} = 2\eta\lambda\|\theta\|^2/S`  none
    free_fall             :math:`1 - S/(2\eta\lambda\|\theta\|^2)`                   none
    norm_forecast         root of :func:`norm_forecast` at :math:`1/(1-\beta_2)`     th
    thermal_loss          :math:`(\eta/4)B`                                          L
    rho_momentum          :math:`\langle g,Pm'\rangle/\sqrt{B\langle m',Pm'\rangle}`    none
    rho                   :math:`\langle g_t,g_{t-1}\rangle/(\|g_t\|\|g_{t-1}\|)`        none
    distance              :math:`\|\theta-\theta_0\|^2`                              th^2
    lr_eff, wd_eff        mean over elements of the effective rates                  their own
    ====================  =========================================================  ==============

    ``rho_momentum`` is the cosine between the gradient and the moment m' before the step in Adam's own
    metric. It comes for free, whereas ``rho`` costs a copy of the gradients: 0 in pure noise, positive while
    a direction lasts, negative when steps overshoot. ``rho`` and ``distance`` are NaN unless an observer
    tracks them.

    ``grad_norm``, ``param_norm`` (before the step) and ``update_norm`` are roots of averaged squares, and
    ``grad_param_ratio`` is the first over the second. The forecast looks :math:`1/(1-\beta_2)` steps ahead:
    the memory of v, and so the time for which the present source S can be trusted. ``wd_balance`` is infinite
    where there is decay but no positive source S, ``free_fall`` is NaN without decay, and ``R_ie`` is NaN
    while d_eS lies within two standard errors of 0. 0/0 is NaN everywhere; so are ``r``, ``coherence``,
    ``energy_ratio``, ``gaussianity`` and cosines of gradients so small (1e-23 in float32) that their squares
    are 0.

    Args:
        terms: ``[len(Term), ...]``.

    Returns:
        One array of shape ``[...]`` for each name of :data:`QUANTITIES`.
    """
    t = terms
    heat = t[Term.NOISE] + np.abs(t[Term.MOMENTUM]) + t[Term.WD_ABS]
    work = t[Term.D_ES]
    sure = work > UNDEFINED_SIGMAS * np.sqrt(t[Term.WORK_VAR])
    grad_norm, param_norm = np.sqrt(t[Term.GG]), np.sqrt(t[Term.TT])
    balance = np.where(
        t[Term.SOURCE] > 0,
        t[Term.PULL] / t[Term.SOURCE],
        np.where(t[Term.PULL] > 0, np.inf, np.nan),
    )
    return {
        "sigma": t[Term.SIGMA],
        "sigma_sgd": t[Term.SIGMA_SGD],
        "d_eS": work,
        "d_iS": t[Term.NOISE] + t[Term.MOMENTUM] + t[Term.WD],
        "d_iS_noise": t[Term.NOISE],
        "d_iS_momentum": t[Term.MOMENTUM],
        "d_iS_wd": t[Term.WD],
        "R_ie": np.where(sure, np.minimum(heat / work, R_IE_CAP), np.nan),
        "phi": t[Term.PHI],
        "phi_star": t[Term.PHI_STAR],
        "r": _over_null(t[Term.UU], t[Term.NULL]),
        "coherence": _over_null(t[Term.UU], t[Term.CNULL]),
        "energy_ratio": _over_null(t[Term.CNULL], t[Term.NULL]),
        "gaussianity": _over_null(t[Term.N1], t[Term.D]),
        "grad_norm": grad_norm,
        "param_norm": param_norm,
        "update_norm": np.sqrt(t[Term.UU]),
        "grad_param_ratio": grad_norm / param_norm,
        "angular_step": np.sqrt(t[Term.STEP2]) / param_norm,
        "wd_balance": balance,
        "free_fall": np.where(t[Term.PULL] > 0, 1 - t[Term.SOURCE] / t[Term.PULL], np.nan),
        "norm_forecast": np.sqrt(t[Term.FORECAST]),
        "thermal_loss": t[Term.THERMAL],
        "rho_momentum": _cosine(t[Term.GM], t[Term.B], t[Term.MM]),
        "rho": _cosine(t[Term.RHO_DOT], t[Term.RHO_NOW], t[Term.RHO_BEFORE]),
        "distance": t[Term.DISTANCE],
        "lr_eff": t[Term.LR_NUMEL] / t[Term.NUMEL],
        "wd_eff": t[Term.WD_NUMEL] / t[Term.NUMEL],
        "numel": t[Term.NUMEL],
    }


def _over_null(x: Array, null: Array) -> Array:
    """Divide by a value in pure noise; NaN where that is 0, as where squares have underflowed."""
    return np.where(null == 0, np.nan, x / null)


def _cosine(dot: Array, a2: Array, b2: Array) -> Array:
    """Cosine of two vectors; NaN where it exceeds 1 (Cauchy-Schwarz), as where squares have underflowed."""
    cosine = dot / np.sqrt(a2 * b2)
    return np.where(np.abs(cosine) <= 1 + COSINE_ROUNDING, cosine, np.nan)


def dispersion(r: Array) -> float:
    r"""Variance of the layers' entropy ratio, :math:`D = \mathrm{Var}_l(r_l)`, no unit.

    This is thermoclaw's D. There, r was sigma over 1.2 times its own running median; here it is the update's
    energy over that of pure noise (:func:`thermoopt.physics.quantities`), which is 1 at equilibrium for every
    layer, so that D = 0 where all layers are equally far from equilibrium.

    Args:
        r: ``[n_layers]``; non-finite values are left out.

    Returns:
        The population variance over the layers; NaN for fewer than two.
    """
    r = r[np.isfinite(r)]
    return float(np.var(r)) if r.size >= 2 else math.nan
