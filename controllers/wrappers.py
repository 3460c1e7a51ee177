"""Controllers made of controllers: several at once, a dry run, a record of the scales and its replay."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from thermoopt.controllers.base import Action, Controller, Scales, Start

from thermoopt.meter import Reading

__all__ = ["Chain", "DryRun", "Recorder", "Replay"]

ROW = ("step", "lr", "wd", "layers")
"""Keys of a row of a trajectory: the step from which the scales hold, and what :class:`Scales` says; of
``layers`` what changed."""


def _check_controller(argument: str, controller: object) -> None:
    if not isinstance(controller, Controller):
        raise TypeError(f"{argument} is {controller!r}; allowed is a thermoopt.controllers.Controller")


def _product(a: float | Sequence[float], b: float | Sequence[float]) -> float | list[float]:
    """Product of two factors, each for all groups or one a group."""
    if isinstance(a, Sequence) and isinstance(b, Sequence):
        if len(a) != len(b):
            raise ValueError(f"Chain: one controller gives {len(a)} factors, another {len(b)}")
        return [x * y for x, y in zip(a, b, strict=True)]
    if isinstance(a, Sequence):
        return [x * b for x in a]  # type: ignore[operator]
    return [a * y for y in b] if isinstance(b, Sequence) else a * b


class Chain(Controller):
    """Asks several controllers with the same reading and multiplies their scales.

    Layer factors multiply by name; a layer that one of them names keeps that one's factor until it names it
    again.

    Args:
        controllers: at least one.

    Raises:
        ValueError: without any.
        TypeError: if one is no controller.
    """

    def __init__(self, *controllers: Controller) -> None:
        if not controllers:
            raise ValueError("Chain() has no controllers; allowed are one or more")
        for i, controller in enumerate(controllers):
            _check_controller(f"Chain: controller {i}", controller)
        self.controllers = controllers
        self._forget()

    def _forget(self) -> None:
        self._kept: list[dict[str, float]] = [{} for _ in self.controllers]
        self._named: list[Mapping[str, float]] = [{} for _ in self.controllers]
        self._layers: dict[str, float] = {}

    @property
    def needs(self) -> frozenset[str]:
        """What any of them needs."""
        return frozenset().union(*(c.needs for c in self.controllers))

    @property
    def ema_steps(self) -> float | None:
        """The shortest average that one of them wants."""
        return min((c.ema_steps for c in self.controllers if c.ema_steps is not None), default=None)

    @property
    def every(self) -> int | None:
        """The shortest interval that one of them wants."""
        return min((c.every for c in self.controllers if c.every is not None), default=None)

    def attach(self, start: Start) -> None:
        """Tell all of them."""
        for controller in self.controllers:
            controller.attach(start)

    def update(self, reading: Reading | None, step: int) -> Scales:
        """Return the product of their scales, and the weights of the one that gives some.

        Raises:
            ValueError: if two give factors for different numbers of groups, or weights both.
        """
        lr: float | Sequence[float] = 1.0
        wd: float | Sequence[float] = 1.0
        weights = None
        changed = False
        for i, controller in enumerate(self.controllers):
            scales = controller.update(reading, step)
            lr, wd = _product(lr, scales.lr), _product(wd, scales.wd)
            if weights is not None and scales.weights is not None:
                raise ValueError("Chain: two controllers give weights; allowed is one law that needs impulse")
            weights = scales.weights or weights
            # the same mapping again says nothing new
            if scales.layers and scales.layers is not self._named[i]:
                self._named[i] = scales.layers
                self._kept[i].update(scales.layers)
                changed = True
        if changed:
            self._multiply_layers()
        return Scales(lr=lr, wd=wd, layers=self._layers, weights=weights)

    def _multiply_layers(self) -> None:
        self._layers = {}
        for kept in self._kept:
            for name, factor in kept.items():
                self._layers[name] = self._layers.get(name, 1.0) * factor

    def cool_now(self, steps: int) -> None:
        """Start the quench of every member that has one (:meth:`Cooling.cool_now`).

        Raises:
            ValueError: if none has, or as that method says.
        """
        members = list(_members(self))
        coolers = [m for m in members if hasattr(m, "cool_now")]
        if not coolers:
            names = ", ".join(type(m).__name__ for m in members)
            raise ValueError(f"cool_now: none of {names} can; allowed is a Chain with a Cooling in it")
        for cooler in coolers:
            cooler.cool_now(steps)

    @property
    def log(self) -> list[Action]:
        """The actions of all, in the order of steps."""
        return sorted((a for c in self.controllers for a in c.log), key=lambda a: a.step)

    def state_dict(self) -> dict[str, Any]:
        """Return class, state and layer factors of each."""
        return {
            "members": [
                {"class": type(c).__name__, "state": c.state_dict(), "layers": dict(kept)}
                for c, kept in zip(self.controllers, self._kept, strict=True)
            ]
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave.

        Raises:
            ValueError: if it is of other controllers; nothing has changed then.
        """
        saved, own = [m["class"] for m in state["members"]], [type(c).__name__ for c in self.controllers]
        if saved != own:
            raise ValueError(f"state of a Chain of {', '.join(saved)} for a Chain of {', '.join(own)}")
        for controller, member in zip(self.controllers, state["members"], strict=True):
            controller.load_state_dict(member["state"])
        self._forget()
        self._kept = [{str(k): float(v) for k, v in m["layers"].items()} for m in state["members"]]
        self._multiply_layers()

    def reset(self) -> None:
        """Reset all of them."""
        for controller in self.controllers:
            controller.reset()
        self._forget()


