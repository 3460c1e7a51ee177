"""Collapse under weight decay, predicted from the norm balance."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim import Optimizer

from thermoopt.account.reading import Reading
from thermoopt.diagnosis.layer_rates import CoupledShare, LayerRates
from thermoopt.diagnosis.norm_forecast import CollapseAlarm, Forecast, advice, afterwards, count
from thermoopt.observer import Observer
from thermoopt.physics import ANGULAR_BOUND, AVERAGE, NU, TOLERANCE, Balance, NormMotion, Term, steps_until
from thermoopt.traits import UNKNOWN, decay_entry, group_decay

__all__ = ["CollapseDetector"]

Array = NDArray[np.float64]

EVERY = 10
"""Fewest steps between two readings that are judged: the spacing at which a history records them (five per
averaging time). With an optimizer that measures every step, closer readings would be almost the same
average."""

CONFIRM = 2
"""Consecutive readings that must show a collapse. The source of a small layer is measured with an error of
about 10 % (:data:`~thermoopt.physics.TOLERANCE`), so a layer at the limit crosses it now and then by noise
alone. One reading is enough where the norm would be lost in the meantime, or where the detector is asked so
rarely that readings are independent averages."""

READINGS = 10
"""Readings whose scatter gives the interval of a forecast: 100 steps, two averaging times."""

SURE = 3
"""Fewest readings whose scatter bounds anything: two differ by chance alone."""

WIDTH = 4.0
"""Half-width of an interval in standard deviations of those readings. Averages over 50 steps that are 10
steps apart overlap (correlations exp(-0.2 k) reduce the scatter of 3 to 10 of them to 0.5 to 0.7 of a
standard error), so this is 1.9 to 2.8 standard errors. Measured in pure noise, 40 runs each: the stationary
norm lay inside the interval after 60, 100, 300 and 1000 steps in 95, 100, 93 and 95 % of them."""


@dataclass
class _Watch:
    """State of one layer: the decay it was judged under, consecutive readings, step of its report."""

    wd: float
    streak: int = 0
    fired: bool = False
    told: int | None = None


class CollapseDetector:
    r"""A detector that reports when weight decay is about to collapse the norm of a layer.

    The rule is the barostat's. A decayed matrix collapses if its norm is forecast to fall below half of its
    initial value, decay removes more than twice what the source S restores (or the norm is that small already
    and not rising), and the matrix would turn by more than :data:`~thermoopt.physics.ANGULAR_BOUND` radians
    per step at the forecast norm: for a scale-invariant layer a shrinking norm only means a larger effective
    learning rate. Two consecutive readings must agree (:data:`CONFIRM`).

    The source depends on gradients and learning rate but not on decay, so the balance uses the weight decay
    and learning rate that ``param_groups`` hold *now*. A negative source, which healthy runs have for a
    while, counts as 0, so that the forecast is that of decay alone; it then extends no further than the
    :data:`~thermoopt.physics.AVERAGE` steps over which the source was measured. A layer that its gradient
    shrinks more than decay does is not reported.

    Decay that torch's SGD adds to the gradient is covered too (:func:`~thermoopt.physics.sgd_shrink`).
    Coupled decay of other optimizers cannot be separated from the update: :attr:`unavailable` names their
    groups, and their layers are NaN. A custom optimizer with decoupled decay declares it with
    ``decoupled_weight_decay=True`` in its groups.

    Args:
        model: the model whose parameter names to use for layers, or None.
        optimizer: the optimizer to watch. It is never modified.
        horizon: steps to forecast, at least 1; None uses the memory of Adam's second moment,
            1 / (1 - beta2), for which the present source can be trusted, or
            :data:`~thermoopt.physics.AVERAGE` for an optimizer without one. No forecast extends beyond the
            end of a run whose length is known (:attr:`.Observer.length`).
        observer: the observer whose readings to use; None creates one.

    Raises:
        TypeError, ValueError: for a horizon out of range or an observer of another optimizer.

    References:
        derived for this project from the norm balance; equilibrium: Kosson et al., arXiv 2305.17212.
    """

    def __init__(
        self,
        model: torch.nn.Module | None,
        optimizer: Optimizer,
        horizon: float | None = None,
        observer: Observer | None = None,
    ) -> None:
        if horizon is not None:
            allowed = f"horizon must be None or a number of steps >= 1, got {horizon!r}"
            if isinstance(horizon, bool) or not isinstance(horizon, (int, float)):
                raise TypeError(allowed)
            if not 1 <= horizon < math.inf:
                raise ValueError(allowed)
        if observer is not None and observer.optimizer is not optimizer:
            raise ValueError(
                "observer must be None or observe the optimizer given, got one that observes another "
                f"{type(observer.optimizer).__name__}"
            )
        self._observer = Observer(model, optimizer) if observer is None else observer
        self._optimizer = optimizer
        self._horizon = horizon
        self._birth = self._observer.steps
        # some packages keep plain numbers beside the parameters' state
        self._warm = {
            p
            for p, state in optimizer.state.items()
            if isinstance(state, Mapping) and state.get("momentum_buffer") is not None
        }
        self._alarms: list[CollapseAlarm] = []
        self._watches: dict[str, _Watch] = {}
        self._looked = -1
        self._begin(())

    def _begin(self, names: tuple[str, ...]) -> None:
        """Start over with these layers."""
        params = [p for group in self._optimizer.param_groups for p in group["params"]][: len(names)]
        self._names = names
        self._reading: Reading | None = None
        self._motions: deque[NormMotion] = deque(maxlen=READINGS)
        self._share = CoupledShare(np.array([p in self._warm for p in params], dtype=bool))
        self._judged = np.zeros(len(names), dtype=bool)
        self._reference2 = np.zeros(len(names))
        self._excess: dict[str, float] = {}

    # ---------------------------------------------------------------- what users read

    @property
    def observer(self) -> Observer:
        """The observer whose readings are judged."""
        return self._observer

    def step(self) -> dict[str, float]:
        """Judge the newest reading, if that is not done yet, and return its R_wd by layer.

        Calling it after ``optimizer.step()`` is optional: all members below judge the newest reading, too.
        """
        self._look()
        return dict(self._excess)

    @property
    def is_collapsing(self) -> bool:
        """Whether a layer has begun to collapse since this was last True.

        This is an event, not a state: True throughout the optimizer step in which it is first read, False
        from the next step on and as soon as weight decay is changed. A layer is reported again after its
        forecast has been back above half of its initial norm, or if it would still collapse under a weight
        decay changed by more than 10 %.
        """
        self._look()
        step = self._observer.steps
        news = [name for name, w in self._watches.items() if w.fired and w.told in (None, step)]
        live = self._unchanged(news)
        for name in live:
            self._watches[name].told = step
        return bool(live)

    @property
    def collapsing(self) -> list[str]:
        """Layers that are collapsing now: reported, and still forecast below half of their initial norm."""
        self._look()
        return self._unchanged([name for name, w in self._watches.items() if w.fired])

    @property
    def alarms(self) -> list[CollapseAlarm]:
        """Every layer that has begun to collapse so far, oldest first."""
        self._look()
        return list(self._alarms)

    @property
    def unavailable(self) -> dict[str, str]:
        """Groups whose decay cannot be separated from the update, by name, with the reason."""
        kind = type(self._optimizer).__name__
        return {
            str(group.get("name", f"group{i}")): (
                f"{kind} is not known to decouple its weight decay of {group_decay(group):g}"
            )
            for i, group in enumerate(self._optimizer.param_groups)
            if group_decay(group) > 0 and decay_entry(self._optimizer, group) == UNKNOWN
        }

    def forecast(self, layer: str) -> Forecast:
        """Return the forecast of a layer's norm.

        Raises:
            KeyError: if no measured layer has that name.
            ValueError: before the first reading.
        """
        self._look()
        if self._reading is None:
            raise ValueError(
                f"no forecast for layer {layer!r} yet: train until the observer has measured a step"
            )
        return self._forecasts([self._column(layer)])[0]

    def steps_to_collapse(self, layer: str | None = None) -> float:
        """Return the steps until a forecast norm is half of its initial value, infinite if it never is.

        Also infinite where the layer would turn slowly at the forecast norm, which is no collapse.

        Args:
            layer: name of the layer; None for the decayed matrix that gets there first.

        Raises:
            KeyError: if no measured layer has that name.
        """
        self._look()
        if self._reading is None:
            return math.inf
        steps = np.where(self._judged, self._until(self._rates()), np.inf)
        return float(steps.min(initial=np.inf) if layer is None else steps[self._column(layer)])

    def get_recommendations(self) -> list[str]:
        """Return, by layer type, what collapses and by how much to lower decay; then earlier collapses.

        A line begins with ``[HIGH]`` if the whole interval of a forecast lies below half of the initial norm
        and decay removes more than twice what the source restores, with ``[MEDIUM]`` if only the estimate
        does, and with ``[LOW]`` if the collapse is over or decay did not cause it.
        """
        now = self.collapsing
        lines = [
            advice(kind, self._forecasts([self._column(name) for name in layers]))
            for kind, layers in self._by_type(now).items()
        ]
        earlier: dict[tuple[int, str], list[CollapseAlarm]] = {}
        for alarm in self._alarms:
            if alarm.layer not in now:
                earlier.setdefault((alarm.step, alarm.layer_type), []).append(alarm)
        lines += [afterwards(kind, alarms) for (_, kind), alarms in earlier.items()]
        lines += [
            f"[LOW] {count(kind, len(layers))} ({layers[0]} for example) lost half of the initial norm, and "
            "gradients shrink it more than decay does: lower the learning rate rather than weight_decay."
            for kind, layers in self._by_type(self._shrunk()).items()
        ]
        lines += [f"unavailable for {name}: {why}." for name, why in self.unavailable.items()]
        return lines

    # ---------------------------------------------------------------- judging

    def _look(self) -> None:
        """Judge the newest reading unless that is done already."""
        step = self._observer.steps
        if step == self._looked:
            return
        self._looked = step
        last = None if self._reading is None else self._reading.step
        if last is not None and 0 <= step - last < EVERY:
            return
        reading = self._observer.reading
        if reading is None or reading.step == last:
            return
        if reading.names != self._names:
            self._begin(reading.names)
        self._judge(reading, max(1, reading.step - (self._birth if last is None else last)))

    def _judge(self, reading: Reading, apart: int) -> None:
        before, self._reading = self._motions[-1].norm2 if self._motions else None, reading
        starts = self._observer.start_norms
        self._reference2 = np.array([starts.get(name, 0.0) for name in self._names])
        rates = self._rates()
        motion = NormMotion.of(reading.terms, self._share.take(reading, rates, apart))
        self._motions.append(motion)
        # a layer that no longer moves keeps its averages to the last bit
        moved = np.ones(len(self._names), dtype=bool) if before is None else motion.norm2 != before
        balance = self._balance(rates)
        pairs = zip(self._names, balance.excess.tolist(), reading.seen.tolist(), strict=True)
        self._excess = {name: excess for name, excess, seen in pairs if seen}
        self._judged = reading.seen & moved & (rates.ndim >= 2) & (rates.wd > 0) & (rates.lr > 0)
        self._judged &= (balance.reference2 > 0) & np.isfinite(balance.forecast2)
        falls = self._judged & balance.falls(NU, ANGULAR_BOUND)
        falls &= self._source(motion, rates) > -balance.pull
        below = self._judged & (balance.forecast2 < NU**2 * balance.reference2)
        # under the recommended decay a norm settles at the limit itself: report only what exceeds its error
        falls &= (1 + TOLERANCE) * balance.forecast2 < NU**2 * balance.reference2
        one_is_enough = self._until(rates) < CONFIRM * max(EVERY, self._observer.measure_every)
        one_is_enough |= apart >= AVERAGE
        types = self._observer.layer_types if falls.any() else {}
        for i, name in enumerate(self._names):
            watch = self._watches.get(name)
            if watch is None or _changed(watch.wd, rates.wd[i]):
                watch = self._watches[name] = _Watch(float(rates.wd[i]))
            watch.streak = watch.streak + 1 if falls[i] else 0
            if watch.fired:
                watch.fired = bool(below[i])
            elif watch.streak >= CONFIRM or (falls[i] and one_is_enough[i]):
                watch.fired, watch.told = True, None
                forecast = self._forecasts([i])[0]
                self._alarms.append(CollapseAlarm(reading.step, name, types.get(name, "other"), forecast))

    def _rates(self) -> LayerRates:
        return LayerRates.of(self._optimizer, len(self._names))

    @staticmethod
    def _source(motion: NormMotion, rates: LayerRates) -> Array:
        return motion.source(rates.lr, rates.alpha, rates.swing)

    def _balance(self, rates: LayerRates, source: Array | None = None) -> Balance:
        """Balance of every layer at these rates; without ``source``, from the newest, clipped at 0."""
        assert self._reading is not None
        motion = self._motions[-1]
        if source is None:
            source = self._source(motion, rates)
        return Balance.at(
            motion,
            self._names,
            reference2=self._reference2,
            numel=self._reading.terms[Term.NUMEL],
            lr=rates.lr,
            alpha=rates.alpha,
            horizon=self._ahead(rates),
            source=np.maximum(source, 0.0),
        )

    def _ahead(self, rates: LayerRates) -> Array:
        """Steps to look ahead: fewer where the newest source is not positive, none beyond the run's end."""
        ahead = rates.memory if self._horizon is None else np.full(rates.lr.shape, float(self._horizon))
        if self._observer.length is not None and self._reading is not None:
            ahead = np.minimum(ahead, max(1, self._observer.length - self._reading.step))
        trusted = self._source(self._motions[-1], rates) > 0
        return np.where(trusted, ahead, np.minimum(ahead, AVERAGE))

    def _until(self, rates: LayerRates) -> Array:
        """Steps until half of the initial norm, infinite where the layer would turn slowly there."""
        balance = self._balance(rates)
        steps = steps_until(balance.norm2, balance.source, rates.alpha, NU**2 * balance.reference2)
        return np.where(balance.angular_forecast > ANGULAR_BOUND, steps, np.inf)

    def _forecasts(self, columns: list[int]) -> list[Forecast]:
        assert self._reading is not None
        rates = self._rates()
        balance = self._balance(rates)
        (low, high), ahead, step = self._interval(rates), self._ahead(rates), self._reading.step
        return [
            Forecast.of(balance, i, step=step, low=low, high=high, rates=rates, ahead=ahead) for i in columns
        ]

    def _interval(self, rates: LayerRates) -> tuple[Array, Array]:
        """Norms at the horizon for the lowest and highest source consistent with the last readings."""
        sources = np.array([self._source(motion, rates) for motion in self._motions])
        if len(sources) < SURE:
            return np.zeros(len(self._names)), np.full(len(self._names), np.inf)
        half = WIDTH * sources.std(axis=0, ddof=1)
        low, high = (
            np.sqrt(self._balance(rates, sources[-1] + sign * half).forecast2) for sign in (-1.0, 1.0)
        )
        return low, high

    def _shrunk(self) -> list[str]:
        """Layers below half of their initial norm that the gradient shrinks more than decay does."""
        if self._reading is None:
            return []
        rates = self._rates()
        balance = self._balance(rates)
        shrunk = self._judged & (balance.norm2 < NU**2 * balance.reference2)
        shrunk &= balance.angular > ANGULAR_BOUND
        shrunk &= self._source(self._motions[-1], rates) <= -balance.pull
        return [self._names[i] for i in np.flatnonzero(shrunk)]

    # ---------------------------------------------------------------- layers

    def _column(self, layer: str) -> int:
        assert self._reading is not None
        known = [name for name, seen in zip(self._names, self._reading.seen, strict=True) if seen]
        if layer not in known:
            raise KeyError(f"layer must be one of those measured ({', '.join(known)}), got {layer!r}")
        return self._names.index(layer)

    def _unchanged(self, names: list[str]) -> list[str]:
        """Return the layers whose weight decay is still the one under which they were judged."""
        if not names:
            return []
        wd = dict(zip(self._names, self._rates().wd, strict=True))
        return [name for name in names if name in wd and not _changed(self._watches[name].wd, wd[name])]

    def _by_type(self, names: list[str]) -> dict[str, list[str]]:
        types = self._observer.layer_types if names else {}
        out: dict[str, list[str]] = {}
        for name in names:
            out.setdefault(types.get(name, "other"), []).append(name)
        return out


def _changed(before: float, now: float) -> bool:
    """Whether weight decay changed by more than 10 %, the error of any judgement on it."""
    return abs(now - before) > TOLERANCE * before
