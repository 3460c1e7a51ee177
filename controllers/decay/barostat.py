"""Barostat: the weight decay that norms can sustain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thermoopt.account.reading import Reading
from thermoopt.controllers.base import Action, Controller, Scales, Start
from thermoopt.controllers.cooling import check_total_steps
from thermoopt.controllers.decay.group import DecayGroup
from thermoopt.controllers.lever import Bounds, Lever
from thermoopt.controllers.setpoints import EQUILIBRATION, Evidence
from thermoopt.controllers.units import TRAINED, layer_units, trained_share
from thermoopt.physics import (
    ANGULAR_BOUND,
    AVERAGE,
    NU,
    TOLERANCE,
    Balance,
    Force,
    Term,
    bearable,
    confining_decay,
    idleness,
    repaired_decay,
)

__all__ = ["ANGULAR_BOUND", "BOUNDS", "NU", "Barostat", "repaired_decay"]

READINGS_BETWEEN = 10
"""Readings between two actions, in addition to the hold-off in steps: the decay's loop should be at least ten
times slower than one that acts on every reading (theory, section 4)."""

READINGS = 10
"""Readings over which idleness is averaged, a twentieth of a run's: near r_c = 1 it flickers."""

BOUNDS = Bounds(lo=1e-3, hi=1.0, slew_up=1.01, slew_down=1.1, min_readings=5, hold_off=100)
"""Down to a thousandth (decay a thousand times too high can be repaired), never above what the group says.
Five readings of a default run, one every 10 steps, span the average; 100 steps are ten of them. Downwards a
factor of 30 takes 36 steps, well within the hold-off; upwards ten times as long."""