class _Wrapper(Controller):
    """Forwards everything to one controller."""

    def __init__(self, controller: Controller) -> None:
        _check_controller(f"{type(self).__name__}: controller", controller)
        self.controller = controller

    @property
    def needs(self) -> frozenset[str]:
        """What the controller needs."""
        return self.controller.needs

    @property
    def ema_steps(self) -> float | None:
        """What the controller wants."""
        return self.controller.ema_steps

    @property
    def every(self) -> int | None:
        """What the controller wants."""
        return self.controller.every

    def attach(self, start: Start) -> None:
        """Tell the controller."""
        self.controller.attach(start)

    @property
    def log(self) -> list[Action]:
        """The controller's actions."""
        return self.controller.log

    def state_dict(self) -> dict[str, Any]:
        """Return the controller's class and state."""
        return {"class": type(self.controller).__name__, "state": self.controller.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave.

        Raises:
            ValueError: if it is of another controller; nothing has changed then.
        """
        saved, own = state["class"], type(self.controller).__name__
        if saved != own:
            raise ValueError(f"state of a {type(self).__name__} of {saved} for one of {own}")
        self.controller.load_state_dict(state["state"])

    def reset(self) -> None:
        """Reset the controller."""
        self.controller.reset()


class DryRun(_Wrapper):
    """Lets a controller judge every reading, and does nothing.

    Its log is the controller's: what would have been done, had every reading been as it was.

    Args:
        controller: the one to try.

    Raises:
        TypeError: if it is no controller.
    """

    def __init__(self, controller: Controller) -> None:
        super().__init__(controller)
        self._would = Scales()

    @property
    def would(self) -> Scales:
        """What the controller returned last; neutral before the first update and after a load."""
        return self._would

    def update(self, reading: Reading | None, step: int) -> Scales:
        """Return neutral scales, with the weights that a law's own sums need."""
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


class Recorder(_Wrapper):
    """Passes a controller's scales on and keeps their trajectory, for :class:`Replay`.

    Args:
        controller: the one to record.

    Raises:
        TypeError: if it is no controller.
    """

    def __init__(self, controller: Controller) -> None:
        super().__init__(controller)
        self.controllers = (controller,)
        self._take([])

    def _take(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows
        self._layers: dict[str, float] = {}
        for row in rows:
            self._layers.update(row["layers"])
        self._named: Mapping[str, float] = {}

    @property
    def trajectory(self) -> list[dict[str, Any]]:
        """One row ``{"step", "lr", "wd", "layers"}`` for every step whose scales differ from the last.

        ``layers`` holds the factors that changed with it.
        """
        return [_copy(row) for row in self._rows]

    def update(self, reading: Reading | None, step: int) -> Scales:
        """Return the controller's scales."""
        scales = self.controller.update(reading, step)
        if self._rows and self._rows[-1]["step"] >= step:
            # a step that was taken back (a checkpoint library's dry step) comes again
            self._take([row for row in self._rows if row["step"] < step])
        changed = {}
        if scales.layers is not self._named:
            changed = {str(k): float(v) for k, v in scales.layers.items() if self._layers.get(k) != v}
        row = {"step": int(step), "lr": _plain(scales.lr), "wd": _plain(scales.wd), "layers": changed}
        last = self._rows[-1] if self._rows else None
        if last is None or changed or (row["lr"], row["wd"]) != (last["lr"], last["wd"]):
            self._rows.append(row)
            self._layers.update(changed)
        self._named = scales.layers
        return scales

    def save(self, path: str | Path) -> None:
        """Write the trajectory, one JSON object a line; :meth:`Replay.load` reads it."""
        lines = (json.dumps(row, allow_nan=False) + "\n" for row in self._rows)
        Path(path).write_text("".join(lines), encoding="utf-8")

    def state_dict(self) -> dict[str, Any]:
        """Return the controller's class and state, and the trajectory."""
        return {**super().state_dict(), "trajectory": self.trajectory}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        super().load_state_dict(state)
        self._take([_copy(row) for row in state["trajectory"]])

    def reset(self) -> None:
        """Forget the run."""
        super().reset()
        self._take([])


class Replay(Controller):
    """Plays a recorded trajectory back, whatever the readings say.

    The ablation that tells feedback from shape: the same scales, open loop. Neutral before the first row;
    every row holds until the next, the last for good.

    Args:
        trajectory: a :class:`Recorder`, or rows as its ``trajectory`` has them, with rising steps.

    Raises:
        ValueError: if a row is not as described, naming it, or there is none.
    """

    def __init__(self, trajectory: Recorder | Iterable[Mapping[str, Any]]) -> None:
        rows = trajectory.trajectory if isinstance(trajectory, Recorder) else list(trajectory)
        if not rows:
            raise ValueError("trajectory has no rows; allowed are one or more")
        self._steps: list[int] = []
        self._scales: list[Scales] = []
        layers: dict[str, float] = {}
        for i, row in enumerate(rows):
            try:
                step, lr, wd, changed = _parse(row)
                if self._steps and step <= self._steps[-1]:
                    raise ValueError(f"step is {step}; allowed are whole numbers above {self._steps[-1]}")
            except ValueError as error:
                raise ValueError(f"trajectory: row {i} is {row!r}: {error}") from error
            layers = {**layers, **changed} if changed else layers
            self._steps.append(step)
            self._scales.append(Scales(lr=lr, wd=wd, layers=layers))

    @classmethod
    def load(cls, path: str | Path) -> Replay:
        """Read what :meth:`Recorder.save` wrote.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if a line is no JSON object or no row.
        """
        rows = []
        for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"path: line {number} of {str(path)!r} is no JSON: {error}") from error
        return cls(rows)

    def update(self, reading: Reading | None, step: int) -> Scales:
        """Return the scales of the last row up to this step."""
        i = bisect_right(self._steps, step)
        return self._scales[i - 1] if i else Scales()

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: where it stands is the step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up nothing."""

    def reset(self) -> None:
        """Forget nothing."""


def _members(controller: Controller) -> Iterator[Controller]:
    """The controllers that act in a chain; what a dry run tries does not."""
    parts = getattr(controller, "controllers", ())
    if not parts:
        yield controller
    for part in parts:
        yield from _members(part)


def _plain(factor: float | Sequence[float]) -> float | list[float]:
    return [float(x) for x in factor] if isinstance(factor, Sequence) else float(factor)


def _copy(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row that shares nothing with the original."""
    return {
        "step": row["step"],
        "lr": _plain(row["lr"]),
        "wd": _plain(row["wd"]),
        "layers": {**row["layers"]},
    }


def _number(key: str, value: object) -> float:
    number = not isinstance(value, bool) and isinstance(value, (int, float))
    if not (number and math.isfinite(value) and value >= 0):  # type: ignore[arg-type, operator]
        raise ValueError(f"{key} holds {value!r}; allowed are finite numbers >= 0")
    return float(value)  # type: ignore[arg-type]


def _factors(row: Mapping[str, Any], key: str) -> float | list[float]:
    value = row[key]
    return [_number(key, x) for x in value] if isinstance(value, list) else _number(key, value)


def _parse(row: object) -> tuple[int, float | list[float], float | list[float], dict[str, float]]:
    """Step, lr, wd and layers of a row.

    Raises:
        ValueError: saying what is wrong with it.
    """
    if not isinstance(row, Mapping) or set(row) != set(ROW):
        raise ValueError(f"allowed are objects with {', '.join(ROW)}")
    step, layers = row["step"], row["layers"]
    if isinstance(step, bool) or not isinstance(step, int) or step < 1:
        raise ValueError(f"step is {step!r}; allowed are whole numbers from 1")
    if not isinstance(layers, Mapping):
        raise ValueError(f"layers is {layers!r}; allowed is an object of factors by layer name")
    factors = {str(name): _number(f"layer {name!r}", factor) for name, factor in layers.items()}
    return step, _factors(row, "lr"), _factors(row, "wd"), factors
