"""Collapse under weight decay, seen ahead from the norm balance."""

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
from thermoopt.diagnosis.layer_rates import UNKNOWN, CoupledShare, LayerRates, decay_entry, group_decay
from thermoopt.diagnosis.norm_forecast import CollapseAlarm, Forecast, advice, afterwards, count
from thermoopt.observer import Observer
from thermoopt.physics import ANGULAR_BOUND, AVERAGE, NU, TOLERANCE, Balance, NormMotion, Term, steps_until

__all__ = ["CollapseDetector"]

Array = NDArray[np.float64]

EVERY = 10
"""Steps between two readings judged, at least: as far apart as a history records them (five to an average).
An optimizer that measures every step would else show the same average twice."""

CONFIRM = 2
"""Readings in succession that must show a collapse: the source of a small layer is read with some 10 % error
(:data:`~thermoopt.physics.TOLERANCE`), and a layer at the limit would cross it by noise alone, once in a
while. The second is not waited for where the norm would be lost meanwhile, nor where the detector is asked so
rarely that every reading is an average of its own."""

READINGS = 10
"""Readings whose scatter gives the forecast its interval: 100 steps, two averages long."""

SURE = 3
"""Readings from which on their scatter bounds anything: two differ by chance alone."""

WIDTH = 4.0
"""Half an interval in standard deviations of those readings. Averages over 50 steps that are 10 apart hold
much of the same (correlations exp(-0.2 k) leave the scatter of 3 to 10 of them at 0.5 to 0.7 of a standard
error), so this is 1.9 to 2.8 of those. Measured in pure noise, 40 runs each: the norm at rest lay inside
after 60, 100, 300 and 1000 steps in 95, 100, 93 and 95 % of them."""


@dataclass
class _Watch:
    """What is remembered of a layer: the decay it speaks of, readings in a row, when it was told of."""

    wd: float
    streak: int = 0
    fired: bool = False
    told: int | None = None


