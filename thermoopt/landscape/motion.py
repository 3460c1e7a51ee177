"""Motion in the river valley: SGD, sign and Adam with many replicas at once; means with standard errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thermoopt.landscape.river_valley import RULES, RiverValley

__all__ = ["Mean", "Motion", "average", "simulate"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Mean:
    """A mean over replicas and its standard error."""

    value: Array
    error: Array


def average(values: ArrayLike) -> Mean:
    """Return the mean over the first axis and its standard error from the spread of independent replicas.

    Args:
        values: ``[replicas, ...]``, at least two replicas. Average over steps first: values at different
            steps are not independent.

    Raises:
        ValueError: for fewer than two replicas.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim == 0 or len(values) < 2:
        raise ValueError(f"values must hold at least two replicas, got shape {values.shape}")
    return Mean(values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values)))


@dataclass(frozen=True)
class Motion:
    """The record of a simulation.

    Attributes:
        valley: the valley.
        steps: ``[k]`` steps taken at each record, starting at 0.
        x: ``[k, replicas, n]`` fast coordinates.
        y: ``[k, replicas]`` river coordinate.
    """

    valley: RiverValley
    steps: NDArray[np.int64]
    x: Array
    y: Array

    def fast_losses(self, since: int = 0) -> Mean:
        """Return each mode's loss ``[n]``, averaged over records from step ``since`` on and replicas."""
        late = self.steps >= since
        return average(self.valley.fast_losses(self.x[late], self.y[late]).mean(axis=0))

    def force(self, since: int = 0) -> Mean:
        """Return the force on the river, averaged in the same way."""
        late = self.steps >= since
        return average(self.valley.force(self.x[late], self.y[late]).mean(axis=0))

    def course(self) -> Mean:
        """Return the loss of each mode at every record, ``[k, n]``."""
        return average(self.valley.fast_losses(self.x, self.y).swapaxes(0, 1))


def simulate(
    valley: RiverValley,
    etas: ArrayLike,
    *,
    rule: str = "sgd",
    replicas: int = 1000,
    every: int = 1,
    x0: ArrayLike = 0.0,
    y0: float = 0.0,
    held: bool = True,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-12,
    seed: int = 0,
) -> Motion:
    r"""Train replicas that differ only in their noise.

    .. math:: g_x = a(y)x + s\xi,\quad g_y = \partial\ell/\partial y,\qquad \theta' = \theta - \eta\,u(g)

    with u the identity, the sign, or Adam's :math:`\hat m/(\sqrt{\hat v}+\epsilon)`.

    Args:
        valley: the valley to move in.
        etas: ``[steps]`` learning rates >= 0.
        rule: one of :data:`thermoopt.landscape.RULES`.
        replicas: number of replicas, at least 2.
        every: record every this many steps (memory: ``steps / every * replicas * (n + 1)`` float64).
        x0: initial fast coordinates: one number, ``[n]`` or ``[replicas, n]``.
        y0: initial river coordinate.
        held: keep y fixed.
        betas, eps: Adam's constants.
        seed: seed of the noise.

    Raises:
        ValueError: naming the argument, its value and what is allowed; or if the motion becomes non-finite
            because the rates are outside the stable range.
    """
    rates = np.asarray(etas, dtype=np.float64)
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(map(repr, RULES))}, got {rule!r}")
    if rates.ndim != 1 or not rates.size or not np.all(np.isfinite(rates)) or np.any(rates < 0):
        raise ValueError(f"etas must be finite numbers >= 0, got {etas!r}")
    for name, value, least in (("replicas", replicas, 2), ("every", every, 1)):
        if isinstance(value, bool) or value != int(value) or value < least:
            raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas must be two numbers >= 0 and < 1, got {betas!r}")
    rng = np.random.default_rng(seed)
    # the last coordinate is the river
    p = np.zeros((replicas, valley.modes + 1))
    p[:, :-1] = x0
    p[:, -1] = y0
    a = valley.curvature(np.full(replicas, float(y0)))
    m, v = np.zeros_like(p), np.zeros_like(p)
    g = np.zeros_like(p)
    records: list[tuple[int, Array]] = [(0, p.copy())]
    for t, eta in enumerate(rates, 1):
        x = p[:, :-1]
        if not held:
            a = valley.curvature(p[:, -1])
            g[:, -1] = -valley.force(x, p[:, -1])
        g[:, :-1] = a * x + valley.noise * rng.standard_normal(x.shape)
        if rule == "sgd":
            u = g
        elif rule == "sign":
            u = np.sign(g)
        else:
            m += (1 - betas[0]) * (g - m)
            v += (1 - betas[1]) * (g**2 - v)
            u = m / (1 - betas[0] ** t) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
        p = p - eta * u
        if t % every == 0:
            if not np.all(np.isfinite(p)):
                raise ValueError(
                    f"the motion is not finite at step {t}: eta {eta:g} is outside the stable range, below "
                    f"{valley.largest_rate(y0, rule):.6g} for the steepest wall"
                )
            records.append((t, p.copy()))
    kept = np.stack([r for _, r in records])
    return Motion(valley, np.array([t for t, _ in records]), kept[..., :-1], kept[..., -1])
