"""The interface of a controller: plain readings in, plain multipliers out."""

from __future__ import annotations

import math
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeGuard

from thermoopt.account.reading import Reading
from thermoopt.controllers.saved import check_numbers
from thermoopt.physics import Standing
from thermoopt.physics.travel import Weights

__all__ = ["Action", "Controller", "Scales", "Start", "check_claim", "claim", "is_several", "restore"]


def is_several(factors: float | Sequence[float]) -> TypeGuard[Sequence[float]]:
    """Whether factors are one per group; asked several times a step, so numbers are told first."""
    kind = type(factors)
    if kind is float or kind is list:
        return kind is list
    return not isinstance(factors, (float, int)) and isinstance(factors, Sequence)


def _each(factors: float | Sequence[float]) -> Sequence[float]:
    return factors if is_several(factors) else [factors]  # type: ignore[list-item]


@dataclass(frozen=True)
class Scales:
    """Multipliers for the next step.

    Attributes:
        lr: one factor for all parameter groups, or one per group;
            ``lr_eff = group["lr"] * lr * layer factor``.
        wd: likewise; ``wd_eff = group["weight_decay"] * wd``.
        layers: optional factors by layer name; other layers keep theirs. They are checked where they are set
            (:meth:`thermoopt.ThermoAdamW.set_layer_factors`).
        idle: layers that have never had a gradient; their factors say nothing about the rate others need.
        weights: weights of the next step in the sums of a law that uses impulse.

    Raises:
        ValueError: if a factor of ``lr`` or ``wd`` is negative or not finite.
    """

    lr: float | Sequence[float] = 1.0
    wd: float | Sequence[float] = 1.0
    layers: Mapping[str, float] = field(default_factory=dict)
    weights: Weights | None = None
    idle: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """Check the groups' factors."""
        for kind, values in (("lr", self.lr), ("wd", self.wd)):
            for value in _each(values):
                if not (math.isfinite(value) and value >= 0):
                    raise ValueError(f"Scales: {kind} must hold finite numbers >= 0, got {value!r}")

    def weighed(self, weights: Weights | None) -> Scales:
        """Return the same factors, which need no second check, with other weights."""
        out = object.__new__(Scales)
        vars(out).update(vars(self), weights=weights)
        return out

    def spread(self, n_groups: int) -> tuple[list[float], list[float]]:
        """Return one lr and one wd factor for each of ``n_groups`` groups.

        Raises:
            ValueError: if the scales are for another number of groups.
        """
        out = []
        for kind, values in (("lr", self.lr), ("wd", self.wd)):
            given = [float(v) for v in _each(values)]
            factors = given if is_several(values) else given * n_groups
            if len(factors) != n_groups:
                raise ValueError(f"Scales: {kind} has {len(factors)} factors for {n_groups} parameter groups")
            out.append(factors)
        return out[0], out[1]


@dataclass(frozen=True)
class Start:
    """A description of the parameters at the start, in plain numbers, that a controller gets before it acts.

    Attributes:
        names: layer names, in the order of a reading's columns.
        group_of: index of each layer's parameter group.
        group_names: name of each group.
        numel: number of real elements of each layer.
        ndim: number of dimensions of each layer's tensor; below 2 it is a bias, a norm's gain or a scalar.
        rms: root mean square of each layer's parameters before the first step; 0 for zero-initialised ones.
        fan_in: real elements that feed one output of each layer, ``numel / shape[0]``; 1 for vectors.
        lr: ``group["lr"]`` of each group when the controller was attached. An absolute rate is divided by
            it, so that an outside schedule still multiplies.
        wd: likewise ``group["weight_decay"]``.
        beta1: decay of the first moment of each group; 0 if the optimizer keeps none.
        beta2: likewise of the second moment.
        trainable: whether each layer takes a gradient (``requires_grad``); empty where all do.
        uneven: how uneven each matrix's rows are (:func:`thermoopt.tensors.uneven_rows`), NaN for other
            layers; empty where unknown.
    """

    names: tuple[str, ...]
    group_of: tuple[int, ...]
    group_names: tuple[str, ...]
    numel: tuple[int, ...]
    ndim: tuple[int, ...]
    rms: tuple[float, ...]
    fan_in: tuple[int, ...]
    lr: tuple[float, ...]
    wd: tuple[float, ...]
    beta1: tuple[float, ...]
    beta2: tuple[float, ...]
    trainable: tuple[bool, ...] = ()
    uneven: tuple[float, ...] = ()

    @property
    def takes_gradient(self) -> tuple[bool, ...]:
        """Whether each layer takes a gradient; ``trainable`` may be empty, this has an entry a layer."""
        return self.trainable or (True,) * len(self.names)


