"""The thermostat: moves learning rates to where a set-point law wants them."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thermoopt.account.reading import Quantities, Reading
from thermoopt.controllers.base import Action, Controller, Scales, Start
from thermoopt.controllers.lever import Bounds, Lever
from thermoopt.controllers.setpoints import LAWS, Law, Signals, Wanted
from thermoopt.controllers.units import layer_units
from thermoopt.physics.travel import Weights

__all__ = ["Thermostat"]

EFOLDS = 100.0
"""A rate may grow by e in T/100 steps. Measured by this project: with T/50 a rate that must grow 100-fold
(linear regression on unscaled features) comes too late; what limits the others is the law, not this."""

TOLERANCE = 0.01
"""Relative change of a target below which nothing is done: far below what a loss can tell."""

EQUILIBRIUM_RMS = math.sqrt((1 - 0.9) / (1 + 0.9))
"""Rms of Adam's update in pure noise at beta1 = 0.9: what a foreign optimizer's update is compared with."""


class Thermostat(Controller):
    """Drives the learning rate of all groups, or of each, to a set-point.

    Laws in metric ``"rms"`` speak of Adam's update, whose elements are of unit size (0.23 rms in pure noise
    at beta1 = 0.9). For an optimizer without Adam's moments lr is divided by the measured size of its update
    over that: the same displacement a step. That is normalised descent, and needs a cooling to come to rest.

    Args:
        setpoint: a name of :data:`thermoopt.controllers.setpoints.LAWS` (``"diffusion"``, ``"angular"``,
            ``"distance"``, ``"coherence"``, ``"polyak"``) or a function of
            :class:`~thermoopt.controllers.setpoints.Signals` that returns the factor on ``group["lr"]`` it
            wants, a :class:`~thermoopt.controllers.setpoints.Wanted`, or None for no change.
        total_steps: length of the run; None where it is not known.
        per: ``"run"``, one rate for all groups, or ``"group"``, one each.
        layers: whether layers of one group run at their own rate in metric ``"rms"``.
        lr_scale: bounds of every group's lr_scale.
        bounds: of the rate itself, in the law's metric, with slew limits, minimum number of readings and
            hold-off; None takes the default: any rate, growth by e in T/100 steps, as fast down, from the
            first reading, no hold-off.
        options: passed to the law: ``kappa``, ``k``, ``f_star``, ``r_min``.

    Raises:
        ValueError: for values out of range; the message names the argument.
        TypeError: for an option that the law does not take.
    """

    def __init__(
        self,
        setpoint: str | Callable[[Signals], Any] = "diffusion",
        *,
        total_steps: int | None = None,
        per: str = "run",
        layers: bool = True,
        lr_scale: tuple[float, float] = (0.0, math.inf),
        bounds: Bounds | None = None,
        **options: float,
    ) -> None:
        if isinstance(setpoint, str) and setpoint not in LAWS:
            raise ValueError(
                f"setpoint is {setpoint!r}; allowed are {', '.join(map(repr, LAWS))} or a function"
            )
        if not (isinstance(setpoint, str) or callable(setpoint)):
            raise TypeError(
                f"setpoint is {setpoint!r}; allowed are {', '.join(map(repr, LAWS))} or a function"
            )
        if total_steps is not None and (
            isinstance(total_steps, bool) or not (total_steps >= 1 and total_steps % 1 == 0)
        ):
            raise ValueError(f"total_steps is {total_steps!r}; allowed is None or a whole number from 1")
        if per not in ("run", "group"):
            raise ValueError(f"per is {per!r}; allowed are 'run' and 'group'")
        if not 0 <= lr_scale[0] <= lr_scale[1]:
            raise ValueError(f"lr_scale is {lr_scale!r}; allowed are bounds 0 <= lo <= hi")
        for name, value in options.items():
            if not (math.isfinite(value) and (value > 0 or name == "f_star")):
                raise ValueError(f"{name} is {value!r}; allowed are finite numbers > 0")
        inspect.signature(_law_of(setpoint).want).bind(None, **options)  # a wrong option is a TypeError here
        self._setpoint, self._law = setpoint, _law_of(setpoint)
        self._name = setpoint if isinstance(setpoint, str) else getattr(setpoint, "__name__", "function")
        self._options = options
        self._total_steps = total_steps
        self._floor = self._law.start(total_steps, **options)
        self._per, self._layers, self._lr_scale = per, layers, (float(lr_scale[0]), float(lr_scale[1]))
        slew = math.exp(EFOLDS / max(total_steps or 10_000, EFOLDS))
        self._bounds = bounds or Bounds(slew_up=slew, slew_down=slew)
        self._start: Start | None = None
        self._forget()

    def _forget(self) -> None:
        self._begun = 0
        self._known: dict[str, float] = {}
        self._levers: dict[str, Lever] = {}
        self._spread: dict[str, tuple[float, float]] = {}
        self._sizes: dict[str, float] = {}
        self._log: list[Action] = []
        self._asked: tuple[tuple[float, ...], ...] = ()
        self._answer = Scales()

    # -------------------------------------------------------------- what the measuring side asks

    @property
    def needs(self) -> frozenset[str]:
        """Sums the law lives on."""
        return self._law.needs

    @property
    def ema_steps(self) -> float | None:
        """Averages over a fortieth of the run, 5 to 50 steps: a loop must be slower than what it sees."""
        return None if self._total_steps is None else min(50.0, max(5.0, self._total_steps / 40))

    @property
    def every(self) -> int | None:
        """Steps between two readings: 200 over a run, at least every 50."""
        return None if self._total_steps is None else min(50, max(1, self._total_steps // 200))

    @property
    def log(self) -> list[Action]:
        """Every action so far."""
        return list(self._log)

    # -------------------------------------------------------------- the loop

    def attach(self, start: Start) -> None:
        """Take up the layers' units and the groups' lr.

        Raises:
            ValueError: if a group's lr is 0 and the law yields an absolute rate.
        """
        if self._law.metric == "rms":
            for name, lr in zip(start.group_names, start.lr, strict=True):
                if not lr > 0:
                    raise ValueError(
                        f"lr of group {name!r} is {lr!r} where a thermostat was attached; allowed are "
                        "numbers > 0, since an absolute rate is expressed as a factor on it"
                    )
        self._start, self._units = start, layer_units(start, self._known)
        self._known = dict(zip(start.names, self._units.layer.tolist(), strict=True))
        self._asked = ()
        self._add_levers(start)

    def _add_levers(self, start: Start) -> None:
        for name in start.group_names if self._per == "group" else ("all",):
            if name not in self._levers:
                self._levers[name] = Lever(self._bounds, self._floor)

    def update(self, reading: Reading | None, step: int) -> Scales:
        """Return the scales of the coming step, having looked at the reading if there is one."""
        if self._start is None:
            return Scales()
        self._begun = self._begun or step
        if reading is not None:
            self._size_up(reading)
            for name, lever in self._levers.items():
                self._look(name, lever, reading, step)
        rates = {name: lever.move() for name, lever in self._levers.items()}
        per_group = [
            rates.get("all", math.nan) if self._per == "run" else rates[n] for n in self._start.group_names
        ]
        return self._scales(per_group, step)

    def _look(self, name: str, lever: Lever, reading: Reading, step: int) -> None:
        mask = self._mask(name, reading)
        if not mask.any():
            return
        lever.readings += 1
        signals = self._signals(name, lever, reading, mask, step)
        wanted = self._law.want(signals, **self._options)
        if wanted is None:
            return
        rate, (lo, hi) = wanted.rate, self._reach(name)
        action = lever.aim(
            min(max(rate, lo), hi) if math.isfinite(rate) else rate,
            step,
            controller=f"Thermostat({self._name})",
            group=name,
            kind="lr",
            evidence=wanted.evidence,
            reason=wanted.reason,
            tolerance=TOLERANCE,
        )
        if action is not None:
            self._log.append(action)

    def _reach(self, name: str) -> tuple[float, float]:
        """Rates that ``lr_scale`` lets through: a target beyond them would only wind up."""
        assert self._start is not None
        lo, hi = self._lr_scale
        if self._law.metric == "lr":
            return lo, hi
        rows = zip(self._start.group_names, self._start.lr, self._start.beta2, self._units.group, strict=True)
        ones = [
            lr * (1.0 if beta2 > 0 else self._sizes.get(group, math.nan)) / unit  # the rate at lr_scale 1
            for group, lr, beta2, unit in rows
            if name in ("all", group)
        ]
        return (lo * min(ones), hi * max(ones)) if all(map(math.isfinite, ones)) else (0.0, math.inf)

    def _size_up(self, reading: Reading) -> None:
        """Compare updates of groups without Adam's moments with Adam's: a law means steps of unit size."""
        assert self._start is not None
        for group, beta2 in enumerate(self._start.beta2):
            if beta2 == 0 and group < len(reading.groups):
                q = reading.groups[group]
                size = q.update_norm / math.sqrt(max(1, q.numel)) / EQUILIBRIUM_RMS
                if math.isfinite(size) and size > 0:
                    self._sizes[self._start.group_names[group]] = size

    def _mask(self, name: str, reading: Reading) -> NDArray[np.bool_]:
        assert self._start is not None
        own = np.ones(len(reading.names), dtype=bool)
        if name != "all":
            own = reading.group_of == self._start.group_names.index(name)
        return own & reading.seen

    def _signals(
        self, name: str, lever: Lever, reading: Reading, mask: NDArray[np.bool_], step: int
    ) -> Signals:
        assert self._start is not None
        q = Quantities.of(reading.terms[:, mask].sum(axis=1))
        # a reading may be of a time before the last layers were added
        units = self._units.layer[: len(mask)][mask]
        extra: dict[str, float] = {}
        if reading.travel is not None:
            n = np.asarray(self._start.numel[: len(mask)], dtype=np.float64)[mask]
            extra["distance"] = math.sqrt((reading.travel.distance2[mask] / units**2).sum() / n.sum())
            extra["work"] = float((reading.travel.work[mask] / units).sum())
            extra["impulse"] = float(reading.travel.impulse[mask].sum())
        return Signals(
            t=step - self._begun + 1,
            total_steps=self._total_steps,
            rate=lever.value,
            floor=self._floor,
            r=q.r,
            r_error=self._error(name, q.r),
            coherence=q.coherence,
            energy_ratio=q.energy_ratio,
            gaussianity=q.gaussianity,
            sigma=q.sigma,
            lr_eff=q.lr_eff,
            loss=math.nan if reading.loss is None else reading.loss,
            **extra,
        )

    def _error(self, name: str, r: float) -> float:
        """Spread of the last readings of r: rms change from one to the next, over root 2."""
        last, square = self._spread.get(name, (r, 0.0))
        if math.isfinite(r) and math.isfinite(last):
            square = 0.8 * square + 0.2 * (r - last) ** 2
        self._spread[name] = (r if math.isfinite(r) else last, square)
        return math.sqrt(square / 2)

    def _scales(self, rates: list[float], step: int) -> Scales:
        assert self._start is not None
        state = (tuple(rates), tuple(self._sizes.values()))
        if state == self._asked and "impulse" not in self.needs:
            return self._answer  # nothing moved: most steps of a long run
        self._asked, self._answer = state, self._fresh_scales(rates, step)
        return self._answer

    def _fresh_scales(self, rates: list[float], step: int) -> Scales:
        assert self._start is not None
        lo, hi = self._lr_scale
        if self._law.metric == "lr":
            return Scales(lr=[min(max(rate, lo), hi) for rate in rates])
        rows = zip(
            rates, self._units.group, self._start.lr, self._start.beta2, self._start.group_names, strict=True
        )
        lrs = []
        for rate, unit, lr, beta2, name in rows:
            # without Adam's moments the size of an update is known from the first reading on
            size = 1.0 if beta2 > 0 else self._sizes.get(name, math.nan)
            scale = rate * unit / (lr * size)
            lrs.append(min(max(scale, lo), hi) if math.isfinite(scale) else 1.0)
        weights = self._weights(rates[0], step) if "impulse" in self.needs else None
        return Scales(lr=lrs, layers=self._units.factor if self._layers else {}, weights=weights)

    def _weights(self, rate: float, step: int) -> Weights:
        """Prodigy's: both sums forget like v, and weigh a step by how much the estimate has grown."""
        assert self._start is not None
        beta1, beta2 = self._start.beta1[0], self._start.beta2[0]
        t = step - self._begun + 1
        bias = math.sqrt(1 - beta2**t) / (1 - beta1**t)
        grown = rate / self._floor
        return Weights(keep=math.sqrt(beta2), work=grown * bias, impulse=grown)

    # -------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """Return levers, log and counters."""
        return {
            "begun": self._begun,
            "units": dict(self._known),
            "levers": {name: lever.state_dict() for name, lever in self._levers.items()},
            "spread": {name: list(pair) for name, pair in self._spread.items()},
            "sizes": dict(self._sizes),
            "log": [action.to_dict() for action in self._log],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        self._forget()
        self._begun = int(state["begun"])
        self._known.update((name, float(unit)) for name, unit in state["units"].items())
        for name, saved in state["levers"].items():
            self._levers[name] = Lever(self._bounds, self._floor)
            self._levers[name].load_state_dict(saved)
        self._spread.update((name, (float(a), float(b))) for name, (a, b) in state["spread"].items())
        self._sizes.update((name, float(size)) for name, size in state["sizes"].items())
        self._log.extend(Action.from_dict(saved) for saved in state["log"])

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and pickles keep: all but the law, which its name or function gives back."""
        return {key: value for key, value in vars(self).items() if key != "_law"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`__getstate__` gave."""
        self.__dict__.update(state)
        self._law = _law_of(self._setpoint)

    def reset(self) -> None:
        """Forget the run; units stay until the next :meth:`attach`."""
        self._forget()
        if self._start is not None:
            self._add_levers(self._start)


def _law_of(setpoint: str | Callable[..., Any]) -> Law:
    return LAWS[setpoint] if isinstance(setpoint, str) else Law(_users(setpoint), "lr")


def _users(function: Callable[..., Any]) -> Callable[..., Wanted | None]:
    """A user's function as a law: a bare number is a factor on lr."""

    @functools.wraps(function)  # with its signature, which tells the options it takes
    def want(signals: Signals, **options: float) -> Wanted | None:
        answer = function(signals, **options)
        if answer is None or isinstance(answer, Wanted):
            return answer
        return Wanted(float(answer), {"r": (signals.r, signals.r_error)}, "the user's law")

    return want
