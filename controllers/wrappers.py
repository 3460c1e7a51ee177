"""Controllers made of other controllers: chains and dry runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from thermoopt.account.reading import Reading
from thermoopt.controllers.base import Action, Controller, Scales, Start, is_several
from thermoopt.controllers.saved import check_numbers
from thermoopt.physics import Standing
from thermoopt.physics.travel import Weights

__all__ = ["Chain", "DryRun", "Wrapper"]


def _check_controller(argument: str, controller: object) -> None:
    if not isinstance(controller, Controller):
        raise TypeError(f"{argument} must be a thermoopt.controllers.Controller, got {controller!r}")


def _product(a: float | Sequence[float], b: float | Sequence[float]) -> float | list[float]:
    """Return the product of two factors, each for all groups or one per group."""
    if is_several(a) and is_several(b):
        if len(a) != len(b):
            raise ValueError(f"Chain: one controller gives {len(a)} factors, another gives {len(b)}")
        return [x * y for x, y in zip(a, b, strict=True)]
    if is_several(a):
        return [x * b for x in a]  # type: ignore[operator]  # guards tell one way only
    return [a * y for y in b] if is_several(b) else a * b  # type: ignore[operator]  # likewise


def _show_lr(outer: Controller, inner: Controller, lr: Sequence[float]) -> None:
    """Pass lr on; what one of the two has told the user of a schedule, the other need not tell again."""
    inner.told_of_schedule |= outer.told_of_schedule
    inner.see_lr(lr)
    outer.told_of_schedule |= inner.told_of_schedule


FORMER_NAMES = {"_FineTuning": "FineTuning"}
"""Present names of classes that older checkpoints name otherwise."""


def _present_name(saved: str) -> str:
    return FORMER_NAMES.get(saved, saved)


def _takes(controller: Controller, saved: str) -> bool:
    """Whether a state is of a controller's class or of one that it extends, and reads the states of."""
    return saved in (kind.__name__ for kind in type(controller).__mro__ if kind not in (Controller, object))


