"""Cooling: the feed-forward shape of the learning rate over a run."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

from thermoopt.account.reading import Reading
from thermoopt.controllers.base import Controller, Scales, Start

__all__ = ["SHAPES", "Cooling", "cooling_factor"]

OUTSIDE = 0.02
"""Relative change of a group's lr from which an outside schedule is assumed: above rounding."""

TAIL = 0.2
"""Fraction of the run for the ``wsd`` tail, the most common length with 1 - sqrt (arXiv 2405.18392)."""


HELD = 0.5
"""Fraction of the run after warm-up that ``trapezoid`` holds. Measured by this project on 31 small workloads
under ``autotune``: geometric mean 1.5 % below linear's, 16 better and 9 worse by 1 %; longer overheats
tables."""


def _trapezoid(u: float) -> float:
    return min(1.0, (1 - u) / (1 - HELD))


def _wsd(u: float) -> float:
    return 1.0 if u <= 1 - TAIL else 1 - math.sqrt((u - (1 - TAIL)) / TAIL)


SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda u: 1.0,
    "linear": lambda u: 1 - u,
    "cosine": lambda u: (1 + math.cos(math.pi * u)) / 2,
    "trapezoid": _trapezoid,
    "wsd": _wsd,
}
"""Shapes as functions of u, the completed fraction of the run after warm-up, starting from 1 at u = 0.
``linear`` falls to zero (arXiv 2502.15938); ``trapezoid`` is min(1, 2 (1 - u)); ``wsd`` is constant and ends
with 1 - sqrt (arXiv 2405.18392)."""


def cooling_factor(
    step: int, *, total_steps: int | None, shape: str, warmup_steps: int, floor: float, rate: float
) -> float:
    r"""Return the factor on the learning rate of one step.

    Warm-up is linear, ``step / warmup_steps``; then ``floor + (1 - floor) * s`` with s one of
    :data:`SHAPES` at :math:`u = (\mathrm{step}-1-\mathrm{warmup})/(\mathrm{total}-\mathrm{warmup})`, clipped
    to [0, 1], or the 1/t law

    .. math:: s = 1/(1 + \mathrm{rate}\cdot t),\qquad t = \mathrm{step}-1-\mathrm{warmup}

    which is greedy annealing of one valley mode of curvature a, :math:`1/\eta_t = 1/\eta_0 + a t`, with
    rate = :math:`a\eta_0` (arXiv 2505.10559, where the first, greedy step to half the rate is in
    :math:`\eta_0`).

    Args:
        step: number of the step, counted from 1.
        total_steps: length of the run; None for a constant amplitude.
        shape: a name from :data:`SHAPES`, or ``"inverse_time"``.
        warmup_steps: steps of the warm-up.
        floor: final value of the shape.
        rate: decay per step for ``"inverse_time"``.
    """
    if step <= warmup_steps:
        return step / warmup_steps
    t = step - 1 - warmup_steps
    if shape == "inverse_time":
        s = 1 / (1 + rate * t)
    elif total_steps is None:
        s = 1.0
    else:
        s = SHAPES[shape](min(1.0, max(0.0, t / max(1, total_steps - warmup_steps))))
    return floor + (1 - floor) * s


def check_total_steps(total_steps: Any) -> int | None:
    """Return the length of a run as a plain int, whatever kind of whole number it is, or None.

    Raises:
        TypeError, ValueError: naming ``total_steps``, unless it is None or an integer >= 1.
    """
    if total_steps is None:
        return None
    if not isinstance(total_steps, Real):
        raise TypeError(f"total_steps must be None or an integer >= 1, got {total_steps!r}")
    whole = math.isfinite(total_steps) and total_steps % 1 == 0 and not isinstance(total_steps, bool)
    if not whole or total_steps < 1:
        raise ValueError(f"total_steps must be None or an integer >= 1, got {total_steps!r}")
    return int(float(total_steps))