class Barostat(Controller):
    r"""A controller of weight decay: weights neither collapse nor drift on without a force.

    It sets every group's wd_scale by looking at the group's decayed matrices: layers of two or more
    dimensions that have had a gradient since the last reading and did not start at zero. Groups without any
    keep scale 1, so decay 0 stays 0.

    *Bound*, for layers of any dimension: no more decay than a group's layers can bear at their unit
    (:func:`.units.layer_units`) and rate, such as constants of physics (:func:`thermoopt.physics.bearable`).
    A large constant of a network counts at the unit of the matrices: give it a group with ``weight_decay=0``.

    *Coupling* preserves the equilibrium norm :math:`\sqrt{\eta d/2\lambda}` during a schedule,

    .. math:: \lambda_t = \lambda\,\eta_t / \max_{s\le t}\eta_s,

    with :math:`\eta` the mean over the group's decayed matrices in the last reading; while the rate rises the
    ratio is 1. This is feed-forward, neither bounded nor logged.

    *Repair*: with the source S of the norm balance :math:`\|\theta'\|^2 = (1-\eta\lambda)^2\|\theta\|^2 + S`,
    a layer collapses if its norm is forecast to fall below :math:`\nu` of its initial norm, its free-fall
    fraction :math:`1 - S/(2\eta\lambda\|\theta\|^2)` is above 1/2 (or not negative, if the norm is that small
    already), and its angular step at the forecast norm, :math:`\eta\|U\|/\|\theta\|`, is above a bound: for a
    scale-invariant layer a shrinking norm only means a larger effective learning rate. The group's decay is
    then set to the smallest

    .. math:: \lambda = S/(2\eta\,\nu^2\|\theta_{\mathrm{start}}\|^2)

    of its collapsing layers. Once decay removes less than the source restores in all of them (except those
    frozen since), decay rises again to the value of the same formula. If S <= 0 the gradient shrinks the
    weights: if the norm itself is below :math:`\nu` of its initial value, this is reported once per layer
    until the norm has recovered, and nothing is done. (A forecast with S < 0 soon reaches 0, in healthy runs
    too, so it is not trusted.)

    *Confinement*, if the length of the run is given: to the extent that motion goes on without a force
    (:func:`thermoopt.physics.idleness`) after 15 % of the run, decay is raised towards the value at which
    weights remember their updates over a part of the run (:func:`thermoopt.physics.confined_memory`: 60 steps
    of 300, 350 of 10,000) at the highest learning rate of a decayed matrix. The raised decay falls with the
    rate as the group's own does, is never below it, and needs Adam's moments. The log says when confinement
    begins, doubles, halves and ends. Trained weights (:func:`.units.trained_share`) are not confined, because
    what they hold was not learned in this run.

    Args:
        total_steps: length of the run in optimizer steps, at least 1; None for no confinement.
        couple: whether decay follows the learning rate.
        nu: fraction of the initial norm to hold, in (0, 1).
        horizon: steps to forecast, at least 1; None uses the memory of the second moment, 1 / (1 - beta2),
            for which the present source can be trusted, or :data:`AVERAGE` without one.
        angular_bound: bound in radians per step, at least 0.
        bounds: limits of the repair's factor.

    Raises:
        ValueError: for values out of range; the message names the argument.

    References:
        norm balance, forecast, repair, and when to confine: derived for this project; equilibrium: Kosson et
        al., arXiv 2305.17212; coupling: Defazio, arXiv 2506.02285; what weights remember: Wang and Aitchison,
        arXiv 2405.13698.
    """

    numeric = True

    def __init__(
        self,
        total_steps: int | None = None,
        *,
        couple: bool = True,
        nu: float = NU,
        horizon: float | None = None,
        angular_bound: float = ANGULAR_BOUND,
        bounds: Bounds = BOUNDS,
    ) -> None:
        if not 0 < nu < 1:
            raise ValueError(f"nu must be a number > 0 and < 1, got {nu!r}")
        if horizon is not None and not 1 <= horizon < math.inf:
            raise ValueError(f"horizon must be None or a number of steps >= 1, got {horizon!r}")
        if not 0 <= angular_bound < math.inf:
            raise ValueError(f"angular_bound must be a number >= 0, got {angular_bound!r}")
        total_steps = check_total_steps(total_steps)
        self._total_steps = total_steps
        self._couple, self._nu, self._horizon, self._bound = couple, nu, horizon, angular_bound
        self._bounds = bounds
        self._start: Start | None = None
        self._forget()

    def _forget(self) -> None:
        self._groups: dict[str, DecayGroup] = {}
        self._reference2: dict[str, float] = {}
        self._norm2: dict[str, float] = {}
        self._log: list[Action] = []
        self._begun, self._read, self._idle, self._force = 0, 0, 0.0, Force()
        self._answer, self._rested, self._trained = Scales(), False, False

    @property
    def begun(self) -> bool:
        """Whether it has seen a reading."""
        return bool(self._norm2) or self._read > 0

    def attach(self, start: Start) -> None:
        """Receive layers and groups; after the first reading it keeps the state of those it knows by name."""
        if not self.begun:
            self._forget()
            self._trained = trained_share(start) >= TRAINED
        self._start, self._rested = start, False
        for name, rms, numel in zip(start.names, start.rms, start.numel, strict=True):
            self._reference2.setdefault(name, rms**2 * numel)
        units = layer_units(start).group
        for i, name in enumerate(start.group_names):
            borne = bearable(start.wd[i], 0.0, units[i])
            fresh = DecayGroup(Lever(self._bounds), start.wd[i], unit=units[i], borne=borne)
            group = self._groups.setdefault(name, fresh)
            memory = 1 / (1 - start.beta2[i]) if start.beta2[i] > 0 else AVERAGE
            group.horizon = self._horizon or memory
            group.layers = [
                layer
                for layer, of, ndim in zip(start.names, start.group_of, start.ndim, strict=True)
                if of == i and ndim >= 2 and group.wd > 0
            ]
            group.reference2 = [self._reference2[layer] for layer in group.layers]

    def update(self, reading: Reading | None, step: int) -> Scales:
        """Return one wd factor per group; neutral before :meth:`attach`."""
        if self._start is None:
            return Scales()
        if reading is None and self._rested:  # most steps: nothing has moved
            return self._answer
        groups = [(name, self._groups[name]) for name in self._start.group_names]
        self._begun = self._begun or step
        if reading is not None:
            evidence = self._look(reading, step)
            place = {name: i for i, name in enumerate(reading.names)}
            for i, (name, group) in enumerate(groups):
                self._bear(name, group, reading.terms[:, reading.seen & (reading.group_of == i)], step)
                balance = self._balance(group, reading, place)
                if balance.names:
                    group.lever.readings += 1
                    group.first = group.first or step
                    self._follow(group, balance)
                    self._confine(name, group, balance, step, evidence)
                    self._report(name, group, balance, step)
                    self._act(name, group, balance, step)
        held = [g.lever.move() * g.coupling * g.confinement if g.layers else 1.0 for _, g in groups]
        self._answer = Scales(wd=[wd * g.borne for wd, (_, g) in zip(held, groups, strict=True)])
        self._rested = all(g.lever.value == g.lever.target for _, g in groups)
        return self._answer

    def _balance(self, group: DecayGroup, reading: Reading, place: Mapping[str, int]) -> Balance:
        """Return the balance of the group's layers that were seen and have moved since the last reading.

        A frozen layer keeps its averages to the last bit, while decay no longer touches it.
        """
        names, columns, reference2 = [], [], []
        for name, ref2 in zip(group.layers, group.reference2, strict=True):
            column = place.get(name)
            if column is None or not reading.seen[column]:
                continue
            norm2 = float(reading.terms[Term.TT, column])
            if norm2 != self._norm2.get(name):
                self._norm2[name] = norm2
                names.append(name)
                columns.append(column)
                reference2.append(ref2)
        return Balance.of(reading.terms[:, columns], names, reference2, group.horizon)

    def _bear(self, name: str, group: DecayGroup, terms: NDArray[np.float64], step: int) -> None:
        """Lower decay to what the layers can bear, given their terms, and log it when that begins.

        A group that has never moved (frozen, lr 0) is not logged, and empty layers have no rate.
        """
        new = group.borne == 1 or group.peak == 0
        terms = terms[:, terms[Term.NUMEL] > 0]
        group.peak = max(group.peak, float((terms[Term.LR_NUMEL] / terms[Term.NUMEL]).max(initial=0.0)))
        group.borne = bearable(group.wd, group.peak, group.unit)
        if group.borne < 1 and new and group.peak > 0:
            evidence = {"lr": (group.peak, 0.0), "unit": (group.unit, 0.0)}
            reason = "decay lowered: at this rate it would hold weights of this size to a fraction of it"
            self._log.append(Action(step, "Barostat", name, "wd", 1.0, group.borne, evidence, reason))

    def _follow(self, group: DecayGroup, balance: Balance) -> None:
        """Coupling: the learning rate over its maximum so far."""
        lr = float((balance.lr * balance.numel).sum() / balance.numel.sum())
        if self._couple and math.isfinite(lr):
            group.lr_max = max(group.lr_max, lr)
            group.coupling = lr / group.lr_max if group.lr_max > 0 else 1.0

    def _look(self, reading: Reading, step: int) -> Evidence:
        """Average how far the motion goes on without a force; return what says so."""
        if self._total_steps is None or self._trained:
            return {}
        q = reading.total
        force = self._force.book(q.sigma, q.lr_eff, max(0, reading.step - self._read))
        self._read = reading.step
        early = step - self._begun + 1 < EQUILIBRATION * self._total_steps
        idle = 0.0 if early else idleness(force, q.coherence)
        self._idle += (idle - self._idle) / READINGS
        known = {"force": force, "coherence": q.coherence, "idleness": idle}
        return {name: (value, math.nan) for name, value in known.items()}

    def _confine(self, name: str, group: DecayGroup, balance: Balance, step: int, evidence: Evidence) -> None:
        """Raise decay as far as the motion is idle; log it where it begins, doubles, halves or ends."""
        group.fastest = max(group.fastest, float(balance.lr.max()))
        if self._total_steps is None or self._trained or not group.fastest > 0:
            return
        decay = confining_decay(group.fastest, self._total_steps)
        group.confinement = max(1.0, self._idle * decay / (group.wd * group.borne))
        old, new = group.confined, group.confinement
        if new != old and (new == 1 or old == 1 or max(new / old, old / new) >= 2):
            reason = "no force drives the motion, and steps still agree: decay confines the weights"
            reason = reason if new > 1 else "a force drives the motion, or steps disagree: decay as given"
            self._log.append(Action(step, "Barostat", name, "wd", old, new, evidence, reason))
            group.confined = new

    def _report(self, name: str, group: DecayGroup, balance: Balance, step: int) -> None:
        """Log the layers that their gradient shrinks, once each until the norm has recovered."""
        if group.lever.readings < self._bounds.min_readings:
            return
        small = balance.norm2 < self._nu**2 * balance.reference2
        shrunk = small & np.isposinf(balance.excess) & (balance.angular > self._bound)
        for i, layer in enumerate(balance.names):
            if shrunk[i] and layer not in group.reported:
                group.reported.append(layer)
                now = math.sqrt(balance.norm2[i] / balance.reference2[i])
                reason = (
                    f"the norm of {layer} is down to {now:.3g} times its initial value, but its gradient "
                    "shrinks it, not decay: decay left as it is"
                )
                scale, evidence = group.lever.value, balance.evidence(i)
                self._log.append(Action(step, "Barostat", name, "wd", scale, scale, evidence, reason))
            elif not small[i] and layer in group.reported:
                group.reported.remove(layer)

    def _act(self, name: str, group: DecayGroup, balance: Balance, step: int) -> None:
        """Reduce decay for collapsing layers, or let it recover."""
        lever = group.lever
        rested = not lever.acted or lever.readings - group.acted >= READINGS_BETWEEN
        if not (rested and lever.ready(step) and step - group.first >= AVERAGE):
            return
        falls = balance.falls(self._nu, self._bound) & (balance.source > 0) & (balance.lr > 0)
        if falls.any():
            targets = {int(i): self._target(group, balance, int(i)) for i in np.flatnonzero(falls)}
            i = min(targets, key=targets.__getitem__)
            group.repaired = sorted({*group.repaired, *(balance.names[j] for j in targets)})
            now, ahead = np.sqrt(np.array([balance.norm2[i], balance.forecast2[i]]) / balance.reference2[i])
            reason = (
                f"decay removes {balance.excess[i]:.3g} times as much of {balance.names[i]} as gradients "
                f"restore: its norm, now {now:.3g} times its initial value, would be at {ahead:.3g} in "
                f"{group.horizon:g} steps; decay lowered to hold {self._nu:g}"
            )
            self._aim(name, group, min(targets[i], lever.target), step, balance.evidence(i), reason)
            return
        repaired = [i for i, layer in enumerate(balance.names) if layer in group.repaired]
        if repaired and all(balance.excess[i] < 1 for i in repaired):
            targets = {i: self._target(group, balance, i) for i in repaired}
            i = min(targets, key=targets.__getitem__)
            reason = f"gradients of {balance.names[i]} sustain more decay than this; decay raised to match"
            target = max(lever.target, min(1.0, targets[i]))
            self._aim(name, group, target, step, balance.evidence(i), reason)
            if lever.target >= 1:
                group.repaired.clear()

    def _target(self, group: DecayGroup, balance: Balance, i: int) -> float:
        """Return the factor at which decay and source of layer i balance at nu of its initial norm."""
        held2 = self._nu**2 * balance.reference2[i]
        decay = repaired_decay(float(balance.source[i]), float(balance.lr[i]), float(held2))
        return decay / (group.wd * group.coupling * group.confinement * group.borne)

    def _aim(
        self, name: str, group: DecayGroup, target: float, step: int, evidence: Evidence, reason: str
    ) -> None:
        what = {"controller": "Barostat", "group": name, "kind": "wd", "reason": reason}
        # the last bit of the way back to 1 is always worth it
        tolerance = 0.0 if target == 1 else TOLERANCE
        action = group.lever.aim(target, step, evidence=evidence, tolerance=tolerance, **what)
        if action is not None:
            group.acted = group.lever.readings
            self._log.append(action)

    @property
    def log(self) -> list[Action]:
        """Every action so far, including reports, whose old and new scale are equal."""
        return list(self._log)

    def state_dict(self) -> dict[str, Any]:
        """Return levers, couplings, norms at the start and at the last reading, the log."""
        return {
            "groups": {name: group.state_dict() for name, group in self._groups.items()},
            "reference2": dict(self._reference2),
            "norm2": dict(self._norm2),
            "force": [self._begun, self._read, self._idle, *self._force.state()],
            "trained": self._trained,
            "log": [action.to_dict() for action in self._log],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave, before or after :meth:`attach`."""
        self._forget()
        for name, saved in state["groups"].items():
            self._groups[name] = DecayGroup.of(saved, self._bounds)
        self._reference2 = {str(k): float(v) for k, v in state["reference2"].items()}
        self._norm2 = {str(k): float(v) for k, v in state["norm2"].items()}
        begun, read, idle, *force = state.get("force", (0, 0, 0.0, 0.0, 0.0))
        self._begun, self._read, self._idle, self._force = int(begun), int(read), float(idle), Force.of(force)
        self._trained = bool(state.get("trained"))
        self._log = [Action.from_dict(action) for action in state["log"]]
        if self._start is not None:
            self.attach(self._start)

    def reset(self) -> None:
        """Forget the run; norms at the start are those of the last or the next :meth:`attach`."""
        self._forget()
        if self._start is not None:
            self.attach(self._start)