class Chain(Controller):
    """A controller that passes each reading to several others and multiplies their scales.

    Layer factors multiply by name; a controller's factor for a layer remains until it names the layer again.

    Args:
        controllers: at least one.

    Raises:
        ValueError: without any.
        TypeError: if one is not a controller.
    """

    def __init__(self, *controllers: Controller) -> None:
        if not controllers:
            raise ValueError("Chain() must get at least one controller, got none")
        for i, controller in enumerate(controllers):
            _check_controller(f"Chain: controller {i}", controller)
        self.controllers = controllers
        self._forget()

    def _forget(self) -> None:
        self.told_of_schedule = False
        self._kept: list[dict[str, float]] = [{} for _ in self.controllers]
        self._named: list[Mapping[str, float]] = [{} for _ in self.controllers]
        self._layers: dict[str, float] = {}
        self._told_left = 1.0
        self._last = [Scales() for _ in self.controllers]
        self._given: list[float | Sequence[float]] = []
        self._answer = Scales()

    @property
    def needs(self) -> frozenset[str]:
        """All sums that any member needs."""
        return frozenset().union(*(c.needs for c in self.controllers))

    @property
    def ema_steps(self) -> float | None:
        """The shortest averaging time that any member wants."""
        return min((c.ema_steps for c in self.controllers if c.ema_steps is not None), default=None)

    @property
    def every(self) -> int | None:
        """The shortest interval that any member wants."""
        return min((c.every for c in self.controllers if c.every is not None), default=None)

    @property
    def length(self) -> int | None:
        """Step at which the first of the members' coolings ends; None if none has an end."""
        return min((c.length for c in self.controllers if c.length is not None), default=None)

    @property
    def begun(self) -> bool:
        """Whether any member holds the state of a run."""
        return any(c.begun for c in self.controllers)

    def attach(self, start: Start) -> None:
        """Pass the parameters on to all members."""
        for controller in self.controllers:
            controller.attach(start)

    def see_lr(self, lr: Sequence[float]) -> None:
        """Pass each group's lr on to all members; the first that warns of a schedule warns for all."""
        for controller in self.controllers:
            _show_lr(self, controller, lr)

    @property
    def left(self) -> float:
        """Share of the amplitude that all shapes together have left."""
        return math.prod(c.left for c in self.controllers)

    def see_left(self, left: float) -> None:
        """Keep for its members what all shapes around it, its own among them, have left."""
        self._told_left = left

    def update(self, reading: Reading | None, step: int) -> Scales:
        """Return the product of the members' scales, with the weights of the one that gives any.

        Raises:
            ValueError: if two give factors for different numbers of groups, or both give weights.
        """
        weights = None
        changed = False
        if reading is not None:
            left = min(self._told_left, self.left)
            for controller in self.controllers:
                controller.see_left(left)
        for i, controller in enumerate(self.controllers):
            scales = self._last[i] = controller.update(reading, step)
            if weights is not None and scales.weights is not None:
                raise ValueError("Chain: only one law may give weights (need impulse), got two")
            weights = scales.weights or weights
            # the same mapping again says nothing new
            if scales.layers and scales.layers is not self._named[i]:
                self._named[i] = scales.layers
                self._kept[i].update(scales.layers)
                changed = True
        if changed:
            self._multiply_layers()
        given = [tuple(x) if is_several(x) else x for s in self._last for x in (s.lr, s.wd)]
        if changed or given != self._given:  # else the same numbers, which nobody need look at again
            self._given, self._answer = given, self._multiply(weights)
            return self._answer
        return self._answer.weighed(weights)

    def _multiply(self, weights: Weights | None) -> Scales:
        lr: float | Sequence[float] = 1.0
        wd: float | Sequence[float] = 1.0
        for scales in self._last:
            lr = lr if scales.lr == 1.0 else _product(lr, scales.lr)  # most leave one of the two alone
            wd = wd if scales.wd == 1.0 else _product(wd, scales.wd)
        idle = frozenset[str]().union(*(scales.idle for scales in self._last))
        return Scales(lr=lr, wd=wd, layers=self._layers, weights=weights, idle=idle)

    def _multiply_layers(self) -> None:
        self._layers = {}
        for kept in self._kept:
            for name, factor in kept.items():
                self._layers[name] = self._layers.get(name, 1.0) * factor

    def cool_now(self, steps: int) -> None:
        """Start the quench of every member that has one (:meth:`Cooling.cool_now`).

        Raises:
            ValueError: if no member has one, and as that method does.
        """
        members = list(_members(self))
        coolers = [m for m in members if hasattr(m, "cool_now")]
        if not coolers:
            names = ", ".join(type(m).__name__ for m in members)
            raise ValueError(f"cool_now: a Chain must contain a Cooling, got {names}")
        for cooler in coolers:
            cooler.cool_now(steps)

    @property
    def standing(self) -> dict[str, Standing]:
        """Where the members' rates stand; of two with the same name that of the earlier member.

        The rate given contains the factors of those members that follow no set-point themselves.
        """
        shape, out = 1.0, {}
        for controller, scales in zip(self.controllers, self._last, strict=True):
            own = controller.standing
            out.update({name: standing for name, standing in own.items() if name not in out})
            if not own:
                shape *= scales.lr if isinstance(scales.lr, (float, int)) else math.nan
        return {name: replace(standing, given=standing.given * shape) for name, standing in out.items()}

    @property
    def log(self) -> list[Action]:
        """The actions of all members, in the order of steps."""
        return sorted((a for c in self.controllers for a in c.log), key=lambda a: a.step)

    def state_dict(self) -> dict[str, Any]:
        """Return class, state and layer factors of each member."""
        return {
            "members": [
                {"class": type(c).__name__, "state": c.state_dict(), "layers": dict(kept)}
                for c, kept in zip(self.controllers, self._kept, strict=True)
            ]
        }

    def check_state(self, state: Mapping[str, Any], where: str) -> None:
        """Check the numbers of all members' states and of their layer factors."""
        for i, (controller, saved) in enumerate(zip(self.controllers, state["members"], strict=False)):
            here = f"{where}['members'][{i}]"
            controller.check_state(saved["state"], f"{here}['state']")
            check_numbers(saved["layers"], 1.0, f"{here}['layers']")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the result of :meth:`state_dict`.

        Raises:
            ValueError: if it is of other controllers; nothing has changed then.
        """
        saved = [_present_name(m["class"]) for m in state["members"]]
        own = [type(c).__name__ for c in self.controllers]
        if len(saved) != len(own) or not all(map(_takes, self.controllers, saved)):
            raise ValueError(
                f"the state is that of a Chain of {', '.join(saved)}, but this is a Chain of {', '.join(own)}"
            )
        for controller, member in zip(self.controllers, state["members"], strict=True):
            controller.load_state_dict(member["state"])
        self._forget()
        self._kept = [{str(k): float(v) for k, v in m["layers"].items()} for m in state["members"]]
        self._multiply_layers()

    def reset(self) -> None:
        """Reset all members."""
        for controller in self.controllers:
            controller.reset()
        self._forget()


class Wrapper(Controller):
    """Forwards everything to one controller."""

    def __init__(self, controller: Controller) -> None:
        _check_controller(f"{type(self).__name__}: controller", controller)
        self.controller = controller

    @property
    def needs(self) -> frozenset[str]:
        """Sums that the controller needs."""
        return self.controller.needs

    @property
    def ema_steps(self) -> float | None:
        """Averaging time that the controller wants."""
        return self.controller.ema_steps

    @property
    def every(self) -> int | None:
        """Interval that the controller wants."""
        return self.controller.every

    @property
    def length(self) -> int | None:
        """Step at which the controller's cooling ends."""
        return self.controller.length

    @property
    def begun(self) -> bool:
        """Whether the controller holds the state of a run."""
        return self.controller.begun

    def attach(self, start: Start) -> None:
        """Pass the parameters on to the controller."""
        self.controller.attach(start)

    def see_lr(self, lr: Sequence[float]) -> None:
        """Pass each group's lr on to the controller."""
        _show_lr(self, self.controller, lr)

    @property
    def left(self) -> float:
        """Share of the amplitude that the controller's shapes have left."""
        return self.controller.left

    def see_left(self, left: float) -> None:
        """Pass the share on to the controller."""
        self.controller.see_left(left)

    @property
    def log(self) -> list[Action]:
        """The controller's actions."""
        return self.controller.log

    @property
    def standing(self) -> Mapping[str, Standing]:
        """Where the controller's rates stand; in a dry run, where they would."""
        return self.controller.standing

    def state_dict(self) -> dict[str, Any]:
        """Return the controller's class and state."""
        return {"class": type(self.controller).__name__, "state": self.controller.state_dict()}

    def check_state(self, state: Mapping[str, Any], where: str) -> None:
        """Check the numbers of the controller's state."""
        self.controller.check_state(state["state"], f"{where}['state']")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the result of :meth:`state_dict`.

        Raises:
            ValueError: if it is of another controller; nothing has changed then.
        """
        saved, own = _present_name(state["class"]), type(self.controller).__name__
        if not _takes(self.controller, saved):
            kind = type(self).__name__
            raise ValueError(f"the state is that of a {kind} of {saved}, but this is a {kind} of {own}")
        self.controller.load_state_dict(state["state"])

    def reset(self) -> None:
        """Reset the controller."""
        self.told_of_schedule = False
        self.controller.reset()


class DryRun(Wrapper):
    """A controller that passes every reading to another one without applying its scales.

    Its log holds the actions that the other would have taken on these readings.

    Args:
        controller: the controller to try.

    Raises:
        TypeError: if it is not a controller.
    """

    def __init__(self, controller: Controller) -> None:
        super().__init__(controller)
        self._would = Scales()

    @property
    def length(self) -> int | None:
        """None, because nothing is applied."""
        return None

    @property
    def left(self) -> float:
        """1, because nothing is applied."""
        return 1.0

    @property
    def would(self) -> Scales:
        """The controller's last scales; neutral before the first update and after loading."""
        return self._would

    def update(self, reading: Reading | None, step: int) -> Scales:
        """Return neutral scales, with the weights that the law's own sums need."""
        self._would = self.controller.update(reading, step)
        return Scales(weights=self._would.weights)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        super().load_state_dict(state)
        self._would = Scales()

    def reset(self) -> None:
        """Forget the run."""
        super().reset()
        self._would = Scales()


def _members(controller: Controller) -> Iterator[Controller]:
    """Return the controllers that act in a chain; those inside a dry run do not."""
    parts = getattr(controller, "controllers", ())
    if not parts:
        yield controller
    for part in parts:
        yield from _members(part)