class Cooling(Controller):
    """A controller that shapes the learning rate over the run, as a factor on every group's lr_scale.

    The amplitude comes from another controller or the user. After ``total_steps`` the factor keeps its final
    value. Without ``total_steps`` the run has no fixed end: the factor is constant until :meth:`cool_now`
    starts the quench.

    Args:
        total_steps: length of the run in optimizer steps; None if the run has no fixed end. Shapes other than
            ``"constant"`` and ``"inverse_time"`` have no effect without it.
        shape: ``"constant"``, ``"linear"``, ``"cosine"``, ``"trapezoid"``, ``"wsd"`` or ``"inverse_time"``.
        warmup: number of steps, at least 1, or a fraction of ``total_steps`` below 1; 0 for none. None uses
            5 % of ``total_steps`` (as in this project's measurements of laws), and 0 without ``total_steps``.
        floor: final factor, in [0, 1].
        rate: dimensionless decay per step for ``"inverse_time"``, curvature times initial lr, > 0.

    Raises:
        ValueError: for values out of range; the message names the argument.
    """

    numeric = True

    def __init__(
        self,
        total_steps: int | None,
        shape: str = "linear",
        warmup: float | None = None,
        *,
        floor: float = 0.0,
        rate: float | None = None,
    ) -> None:
        names = [*SHAPES, "inverse_time"]
        if shape not in names:
            raise ValueError(f"shape must be one of {', '.join(map(repr, names))}, got {shape!r}")
        total_steps = check_total_steps(total_steps)
        if not 0 <= floor <= 1:
            raise ValueError(f"floor must be a number from 0 to 1, got {floor!r}")
        if (shape == "inverse_time") != (rate is not None) or (rate is not None and not rate > 0):
            raise ValueError(
                f"rate must be a number > 0 with shape 'inverse_time' and None with any other, got {rate!r}"
            )
        if warmup is None:
            warmup = 0 if total_steps is None else round(0.05 * total_steps)
        share = 0 < warmup < 1
        if warmup < 0 or (share and total_steps is None) or (not share and warmup != int(warmup)):
            raise ValueError(
                f"warmup must be a whole number of steps, or a share of total_steps below 1, got {warmup!r}"
            )
        # in a run of a few steps the first must already move
        warmup_steps = round(warmup * total_steps) if share and total_steps is not None else int(warmup)
        if total_steps is not None and warmup_steps > total_steps:
            raise ValueError(f"warmup must be at most total_steps = {total_steps}, got {warmup!r}")
        self._fixed: dict[str, Any] = {
            "total_steps": total_steps,
            "shape": shape,
            "warmup_steps": warmup_steps,
            "floor": floor,
            "rate": rate or 0.0,
        }
        self._lr: tuple[float, ...] = ()
        self._step = self._quench_from = self._quench_steps = 0
        self.told_of_schedule = False

    @property
    def length(self) -> int | None:
        """Step at which the shape or a quench ends, the earlier one; None where there is neither."""
        cools = self._fixed["shape"] not in ("constant", "inverse_time")
        end = self._fixed["total_steps"] if cools else None
        quenched = self._quench_from + self._quench_steps - 1 if self._quench_steps else None
        return min((step for step in (end, quenched) if step is not None), default=None)

    @property
    def begun(self) -> bool:
        """Whether it has returned a step's factor."""
        return self._step > 0

    def attach(self, start: Start) -> None:
        """Remember the groups' lr, to detect an outside schedule."""
        self._lr = start.lr

    def see_lr(self, lr: Sequence[float]) -> None:
        """Warn, once per run, if an outside schedule changes the lr: the two multiply."""
        if self._fixed["shape"] == "constant" or self.told_of_schedule or len(lr) != len(self._lr):
            return
        for now, base in zip(lr, self._lr, strict=True):
            if base and math.isfinite(now) and abs(now - base) > OUTSIDE * base:
                self.told_of_schedule = True
                warnings.warn(
                    f"group['lr'] went from {base:g} to {now:g}: an outside schedule multiplies with the "
                    f"controller's cooling ({self._fixed['shape']!r}). Remove the scheduler, or create the "
                    "controller with shape='constant'",
                    UserWarning,
                    stacklevel=2,
                )
                return

    def update(self, reading: Reading | None, step: int) -> Scales:
        """Return the factor of the next step for all groups; readings are ignored."""
        self._step = step
        total = self._fixed["total_steps"]
        if total is not None and step == total + 2 and self._fixed["shape"] != "constant":
            end = self._fixed["floor"]
            warnings.warn(
                f"step {step - 1} is beyond total_steps = {total}: the cooling has ended, and lr stays at "
                f"{end:g} times its amplitude. Create the controller with the length of the whole run",
                UserWarning,
                stacklevel=2,
            )
        return Scales(lr=self._factor())

    def _factor(self) -> float:
        factor = cooling_factor(self._step, **self._fixed)
        if self._quench_steps and self._step >= self._quench_from:
            done = min(1.0, (self._step - self._quench_from) / self._quench_steps)
            factor *= self._fixed["floor"] + (1 - self._fixed["floor"]) * (1 - math.sqrt(done))
        return factor

    @property
    def left(self) -> float:
        """The factor of the last step, or 1 in the warm-up."""
        return self._factor() if self._step > self._fixed["warmup_steps"] else 1.0

    def cool_now(self, steps: int) -> None:
        """Start the quench with the next step: 1 - sqrt, down to the floor in ``steps`` steps.

        Raises:
            ValueError: if ``steps`` is below 1 or a quench is in progress.
        """
        if isinstance(steps, bool) or steps < 1:
            raise ValueError(f"steps must be an integer >= 1, got {steps!r}")
        if self._quench_steps:
            raise ValueError(
                f"cool_now was called already: a quench of {self._quench_steps} steps is under way since "
                f"step {self._quench_from}"
            )
        self._quench_from, self._quench_steps = self._step + 1, int(steps)

    def state_dict(self) -> dict[str, Any]:
        """Return the step and the quench."""
        return {"step": self._step, "quench_from": self._quench_from, "quench_steps": self._quench_steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load step and quench."""
        self._step, self._quench_from = int(state["step"]), int(state["quench_from"])
        self._quench_steps = int(state["quench_steps"])

    def reset(self) -> None:
        """Forget the run."""
        self._step = self._quench_from = self._quench_steps = 0
        self.told_of_schedule = False
