"""Cohorts: layers that joined a run together, with a rate, a time and a warm-up of their own, and its law."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thermoopt.account.reading import Quantities, Reading
from thermoopt.controllers.gear import SHARE, Gear, largest_share
from thermoopt.controllers.lever import Bounds, Lever
from thermoopt.controllers.setpoints import LAWS, Law, Signals, Wanted
from thermoopt.physics import Force, Term

__all__ = [
    "Cohort",
    "aimed",
    "bounded",
    "cohort_signals",
    "law_of",
    "lowered",
    "told",
    "turning",
]

Array = NDArray[np.float64]

SLACK = 1.5
"""A distance may exceed the length of the way by so much before it counts as caused by others: averages lag
while a rate warms up, and distances come from a sample."""

QUENCHED = 0.5
"""Share of the amplitude below which a rate is not raised. A cooling alone raises r: phi* falls with the
rate at once, phi only as the momentum forgets. Measured by this project: not raising once the trapezoid
falls changed 3 of 31 development workloads, by -4 to +2 %."""


@dataclass
class Cohort:
    """One rate and what belongs to it.

    Attributes:
        lever: the rate.
        base: what it is called without the step of joining: ``"all"``, or a group's name.
        begun: step of its first update, 0 as long as there was none.
        late: whether it joined in mid-run: then it warms up by itself.
        gear: its reverse gear.
        way: sum of its steps' lengths, in the layers' units; ``walked`` is the step up to which.
        drive: the force along its motion.
        r_last, r_square: last r, and the mean square of its changes.
        work_last, work_square: last work, and the sum of squares of its changes.
    """

    lever: Lever
    base: str
    begun: int = 0
    late: bool = False
    gear: Gear = field(default_factory=Gear)
    way: float = 0.0
    walked: int = 0
    drive: Force = field(default_factory=Force)
    r_last: float = math.nan
    r_square: float = 0.0
    work_last: float = 0.0
    work_square: float = 0.0

    @property
    def rate(self) -> float:
        """What an absolute law counts from: the rate before the gear lowered it, down if on its way down."""
        return self.lever.down / self.gear.cut

    def unheated(self, wanted: Wanted | None, left: float) -> Wanted | None:
        """Keep the rate from being raised once the run's shape has left less than :data:`QUENCHED` of it.

        Args:
            wanted: the law's answer, which knows nothing of the reverse gear.
            left: share of the amplitude that the shape has left. Newcomers are still on their way.
        """
        if wanted is None or self.late or left >= QUENCHED or not wanted.rate > self.rate:
            return wanted
        evidence = {**wanted.evidence, "amplitude_left": (left, 0.0)}
        return Wanted(self.rate, evidence, f"not raised: the cooling has left {left:.2g} of the rate")

    def warmth(self, step: int, warmup: float) -> float:
        """Factor of its own warm-up, linear over ``warmup`` steps; 1 for those there from the start."""
        return min(1.0, (step - self.begun + 1) / max(1.0, warmup)) if self.late else 1.0

    def r_error(self, r: float) -> float:
        """Spread of the last readings of r: rms change from one to the next, over root 2."""
        if math.isfinite(r):
            if math.isfinite(self.r_last):
                self.r_square = 0.8 * self.r_square + 0.2 * (r - self.r_last) ** 2
            self.r_last = r
        return math.sqrt(self.r_square / 2)

    def work_error(self, work: float) -> float:
        """Return what the changes of the work since the start add up to if they are independent."""
        if math.isfinite(work):
            if math.isfinite(self.work_last):
                change = work - self.work_last
                self.work_square += change * change  # a power would raise where it overflows
            self.work_last = work
        return math.sqrt(self.work_square)

    def state_dict(self) -> dict[str, Any]:
        """Return everything in plain data."""
        return {
            "lever": self.lever.state_dict(),
            "base": self.base,
            "begun": self.begun,
            "late": self.late,
            "gear": self.gear.state_dict(),
            "way": self.way,
            "walked": self.walked,
            "force": self.drive.state(),
            "r": [None if math.isnan(self.r_last) else self.r_last, self.r_square],
            "work": [None if math.isnan(self.work_last) else self.work_last, self.work_square],
        }

    @classmethod
    def of(cls, state: Mapping[str, Any], bounds: Bounds, floor: float) -> Cohort:
        """Return the cohort that :meth:`state_dict` was of."""
        lever = Lever(bounds, floor)
        lever.load_state_dict(state["lever"])
        last, square = state["r"]
        work, changes = state.get("work", (None, 0.0))  # None: not booked by earlier versions
        return cls(
            lever,
            str(state["base"]),
            int(state["begun"]),
            bool(state["late"]),
            Gear.of(state["gear"]),
            float(state["way"]),
            int(state["walked"]),
            Force.of(state.get("force", (0.0, 0.0))),
            math.nan if last is None else float(last),
            float(square),
            math.nan if work is None else float(work),
            float(changes),
        )


def moving(terms: Array) -> Array:
    """Elements of each layer that have ever had a gradient; all where the optimizer does not tell.

    Rows of a table that are never looked up stand still: they must not dilute the distance of the others.
    """
    d, numel = terms[Term.D], terms[Term.NUMEL]
    return np.where(np.isfinite(d) & (d > 0), d, numel)


def turning(reading: Reading, mask: NDArray[np.bool_], units: Array) -> tuple[float, str]:
    """Return the largest share of its size that a layer of the mask moves by in a step, and its name."""
    t = reading.terms[:, mask]
    if not t.size:
        return 0.0, ""
    share, i = largest_share(t[Term.STEP2], t[Term.TT], moving(t), t[Term.NUMEL], units)
    return share, reading.names[int(np.flatnonzero(mask)[i])] if i >= 0 else ""


def cohort_signals(
    cohort: Cohort,
    reading: Reading,
    mask: NDArray[np.bool_],
    units: Array,
    *,
    step: int,
    total_steps: int | None,
    floor: float,
    absolute: bool = True,
) -> Signals:
    """Form what a law is told of a cohort's layers.

    The distance is the root mean square over elements that move, and no longer than the cohort's own steps
    add up to: what others did to the parameters (a checkpoint swapped in, an average copied back) is not
    booked to the rate. The rate and the set-point a law sees are those before the reverse gear lowered them.

    Args:
        cohort: its way is carried on.
        reading: the newest.
        mask: the cohort's layers among the reading's.
        units: of these.
        step: of the coming step.
        total_steps, floor: of the law.
        absolute: whether the law sets an absolute rate, not a factor on lr.
    """
    terms = reading.terms[:, mask]
    q = Quantities.of(terms.sum(axis=1))
    n = moving(terms).sum()
    stride = math.sqrt(max(0.0, float((terms[Term.STEP2] / units**2).sum())) / n) if n > 0 else math.nan
    since = cohort.walked or cohort.begun - 1
    steps = max(0, reading.step - since)
    if math.isfinite(stride):
        cohort.way += stride * steps
    cohort.walked = max(since, reading.step)
    extra: dict[str, float] = {}
    if reading.travel is not None and n > 0:
        far = math.sqrt((reading.travel.distance2[mask] / units**2).sum() / n)
        extra["distance"] = min(far, SLACK * cohort.way) if cohort.way > 0 else far
        extra["work"] = float((reading.travel.work[mask] / units).sum())
        extra["work_error"] = cohort.work_error(extra["work"])
        extra["impulse"] = float(reading.travel.impulse[mask].sum())
    # a law that scales the rate needs that which was measured
    rate = cohort.rate if absolute else cohort.lever.value / cohort.gear.cut
    return Signals(
        t=step - cohort.begun + 1,
        total_steps=total_steps,
        rate=rate,
        floor=floor,
        r=q.r,
        r_error=cohort.r_error(q.r),
        coherence=q.coherence,
        energy_ratio=q.energy_ratio,
        gaussianity=q.gaussianity,
        sigma=q.sigma,
        lr_eff=q.lr_eff,
        loss=math.nan if reading.loss is None else reading.loss,
        phi=q.phi,
        phi_star=q.phi_star,
        force=cohort.drive.book(q.sigma, q.lr_eff, steps),
        **extra,
    )


def lowered(
    cohort: Cohort, wanted: Wanted | None, signals: Signals, step: int, total_steps: int
) -> Wanted | None:
    """Return what the reverse gear makes of a law's answer.

    The law does not know that its rate was lowered: what it wants counts by what the gear has left of it.
    """
    gear, lever = cohort.gear, cohort.lever
    shift = gear.look(step, signals.t, total_steps, signals.energy_ratio, signals.coherence, signals.loss)
    if shift is not None:
        return Wanted(lever.down * shift.factor, shift.evidence, shift.reason)
    return None if wanted is None else wanted._replace(rate=wanted.rate * gear.cut)


def bounded(rate: float, wanted: Wanted | None, share: float, layer: str) -> Wanted | None:
    """Hold a rate to where no layer moves by more than :data:`SHARE` of its size a step.

    Args:
        rate: held now.
        wanted: what is asked for; None holds the rate.
        share: largest share that a layer moves by at the rate held.
        layer: which.
    """
    wanted = wanted if wanted is not None and math.isfinite(wanted.rate) else None
    asked = rate if wanted is None else wanted.rate
    if not (share > 0 and asked * share > rate * SHARE):
        return wanted
    evidence = {"turning": (share, math.nan), "turning_bound": (SHARE, 0.0)}
    reason = f"bound: {layer} would move by more than {SHARE:g} of its size per step"
    return Wanted(rate * SHARE / share, evidence, reason)


def aimed(
    lever: Lever, wanted: Wanted | None, turned: tuple[float, str], reach: tuple[float, float]
) -> Wanted:
    """Return what to aim at: a law's answer within bounds, the reason naming the one that binds.

    Args:
        lever: the rate held.
        wanted: the answer; None asks for nothing, and the rate aimed at is NaN then.
        turned: of :func:`turning`.
        reach: lowest and highest rate within the bounds of lr_scale.
    """
    aim = bounded(lever.value, wanted, *turned) or Wanted(math.nan, {}, "no signal: the law asks for nothing")
    lo, hi = max(reach[0], lever.bounds.lo), min(reach[1], lever.bounds.hi)
    if lo <= aim.rate <= hi or math.isnan(aim.rate):
        return aim
    rate = min(max(aim.rate, lo), hi)
    limit, side = ("lr_scale" if rate in reach else "bounds"), ("least" if rate == lo else "most")
    return Wanted(rate, aim.evidence, f"{aim.reason}; bound: {limit} allows at {side} {rate:.3g}")


def told(lever: Lever, aim: Wanted, step: int, tolerance: float) -> str:
    """Say why a rate is where it is: the law's reason, the bound that binds, or what it waits for."""
    far = abs(aim.rate - lever.value) > tolerance * lever.value
    if not far or not math.isfinite(aim.rate):
        return aim.reason
    if not lever.ready(step):
        return f"{aim.reason}; waits: for {lever.bounds.min_readings} readings and the hold-off"
    slew = lever.bounds.slew_up if aim.rate > lever.value else lever.bounds.slew_down
    return f"{aim.reason}; on its way, by a factor of at most {slew:.4g} per step"


def law_of(setpoint: str | Callable[..., Any]) -> Law:
    """Return a law by its name, or the user's function as one."""
    return LAWS[setpoint] if isinstance(setpoint, str) else Law(_users(setpoint), "lr")


def _users(function: Callable[..., Any]) -> Callable[..., Wanted | None]:
    """Wrap a user's function as a law; a bare number is a factor on lr."""

    @functools.wraps(function)  # with its signature, which tells the options it takes
    def want(signals: Signals, **options: float) -> Wanted | None:
        answer = function(signals, **options)
        if answer is None or isinstance(answer, Wanted):
            return answer
        return Wanted(float(answer), {"r": (signals.r, signals.r_error)}, "the user's law")

    return want