@dataclass(frozen=True)
class Action:
    """One action of a controller.

    Attributes:
        step: number of the first step in which it takes effect.
        controller: class name of the controller.
        group: name of the parameter group, or ``"all"``.
        kind: ``"lr"`` or ``"wd"``.
        old, new: the previous and the target scale (a slew limit may take several steps to reach it).
        evidence: the basis of the decision: value and standard error by name (NaN without one).
        reason: the reason in words.
    """

    step: int
    controller: str
    group: str
    kind: str
    old: float
    new: float
    evidence: Mapping[str, tuple[float, float]]
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return the action as plain data for JSON and checkpoints."""
        return {**asdict(self), "evidence": {k: list(v) for k, v in self.evidence.items()}}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Action:
        """Restore an action from the result of :meth:`to_dict`."""
        evidence = {k: (float(v[0]), float(v[1])) for k, v in saved["evidence"].items()}
        return cls(**{**saved, "evidence": evidence})


class Controller(ABC):
    """Base class of controllers, which turn readings into scales; they hold no tensors and no optimizer."""

    @property
    def needs(self) -> frozenset[str]:
        """Sums that its law uses (:data:`thermoopt.physics.TRAVEL_SUMS`), expected in ``reading.travel``."""
        return frozenset()

    @property
    def ema_steps(self) -> float | None:
        """Averaging time that it wants for readings, in steps; None leaves it to the measuring side."""
        return None

    @property
    def every(self) -> int | None:
        """Number of steps that it wants between readings; None leaves it to the measuring side."""
        return None

    @property
    def length(self) -> int | None:
        """Step at which its cooling ends; None for a controller that does not cool or has no fixed end."""
        return None

    @property
    def begun(self) -> bool:
        """Whether it holds the state of a run; it then serves no other run until :meth:`reset`."""
        return False

    def attach(self, start: Start) -> None:  # noqa: B027 - most controllers have no use for it
        """Receive the parameters; called before the first update and again whenever a group was added."""

    told_of_schedule = False
    """Whether the user has been warned of an outside schedule; one warning is enough for a chain."""

    def see_lr(self, lr: Sequence[float]) -> None:  # noqa: B027 - most controllers have no use for it
        """Receive each group's present ``group["lr"]`` before an update; NaN if it is on a device.

        Called only where others may write it: by :class:`thermoopt.ThermoAdamW`, but not by a
        ThermoScheduler, which owns it.
        """

    @property
    def left(self) -> float:
        """Share of the amplitude that its shape has left, apart from warm-up; 1 for one without a shape."""
        return 1.0

    def see_left(self, left: float) -> None:  # noqa: B027 - likewise
        """Receive the share of its rate that a chain's shapes have left, before an update with a reading."""

    @abstractmethod
    def update(self, reading: Reading | None, step: int) -> Scales:
        """Return the scales of the step that is about to be taken.

        Args:
            reading: the newest reading if it has not been passed yet, else None. Each reading is passed only
                once, even across a checkpoint.
            step: number of the next step, counted from 1 by the optimizer.
        """

    @property
    def log(self) -> list[Action]:
        """Every action so far, oldest first; empty for a controller that does not act on readings."""
        return []

    @property
    def standing(self) -> Mapping[str, Standing]:
        """Where each rate stands as of the last reading, by name; empty for one without a set-point."""
        return {}

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to resume: floats, ints, strings, lists and dicts with string keys.

        It is stored as JSON (:mod:`thermoopt.account.json_state`).
        """

    numeric = False
    """Whether the numbers of its state are finite: a saved state in which one is not is refused.

    A subclass of one for which that is so sets it to False if its own state may hold others.
    """

    def check_state(self, state: Mapping[str, Any], where: str) -> None:
        """Check the numbers of a saved state; nothing changes.

        Args:
            state: the result of :meth:`state_dict`, perhaps of another version.
            where: what to call it in a message.

        Raises:
            ValueError: naming the key, its value and what is allowed.
        """
        if self.numeric:
            own = self.state_dict()
            told = ("log", "standing")  # evidence may be unknown there
            read = {k: v for k, v in state.items() if k in own and k not in told}
            check_numbers(read, own, where, gaps=True)

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the result of :meth:`state_dict`."""

    @abstractmethod
    def reset(self) -> None:
        """Forget the run."""


