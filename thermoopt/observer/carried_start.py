"""The distance from the start for any optimizer: the start's sample travels in its param groups."""

from __future__ import annotations

import warnings
import weakref
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from thermoopt.account import MAX_PENDING
from thermoopt.kernels import real_elements
from thermoopt.observer.step_hooks import when_gradients_are_there
from thermoopt.physics.travel import Travel, Weights
from thermoopt.tensors import PendingTravel, Sharding, TravelProbe, same_members

__all__ = ["KEY", "CarriedTravel"]

KEY = "thermo_travel"
"""The key of a group's sample of its layers' start, next to torch's own ``initial_lr``: thus
``optimizer.state_dict()`` carries it, and a scheduler's state needs no tensor."""


class CarriedTravel:
    """A :class:`~thermoopt.tensors.TravelProbe` on an optimizer's parameters that outlives a checkpoint.

    Every group holds its layers' sample of the start under :data:`KEY`, flat and on CPU: at most one element
    in 17 (all up to 16,384 in total), as much again as the probe keeps. It is put there at once, so that
    checkpoint libraries, which load into existing state, find its place, and again before the first step.

    The start is the parameters before the first step after construction, unless a state was loaded
    (:meth:`load_state_dict`): then it is what the groups hold at the next step, no matter which of optimizer
    and state was loaded first. A group without a sample that fits starts from its present parameters, with a
    warning.

    ``weights`` says how the coming step enters work and impulse; with None it does not enter.

    Args:
        optimizer: any torch optimizer.
        needs: sums to measure, of :data:`thermoopt.physics.TRAVEL_SUMS`. Work and impulse, which change at
            every step, are put into the groups when the optimizer's ``state_dict`` is called.
    """

    def __init__(self, optimizer: Optimizer, needs: Iterable[str]) -> None:
        self._optimizer = optimizer
        self._probe = TravelProbe(needs)
        self._begun = 0  # groups that have a start
        self._known: list[Any] | None = []  # their samples; None if they are to be loaded
        self._measured: deque[tuple[int, PendingTravel | Travel]] = deque(maxlen=MAX_PENDING)
        self._members: list[list[Tensor]] = []  # the tensors of each group at the step before
        self._placed: list[Any] = []  # samples that are not of a loaded run
        bare = [i for i, group in enumerate(optimizer.param_groups) if group.get(KEY) is None]
        if bare:
            self._probe.start(self._params())
            self._placed = self._put(bare)
        self.weights: Weights | None = None
        self._handle: Any = None
        if "impulse" in self._probe.needs:
            own = weakref.ref(self)
            self._handle = optimizer.register_state_dict_pre_hook(lambda _: _refreshed(own()))

    def remove(self) -> None:
        """Stop carrying the start."""
        if self._handle is not None:
            self._handle.remove()

    # ---------------------------------------------------------------- measuring

    def follow(self) -> None:
        """Check, before a step, whether groups were added or loaded; x0 is taken before the first step."""
        held = [group.get(KEY) for group in self._optimizer.param_groups]
        if self._edited():
            self._measured.clear()
            self._known = held  # their samples are put again, from the starts that the probe keeps
        elif self._begun == 0:
            self._probe.forget()
        elif self._known is None or not _same(held[: len(self._known)], self._known):
            self._take_up(held)
        elif len(held) == len(self._known):
            return
        self._probe.start(self._params())
        self._known, self._placed = self._put(range(len(held))), []
        self._begun = len(held)
        self._members = self._groups()

    def _groups(self) -> list[list[Tensor]]:
        return [list(group["params"]) for group in self._optimizer.param_groups]

    def _edited(self) -> bool:
        """Whether groups that are known were edited by hand since the step before."""
        known, groups = len(self._members), self._optimizer.param_groups
        now = [group["params"] for group in groups[:known]]
        return self._begun > 0 and self._known is not None and not same_members(now, self._members)

    def read(self, args: Any, kwargs: Any, step: int | None) -> tuple[Any, Any] | None:
        """Follow the parameters, and enter the coming step's forces once its gradients exist.

        Args:
            args, kwargs: of the step, as passed to its hooks.
            step: its number if its sums are to be formed, else None.

        Returns:
            The return value for the hook.
        """
        self.follow()
        if self.weights is not None:
            return when_gradients_are_there(args, kwargs, lambda times: self._enter(times, step))
        if step is not None:
            self.measure(step)
        return None

    def _enter(self, times: int, step: int | None) -> None:
        """Enter the forces, once even if a closure runs again in the same step; then form the sums."""
        if times > 1 or self.weights is None:
            return
        lrs = []
        for group in self._optimizer.param_groups:
            lr, sign = group.get("lr"), -1.0 if group.get("maximize") else 1.0
            lrs += [sign * (1.0 if lr is None else lr)] * len(group["params"])
        scaler = {key: getattr(self._optimizer, key, None) for key in ("grad_scale", "found_inf")}
        self._probe.push(lrs, self.weights, **scaler)
        if step is not None:
            self.measure(step)

    def refresh(self) -> None:
        """Put present work and impulse into the groups that have a start."""
        if self._begun and self._known is not None:
            self._known[: self._begun] = self._put(range(self._begun))

    def measure(self, step: int) -> None:
        """Start forming the sums of a step about to be taken, after :meth:`follow`."""
        pending = self._probe.measure()
        if sharding := Sharding(self._params()):
            pending.add_up(sharding)
        self._measured.append((step, pending))

    def take(self, step: int) -> Travel | None:
        """Return the sums measured for a step, or None; forget those of earlier steps and former layers."""
        if self._edited():
            self._measured.clear()
        while self._measured and self._measured[0][0] < step:
            self._measured.popleft()
        if not self._measured or self._measured[0][0] != step:
            return None
        return _arrived(self._measured.popleft()[1])

    # ---------------------------------------------------------------- what the groups hold

    def _params(self) -> list[Tensor]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def _layers(self) -> list[range]:
        """Indices of each group's layers."""
        sizes = [len(group["params"]) for group in self._optimizer.param_groups]
        ends = np.cumsum(sizes).tolist()
        return [range(end - size, end) for size, end in zip(sizes, ends, strict=True)]

    def _put(self, groups: Iterable[int]) -> list[Any]:
        """Put into groups the samples of their layers' start; return these."""
        layers, params, out = self._layers(), self._params(), []
        total = sum(real_elements(p) for p in params)
        for i in groups:
            out.append(self._probe.export_layers(layers[i], [params[j] for j in layers[i]], total))
            self._optimizer.param_groups[i][KEY] = out[-1]
        return out

    def _take_up(self, held: list[Any]) -> None:
        """Make the probe start from the groups' samples."""
        self._probe.forget()
        params, lost = self._params(), []
        total = sum(real_elements(p) for p in params)
        for i, (layers, saved) in enumerate(zip(self._layers(), held, strict=True)):
            own = any(saved is placed for placed in self._placed)
            found = {} if own or not isinstance(saved, Mapping) else saved
            if not self._probe.import_layers(layers, [params[j] for j in layers], total, found):
                lost += [i] if i < self._begun else []
        if lost:
            warnings.warn(
                f"param_groups {lost} hold no fitting {KEY!r}, the sample of the run's start (was the "
                "optimizer's state saved without it, or not loaded?): their distance counts from the current "
                "parameters",
                RuntimeWarning,
                stacklevel=2,
            )

    # ---------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """Return the number of groups with a start and the sums not handed over yet: ints and floats."""
        rows = []
        for step, travel in self._measured:
            t = _arrived(travel)
            rows.append([step, [t.distance2.tolist(), t.work.tolist(), t.impulse.tolist()]])
        return {"groups": self._begun, "measured": rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; the start is what the groups hold at the next step."""
        self._begun, self._known = int(state["groups"]), None
        self._measured.clear()
        for step, rows in state["measured"]:
            self._measured.append((int(step), Travel(*np.asarray(rows, dtype=np.float64))))


def _refreshed(carried: CarriedTravel | None) -> None:
    if carried is not None:
        carried.refresh()


def _same(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


def _arrived(travel: PendingTravel | Travel) -> Travel:
    return travel.travel() if isinstance(travel, PendingTravel) else travel