class CollapseDetector:
    r"""Tells when weight decay is about to take the norm of a layer away.

    The rule is the barostat's: a decayed matrix collapses when its norm is forecast to be below half of that
    at the start, decay takes more than twice what the source S gives back (or the norm is that small already
    and does not rise), and it would turn by more than :data:`~thermoopt.physics.ANGULAR_BOUND` radians a step
    at the forecast norm: on a scale-invariant layer a shrinking norm is only a larger effective learning
    rate. Two readings in succession must say so (:data:`CONFIRM`).

    Gradients and learning rate make the source, decay has no part in it: so the balance is formed with the
    weight decay and the learning rate that ``param_groups`` hold *now*. A source below 0, which healthy runs
    have for a while, counts as 0, so that what decay does alone is forecast, and is trusted for no more than
    the :data:`~thermoopt.physics.AVERAGE` steps it was read over; a layer that its gradient shrinks more than
    decay does is not said to collapse.

    Decay that torch's SGD puts into the gradient is seen, too (:func:`~thermoopt.physics.sgd_shrink`).
    Other optimizers' coupled decay cannot be told from the rest: :attr:`unavailable` names their groups, and
    their layers read NaN. An optimizer of one's own whose decay is decoupled says so by
    ``decoupled_weight_decay=True`` in its groups.

    Args:
        model: names the layers.
        optimizer: to watch. It is never written.
        horizon: steps to forecast over, at least 1; None is the memory of Adam's second moment,
            1 / (1 - beta2), for which the present source can be trusted, or
            :data:`~thermoopt.physics.AVERAGE` without one.
        observer: whose readings to use; None makes one.

    Raises:
        TypeError, ValueError: for a horizon out of range and an observer of another optimizer.

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
            allowed = f"horizon is {horizon!r}; allowed is None or a number of steps from 1"
            if isinstance(horizon, bool) or not isinstance(horizon, (int, float)):
                raise TypeError(allowed)
            if not 1 <= horizon < math.inf:
                raise ValueError(allowed)
        if observer is not None and observer.optimizer is not optimizer:
            raise ValueError(
                f"observer is of another {type(observer.optimizer).__name__}; allowed is None or an observer "
                "of the optimizer given"
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
        """Start on layers as they are named now."""
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
        """Judge the newest reading, once, and return R_wd of every layer measured, as it was when judged.

        Call it after ``optimizer.step()``, or not at all: everything below looks by itself.
        """
        self._look()
        return dict(self._excess)

    @property
    def is_collapsing(self) -> bool:
        """Whether a layer began to collapse since this was last True.

        It is news, not a state: True throughout the optimizer step in which it is first asked for, False
        from the next on, and as soon as weight decay was changed. A layer is news again once its forecast
        has been back above half of the start, or under another weight decay (by more than 10 %) that would
        still make it collapse.
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
        """Layers that collapse as things are: seen to begin, and still forecast below half of the start."""
        self._look()
        return self._unchanged([name for name, w in self._watches.items() if w.fired])

    @property
    def alarms(self) -> list[CollapseAlarm]:
        """Every layer that began to collapse so far, oldest first."""
        self._look()
        return list(self._alarms)

    @property
    def unavailable(self) -> dict[str, str]:
        """Groups whose decay cannot be told from the update, by name, and why."""
        kind = type(self._optimizer).__name__
        return {
            str(group.get("name", f"group{i}")): (
                f"{kind} is not known to decouple its weight decay of {group_decay(group):g}"
            )
            for i, group in enumerate(self._optimizer.param_groups)
            if group_decay(group) > 0 and decay_entry(self._optimizer, group) == UNKNOWN
        }

    def forecast(self, layer: str) -> Forecast:
        """Say where the norm of a layer goes.

        Raises:
            KeyError: if no layer measured has that name.
            ValueError: before the first reading.
        """
        self._look()
        if self._reading is None:
            raise ValueError(
                f"layer is {layer!r}, but nothing was read yet: train until the observer has measured a step"
            )
        return self._forecasts([self._column(layer)])[0]

    def steps_to_collapse(self, layer: str | None = None) -> float:
        """Steps until the forecast norm is half of that at the start, infinite if it never is.

        Infinite, too, where the layer would turn slowly at the forecast norm, so that nothing collapses.

        Args:
            layer: which; None for the first of all decayed matrices.

        Raises:
            KeyError: if no layer measured has that name.
        """
        self._look()
        if self._reading is None:
            return math.inf
        steps = np.where(self._judged, self._until(self._rates()), np.inf)
        return float(steps.min(initial=np.inf) if layer is None else steps[self._column(layer)])

    def get_recommendations(self) -> list[str]:
        """What collapses and by how much to lower its decay, by layer type; then what did so earlier.

        A line begins with ``[HIGH]`` where the whole interval of a forecast lies below half of the start
        and decay takes more than twice what the source gives back, with ``[MEDIUM]`` where only the
        estimate does, with ``[LOW]`` for what is over or not the decay's doing.
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
            f"[LOW] {count(kind, len(layers))}, as {layers[0]}, lost half of the norm at the start and the "
            "gradient shrinks more than decay does: lower the learning rate rather than weight_decay."
            for kind, layers in self._by_type(self._shrunk()).items()
        ]
        lines += [f"unavailable for {name}: {why}." for name, why in self.unavailable.items()]
        return lines

    # ---------------------------------------------------------------- judging

    def _look(self) -> None:
        """Judge the newest reading if there is one that was not judged yet."""
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
        # at the decay recommended a norm rests at the limit itself: no news within the error of that
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
        """Balance of every layer at these rates; without a source, with the newest that is not below 0."""
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
        """Steps to look ahead: fewer where the newest source is not above 0."""
        ahead = rates.memory if self._horizon is None else np.full(rates.lr.shape, float(self._horizon))
        trusted = self._source(self._motions[-1], rates) > 0
        return np.where(trusted, ahead, np.minimum(ahead, AVERAGE))

    def _until(self, rates: LayerRates) -> Array:
        """Steps until half of the norm at the start, infinite where the layer would turn slowly then."""
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
        """Norms at the horizon if the source were as low, or as high, as its last readings leave open."""
        sources = np.array([self._source(motion, rates) for motion in self._motions])
        if len(sources) < SURE:
            return np.zeros(len(self._names)), np.full(len(self._names), np.inf)
        half = WIDTH * sources.std(axis=0, ddof=1)
        low, high = (
            np.sqrt(self._balance(rates, sources[-1] + sign * half).forecast2) for sign in (-1.0, 1.0)
        )
        return low, high

    def _shrunk(self) -> list[str]:
        """Layers below half of their start that their gradient shrinks more than decay does."""
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
            raise KeyError(f"layer is {layer!r}; allowed are those measured: {', '.join(known)}")
        return self._names.index(layer)

    def _unchanged(self, names: list[str]) -> list[str]:
        """Those of the layers whose weight decay is still that under which they were judged."""
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
    """Whether weight decay is another than before; 10 % are within the error of any judgement on it."""
    return abs(now - before) > TOLERANCE * before