_OWNERS: weakref.WeakKeyDictionary[Controller, weakref.ref[object]] = weakref.WeakKeyDictionary()
"""The optimizer or scheduler that each controller serves, one at a time."""


def claim(controller: Controller, owner: object) -> None:
    """Assign a controller and its parts to an owner.

    A copy of a controller that has run belongs to nobody yet and may be claimed.

    Args:
        controller: the controller to claim.
        owner: the object that drives it; only a weak reference is kept.

    Raises:
        ValueError: if one of them holds another owner's run; nothing has changed then.
    """
    parts = list(_parts(controller))
    for part in parts:
        known = _OWNERS.get(part)
        if known is not None and known() is not owner and part.begun:
            raise ValueError(
                f"controller {type(part).__name__} holds another optimizer's run: two optimizers would share "
                "its state. Create one controller for each optimizer, or call controller.reset() before a "
                "new run. To a framework that creates optimizers from a class and its arguments, pass a "
                "function that creates both"
            )
    for part in parts:
        _OWNERS[part] = weakref.ref(owner)


def check_claim(controller: Controller, owner: object) -> None:
    """Check that a controller still serves an owner.

    Raises:
        ValueError: if another owner has claimed it since.
    """
    known = _OWNERS.get(controller)
    if known is not None and known() is not owner:
        raise ValueError(
            f"controller {type(controller).__name__} has since been given to another optimizer: the two "
            "would share its state. Create one controller for each optimizer. To a framework that creates "
            "optimizers from a class and its arguments, pass a function that creates both"
        )


def restore(controller: Controller, state: Mapping[str, Any]) -> None:
    """Load a saved controller state; one that does not fit leaves the controller as it was.

    Args:
        controller: the controller that goes on.
        state: the result of its :meth:`Controller.state_dict`, perhaps written by another version.

    Raises:
        ValueError: as :func:`check_saved_controller`, and if the controller refuses the state.
    """
    before = controller.state_dict()
    check_saved_controller(controller, state, "the saved controller")
    try:
        controller.load_state_dict(state)
    except ValueError:
        controller.load_state_dict(before)
        raise
    except _MISFITS as error:
        controller.load_state_dict(before)
        raise _misfit(controller, error) from error


def check_saved_controller(controller: Controller, state: Mapping[str, Any], where: str) -> None:
    """Check a saved controller state before anything changes.

    Args:
        controller: the controller that is to go on.
        state: the result of its :meth:`Controller.state_dict`, perhaps written by another version.
        where: what to call the state in a message.

    Raises:
        ValueError: if the state does not fit; the message says what it lacks and what to do, or where
            something else stands in place of a finite number.
    """
    try:
        controller.check_state(state, where)
    except _MISFITS as error:
        raise _misfit(controller, error) from error


_MISFITS = KeyError, TypeError, AttributeError, IndexError
"""What reading a state of another shape raises."""


def _misfit(controller: Controller, error: Exception) -> ValueError:
    return ValueError(
        f"the saved state does not fit this {type(controller).__name__} ({error!r}): it was written by "
        "another kind of controller or another version. Load it with that one, or resume without it: "
        "delete 'controller' from the optimizer's state['param_groups'][0]['thermo'], or set the "
        "scheduler's state['controller'] to None"
    )


def _parts(controller: Controller) -> Iterator[Controller]:
    yield controller
    for part in getattr(controller, "controllers", ()):
        yield from _parts(part)
    inner = getattr(controller, "controller", None)
    if isinstance(inner, Controller):
        yield from _parts(inner)
