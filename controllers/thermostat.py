"""The thermostat: moves learning rates to the values that a set-point law asks for."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thermoopt.account.reading import Reading
from thermoopt.controllers.base import Action, Controller, Scales, Start
from thermoopt.controllers.cohorts import Cohort, aimed, cohort_signals, law_of, lowered, told, turning
from thermoopt.controllers.cooling import check_total_steps
from thermoopt.controllers.lever import Bounds, Lever
from thermoopt.controllers.setpoints import ANYTIME_STEPS, LAWS, Signals
from thermoopt.controllers.units import GroupRates, first_seen, layer_units
from thermoopt.physics import Standing
from thermoopt.physics.travel import Weights

__all__ = ["Thermostat"]

EFOLDS = 100.0
"""A rate may grow by e in T/100 steps. Measured by this project: with T/50 a rate that must grow 100-fold
(linear regression on unscaled features) comes too late; what limits the others is the law, not this."""

TOLERANCE = 0.01
"""Relative change of a target below which nothing is done: far below what a loss can resolve."""

FORGET = 0.999
"""Used as beta2 for an optimizer without one: Adam's default."""

LATE_WARMUP = 0.1
"""Fraction of the run over which layers that join during the run warm up, as in the presets."""


class Thermostat(Controller):
    """A controller that drives the learning rate of all groups together, or of each, to a set-point.

    Laws in metric ``"rms"`` assume Adam's update, whose elements are of unit size (0.23 rms in pure noise at
    beta1 = 0.9). For an optimizer without Adam's moments, lr is divided by the measured size of its update
    over Adam's, which gives the same displacement per step. That is normalised descent, which needs a cooling
    to come to rest.

    *Newcomers.* Layers that join during the run (added, unfrozen, enlarged, or without a gradient until then)
    have a separate rate, with the law's start, their own time and units, and a warm-up over a tenth of the
    run. Layers that have never had a gradient stay at the first step of that warm-up.

    *Reverse gear.* A rate is lowered when gradient noise jumps, and when half of a reported loss's progress
    is lost again (:mod:`thermoopt.controllers.gear`); the law's set-point is lowered with it.

    *Bound.* With the reverse gear, no layer may move by more than a quarter of max(its rms, its unit) per
    step: the rate is lowered, below the lowest ``lr_scale`` if need be, and the log says so. Until the first
    reading, Adam's update is taken to be of unit size; other optimizers are not bounded until then.

    *Outside schedules* multiply. If one raises ``group["lr"]`` above its initial value, an absolute rate is
    divided by the highest factor so far: an outside schedule can lower a rate but not overheat it.

    Args:
        setpoint: a name of :data:`thermoopt.controllers.setpoints.LAWS` (``"driven_diffusion"``,
            ``"bounded_diffusion"``, ``"diffusion"``, ``"angular"``, ``"distance"``, ``"coherence"``,
            ``"polyak"``) or a function of
            :class:`~thermoopt.controllers.setpoints.Signals` that returns the wanted factor on
            ``group["lr"]``, a :class:`~thermoopt.controllers.setpoints.Wanted`, or None for no change.
        total_steps: length of the run; None if unknown.
        per: ``"run"`` for one rate for all groups, or ``"group"`` for one rate per group.
        layers: whether the layers of a group have separate rates in metric ``"rms"``.
        lr_scale: bounds of every group's lr_scale.
        bounds: bounds of the rate itself, in the law's metric, with slew limits, minimum number of readings
            and hold-off. None uses the default: any rate, changing by at most a factor e in T/100 steps, from
            the first reading on, without hold-off.
        reverse: whether to use the reverse gear; it exists only for laws in metric ``"rms"``.
        options: options of the law: ``kappa``, ``lead``, ``half``, ``k``, ``f_star``, ``r_min``.

    Raises:
        ValueError: for values out of range; the message names the argument.
        TypeError: for an option that the law does not take.
    """

    numeric = True

    def __init__(
        self,
        setpoint: str | Callable[[Signals], Any] = "driven_diffusion",
        *,
        total_steps: int | None = None,
        per: str = "run",
        layers: bool = True,
        lr_scale: tuple[float, float] = (0.0, math.inf),
        bounds: Bounds | None = None,
        reverse: bool = True,
        **options: float,
    ) -> None:
        known = setpoint in LAWS if isinstance(setpoint, str) else callable(setpoint)
        if not known:
            allowed = f"one of {', '.join(map(repr, LAWS))} or a function"
            error = ValueError if isinstance(setpoint, str) else TypeError
            raise error(f"setpoint must be {allowed}, got {setpoint!r}")
        total_steps = check_total_steps(total_steps)
        if per not in ("run", "group"):
            raise ValueError(f"per must be 'run' or 'group', got {per!r}")
        if not 0 <= lr_scale[0] <= lr_scale[1]:
            raise ValueError(f"lr_scale must satisfy 0 <= lo <= hi, got {lr_scale!r}")
        for name, value in options.items():
            if not (math.isfinite(value) and (value > 0 or name == "f_star")):
                least = "" if name == "f_star" else " > 0"
                raise ValueError(f"{name} must be a finite number{least}, got {value!r}")
        inspect.signature(law_of(setpoint).want).bind(None, **options)  # a wrong option is a TypeError here
        self._total_steps = total_steps
        self._follow(setpoint, options)
        self._per, self._layers, self._lr_scale = per, layers, (float(lr_scale[0]), float(lr_scale[1]))
        self._reverse = bool(reverse) and self._law.metric == "rms"
        self._late_warmup = LATE_WARMUP * (total_steps or ANYTIME_STEPS)
        slew = math.exp(EFOLDS / max(total_steps or ANYTIME_STEPS, EFOLDS))
        self._bounds = bounds or Bounds(slew_up=slew, slew_down=slew)
        self._start: Start | None = None
        self._forget()

    def _follow(self, setpoint: str | Callable[[Signals], Any], options: Mapping[str, float]) -> None:
        self._setpoint, self._law, self._options = setpoint, law_of(setpoint), options
        self._name = setpoint if isinstance(setpoint, str) else getattr(setpoint, "__name__", "function")
        self._called = f"Thermostat({self._name})"
        self._floor = self._law.start(self._total_steps, **options)

    def _forget(self) -> None:
        self.told_of_schedule = False
        self._begun = self._readings = 0
        self._left = 1.0
        self._known: dict[str, tuple[float, int]] = {}  # unit and elements of each layer
        self._frozen: set[str] = set()  # of them those that were frozen when first seen
        self._cohorts: dict[str, Cohort] = {}
        self._member: dict[str, str] = {}  # cohort of each layer that joined late
        self._waiting: set[str] = set()  # layers that never had a gradient
        self._rates = GroupRates(self._law.metric, self._lr_scale, self._reverse)
        self._standing: dict[str, Standing] = {}
        self._log: list[Action] = []
        self._asked: tuple[Any, ...] = ()
        self._answer = Scales()

    @property
    def needs(self) -> frozenset[str]:
        """Sums that the law uses."""
        return self._law.needs

    @property
    def ema_steps(self) -> float | None:
        """Averages over a fortieth of the run, 5 to 50 steps: a loop must be slower than its measurements."""
        return None if self._total_steps is None else min(50.0, max(5.0, self._total_steps / 40))

    @property
    def every(self) -> int | None:
        """Steps between two readings: 200 readings per run, and at least one every 50 steps."""
        return None if self._total_steps is None else min(50, max(1, self._total_steps // 200))

    @property
    def log(self) -> list[Action]:
        """Every action so far."""
        return list(self._log)

    @property
    def standing(self) -> dict[str, Standing]:
        """State of each rate as of the last reading: wanted, held, and relative to equilibrium."""
        return dict(self._standing)

    @property
    def begun(self) -> bool:
        """Whether it has returned a step's scales."""
        return self._begun > 0

    def attach(self, start: Start) -> None:
        """Receive the layers' units and the groups' lr.

        Raises:
            ValueError: if a group's lr is 0 and the law yields an absolute rate.
        """
        if not self._known:
            self._cohorts.clear()  # those of the layers before a reset
        sizes = dict(zip(start.names, start.numel, strict=True))
        same = {name: unit for name, (unit, numel) in self._known.items() if sizes.get(name) == numel}
        if self._readings and self._law.metric == "rms":
            fresh = set(start.names) - set(same)
            self._waiting |= fresh  # until their first gradient
            self._member = {name: cohort for name, cohort in self._member.items() if name not in fresh}
        self._start, self._frozen = first_seen(start, same, self._frozen)
        self._units = layer_units(self._start, same)
        self._rates.attach(self._start, self._units, self._layers and self._law.metric == "rms")
        layers = zip(start.names, self._units.layer.tolist(), start.numel, strict=True)
        self._known = {name: (unit, numel) for name, unit, numel in layers}
        self._asked = ()
        for name in start.group_names if self._per == "group" else ("all",):
            if name not in self._cohorts:
                self._cohorts[name] = Cohort(Lever(self._bounds, self._floor), name)

    def _base(self, group: int) -> str:
        """Return the rate of a group's layers other than those that joined late."""
        assert self._start is not None
        return self._start.group_names[group] if self._per == "group" else "all"

    def see_lr(self, lr: Sequence[float]) -> None:
        """Receive each group's lr as an outside schedule set it; warn once if that raises one."""
        said = self._rates.see_lr(lr)
        if said and not self.told_of_schedule:
            self.told_of_schedule = True
            warnings.warn(said, UserWarning, stacklevel=2)

    def see_left(self, left: float) -> None:
        """Receive the share of the rate that a chain's shapes have left; below half it is not raised."""
        self._left = left

    def update(self, reading: Reading | None, step: int) -> Scales:
        """Return the scales of the next step, after processing the reading if there is one."""
        if self._start is None:
            return Scales()
        if not self._begun:
            self._begun = step
            for cohort in self._cohorts.values():
                cohort.begun = cohort.begun or step
        if reading is not None:
            self._readings += 1
            self._rates.size_up(reading)
            for name, old, new, evidence, why in self._rates.hold(reading):
                self._log.append(Action(step, self._called, name, "lr", old, new, evidence, why))
            if self._law.metric == "rms":
                self._admit(reading, step)
            for name, cohort in self._cohorts.items():
                self._look(name, cohort, reading, step)
        for cohort in self._cohorts.values():
            cohort.lever.move()
        return self._scales(step)

    def _admit(self, reading: Reading, step: int) -> None:
        """Hold back layers that had no gradient when others had, and admit those that now have one."""
        for i, name in enumerate(reading.names):
            if self._readings == 1 and not reading.seen[i]:
                self._waiting.add(name)
            elif name in self._waiting and reading.seen[i]:
                self._waiting.remove(name)
                base = self._base(int(reading.group_of[i]))
                joined = f"{base}@{step}"
                if joined not in self._cohorts:
                    lever = Lever(self._bounds, self._floor)
                    self._cohorts[joined] = Cohort(lever, base, step, late=True, walked=reading.step)
                self._member[name] = joined

    def _look(self, name: str, cohort: Cohort, reading: Reading, step: int) -> None:
        mask = self._mask(name, cohort, reading)
        if not mask.any():
            return
        units = self._units.layer[: len(mask)][mask]
        about: dict[str, Any] = {"total_steps": self._total_steps, "floor": self._floor}
        signals = cohort_signals(
            cohort, reading, mask, units, step=step, absolute=self._law.metric == "rms", **about
        )
        lever = cohort.lever
        lever.readings += 1
        wanted = self._law.want(signals, **self._options)
        asked = math.nan if wanted is None else wanted.rate * cohort.gear.cut
        turned = (0.0, "")
        if self._law.metric == "rms":
            wanted = cohort.unheated(wanted, self._left)
        if self._reverse:
            wanted = lowered(cohort, wanted, signals, step, self._total_steps or ANYTIME_STEPS)
            free = mask & ~np.isin(reading.group_of, self._rates.held_up(lever.value))
            turned = turning(reading, free, self._units.layer[: len(free)][free])
        reach = self._rates.reach(cohort.base)
        held = min(max(lever.value, reach[0]), reach[1])
        aim = aimed(lever, wanted, turned, reach)
        why = told(lever, aim, step, TOLERANCE)
        check = {"rate_wanted": (asked, math.nan), "rate_held": (held, 0.0)}
        check |= {"phi": (signals.phi, math.nan), "phi_star": (signals.phi_star, 0.0)}
        action = lever.aim(
            aim.rate,
            step,
            controller=self._called,
            group=name,
            kind="lr",
            evidence={**aim.evidence, **check, **aim.evidence},
            reason=aim.reason,
            tolerance=TOLERANCE,
        )
        self._log += [] if action is None else [action]
        rates = (asked, held, held * cohort.warmth(step, self._late_warmup))
        self._standing[name] = Standing(name, reading.step, *rates, signals.phi, signals.phi_star, why)

    def _mask(self, name: str, cohort: Cohort, reading: Reading) -> NDArray[np.bool_]:
        assert self._start is not None
        own = reading.seen.copy()
        if cohort.late or self._member or self._waiting:
            for i, layer in enumerate(reading.names):
                of = "" if layer in self._waiting else self._member.get(layer, cohort.base)
                own[i] &= of == name
        if cohort.base != "all":
            own &= reading.group_of == self._start.group_names.index(cohort.base)
        return own

    def _scales(self, step: int) -> Scales:
        assert self._start is not None
        warmup = self._late_warmup
        rates = {n: c.lever.value * c.warmth(step, warmup) for n, c in self._cohorts.items()}
        state = (*rates.values(), *self._rates.state(), len(self._waiting))
        if state != self._asked:  # else nothing moved: most steps of a long run
            self._asked, self._answer = state, self._fresh_scales(rates, self._floor / max(1.0, warmup))
        if "impulse" not in self.needs:
            return self._answer
        main = next(c for c in self._cohorts.values() if not c.late)
        return self._answer.weighed(self._weights(main.lever.value, step))

    def _fresh_scales(self, rates: Mapping[str, float], waiting: float) -> Scales:
        assert self._start is not None
        main = [rates[self._base(g)] for g in range(len(self._start.group_names))]
        lrs = [self._rates.scale(g, rate) for g, rate in enumerate(main)]
        layers = self._units.factor if self._layers and self._law.metric == "rms" else {}
        if self._member or self._waiting:
            layers = dict(layers)
            for name, group in zip(self._start.names, self._start.group_of, strict=True):
                own = rates[self._member[name]] if name in self._member else waiting
                if (name in self._member or name in self._waiting) and lrs[group] > 0:
                    factor = self._rates.scale(group, own) / lrs[group]
                    layers[name] = layers.get(name, 1.0) * factor
        return Scales(lr=lrs, layers=layers, idle=frozenset(self._waiting))

    def _weights(self, rate: float, step: int) -> Weights:
        """Prodigy's: both sums forget like v, and weigh a step by how much the estimate has grown."""
        assert self._start is not None
        beta1, beta2 = self._start.beta1[0], self._start.beta2[0] or FORGET
        t = step - self._begun + 1
        bias = math.sqrt(1 - beta2**t) / (1 - beta1**t)
        grown = rate / self._floor
        return Weights(keep=math.sqrt(beta2), work=grown * bias, impulse=grown)

    # -------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """Return rates, gears, units, log and counters."""
        return {
            "law": self._name,
            "begun": self._begun,
            "readings": self._readings,
            "units": {name: [unit, numel] for name, (unit, numel) in self._known.items()},
            "frozen": sorted(self._frozen),
            "cohorts": {name: cohort.state_dict() for name, cohort in self._cohorts.items()},
            "member": dict(self._member),
            "waiting": sorted(self._waiting),
            "sizes": dict(self._rates.sizes),
            "peaks": dict(self._rates.peaks),
            "least": dict(self._rates.least),
            "log": [action.to_dict() for action in self._log],
            "standing": [standing.to_dict() for standing in self._standing.values()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the result of :meth:`state_dict`.

        Raises:
            ValueError: if the state is of a thermostat with another law; nothing has changed then.
        """
        if state.get("law") != self._name:
            of = f"Thermostat({state['law']!r})" if "law" in state else "Thermostat older than version 0.2"
            raise ValueError(
                f"the controller's state is that of a {of}, but this is a Thermostat({self._name!r}): their "
                "rates mean different things. Resume with the law it was saved with, or load the optimizer's "
                "state without its controller: delete 'controller' from state['param_groups'][0]['thermo']"
            )
        self._forget()
        self._begun, self._readings = int(state["begun"]), int(state["readings"])
        self._known.update((name, (float(u), int(n))) for name, (u, n) in state["units"].items())
        self._frozen.update(state.get("frozen", ()))
        for name, saved in state["cohorts"].items():
            self._cohorts[name] = Cohort.of(saved, self._bounds, self._floor)
        self._member.update(state["member"])
        self._waiting.update(state["waiting"])
        self._rates.sizes.update((name, float(size)) for name, size in state["sizes"].items())
        self._rates.peaks.update((name, float(peak)) for name, peak in state["peaks"].items())
        self._rates.read = self._readings > 0
        self._rates.least.update((name, float(scale)) for name, scale in state.get("least", {}).items())
        self._log.extend(Action.from_dict(saved) for saved in state["log"])
        for standing in map(Standing.from_dict, state.get("standing", ())):
            self._standing[standing.rate] = standing
        if self._start is not None:
            self.attach(self._start)

    def __getstate__(self) -> dict[str, Any]:
        """Return everything except the law, which is restored from its name or function."""
        return {key: value for key, value in vars(self).items() if key != "_law"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the result of :meth:`__getstate__`."""
        self.__dict__.update(state)
        self._law = law_of(self._setpoint)

    def reset(self) -> None:
        """Forget the run; until the next :meth:`attach` the layers remain the same."""
        self._forget()
        if self._start is not None:
            self.attach(self._start)
            self._known.clear()
