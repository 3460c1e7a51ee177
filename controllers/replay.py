"""A recording of a run's scales and its replay: the ablation that separates feedback from shape."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from thermoopt.account.reading import Reading
from thermoopt.controllers.base import Controller, Scales
from thermoopt.controllers.saved import check_numbers
from thermoopt.controllers.wrappers import Wrapper

__all__ = ["Recorder", "Replay"]

ROW = ("step", "lr", "wd", "layers")
"""Keys of a row of a trajectory: the step from which the scales apply, and the fields of :class:`Scales`,
with only the changes of ``layers``."""


class Recorder(Wrapper):
    """A controller that forwards another's scales and records their trajectory for :class:`Replay`.

    Args:
        controller: the controller to record.

    Raises:
        TypeError: if it is not a controller.
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
        """Write the trajectory, one JSON object per line; :meth:`Replay.load` reads it."""
        lines = (json.dumps(row, allow_nan=False) + "\n" for row in self._rows)
        Path(path).write_text("".join(lines), encoding="utf-8")

    def state_dict(self) -> dict[str, Any]:
        """Return the controller's class and state, and the trajectory."""
        return {**super().state_dict(), "trajectory": self.trajectory}

    def check_state(self, state: Mapping[str, Any], where: str) -> None:
        """Check the numbers of the controller's state and of the trajectory."""
        super().check_state(state, where)
        check_numbers(state["trajectory"], 1.0, f"{where}['trajectory']")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the result of :meth:`state_dict`."""
        super().load_state_dict(state)
        self._take([_copy(row) for row in state["trajectory"]])

    def reset(self) -> None:
        """Forget the run."""
        super().reset()
        self._take([])


class Replay(Controller):
    """A controller that plays back a recorded trajectory regardless of the readings.

    This is the ablation that tells feedback from shape: the same scales, open loop. It is neutral before the
    first row; every row holds until the next, and the last one for good.

    Args:
        trajectory: a :class:`Recorder`, or rows like those of its ``trajectory``, with rising steps.

    Raises:
        ValueError: if there is no row, or one is malformed; the message names it.
    """

    def __init__(self, trajectory: Recorder | Iterable[Mapping[str, Any]]) -> None:
        rows = trajectory.trajectory if isinstance(trajectory, Recorder) else list(trajectory)
        if not rows:
            raise ValueError("trajectory must have at least one row, got none")
        self._steps: list[int] = []
        self._scales: list[Scales] = []
        layers: dict[str, float] = {}
        for i, row in enumerate(rows):
            try:
                step, lr, wd, changed = _parse(row)
                if self._steps and step <= self._steps[-1]:
                    raise ValueError(f"step must be an integer > {self._steps[-1]}, got {step}")
            except ValueError as error:
                raise ValueError(f"trajectory: row {i} is {row!r}: {error}") from error
            layers = {**layers, **changed} if changed else layers
            self._steps.append(step)
            self._scales.append(Scales(lr=lr, wd=wd, layers=layers))

    @classmethod
    def load(cls, path: str | Path) -> Replay:
        """Read a file written by :meth:`Recorder.save`.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if a line is not a JSON object or not a row.
        """
        rows = []
        for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"path: line {number} of {str(path)!r} is not JSON: {error}") from error
        return cls(rows)

    def update(self, reading: Reading | None, step: int) -> Scales:
        """Return the scales of the last row up to this step."""
        i = bisect_right(self._steps, step)
        return self._scales[i - 1] if i else Scales()

    def state_dict(self) -> dict[str, Any]:
        """Return an empty dict: the position is the step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing: there is no state."""

    def reset(self) -> None:
        """Do nothing: there is no state."""


def _plain(factor: float | Sequence[float]) -> float | list[float]:
    return [float(x) for x in factor] if isinstance(factor, Sequence) else float(factor)


def _copy(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a deep copy of a row."""
    return {
        "step": row["step"],
        "lr": _plain(row["lr"]),
        "wd": _plain(row["wd"]),
        "layers": {**row["layers"]},
    }


def _number(key: str, value: object) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf:
        return float(value)
    raise ValueError(f"{key} must hold finite numbers >= 0, got {value!r}")


def _factors(row: Mapping[str, Any], key: str) -> float | list[float]:
    value = row[key]
    return [_number(key, x) for x in value] if isinstance(value, list) else _number(key, value)


def _parse(row: object) -> tuple[int, float | list[float], float | list[float], dict[str, float]]:
    """Return step, lr, wd and layers of a row.

    Raises:
        ValueError: saying what is wrong with it.
    """
    if not isinstance(row, Mapping) or set(row) != set(ROW):
        raise ValueError(f"must be an object with {', '.join(ROW)}")
    step, layers = row["step"], row["layers"]
    if isinstance(step, bool) or not isinstance(step, int) or step < 1:
        raise ValueError(f"step must be an integer >= 1, got {step!r}")
    if not isinstance(layers, Mapping):
        raise ValueError(f"layers must be an object of factors by layer name, got {layers!r}")
    factors = {str(name): _number(f"layer {name!r}", factor) for name, factor in layers.items()}
    return step, _factors(row, "lr"), _factors(row, "wd"), factors
