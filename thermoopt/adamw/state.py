"""What a parameter group holds under ``thermo``: the one place that knows the keys."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from thermoopt.account import (
    Ledger,
    Meter,
    as_leaf,
    follow_edit,
    from_leaf,
    is_exchange,
    names_by_position,
    plain_name,
    with_present_names,
)
from thermoopt.adamw.arguments import (
    drop_foreign_state,
    plain_number,
    tell_of_missing_moments,
    tell_of_scales,
)
from thermoopt.controllers import Controller, Scales, restore
from thermoopt.kernels import real_elements
from thermoopt.sinks import SinkQueue
from thermoopt.tensors import follow_groups, root_mean_squares, same_members, see_parts
from thermoopt.uncompiled import uncompiled

__all__ = [
    "KEY",
    "GroupState",
    "Layout",
    "RunStart",
    "apply_scales",
    "carried",
    "export_groups",
    "import_groups",
    "set_layer_factors",
    "start_norms",
]

KEY = "thermo"
"""The key in a group. In a checkpoint it also holds what the ledger and the control loop export, and in the
first group the controller's own state."""

_CONTROLLER = "controller"


class LossTaker(Protocol):
    """A control loop, which a law may need a loss in."""

    def report_loss(self, loss: object) -> None:
        """Keep the loss for the next reading."""


class Exporter(Protocol):
    """A control loop: the controller, and what it keeps of a run, by group."""

    controller: Controller

    def export_group(self, layers: Sequence[int], params: Sequence[Tensor], total: int) -> dict[str, Any]:
        """Return the group's part of a checkpoint."""

    def import_groups(
        self, saved: Sequence[Mapping[str, Any]], meter: Meter, params: Sequence[Tensor]
    ) -> None:
        """Restore what :meth:`export_group` returned, for all groups together."""


def _number(x: Any) -> float:
    """Return the value of a rate, which may be a tensor that is itself learned (``differentiable=True``)."""
    return float(x.detach() if isinstance(x, Tensor) else x)


class GroupState:
    """What one group carries: scales, layer factors, and where it started.

    Args:
        group: a parameter group that has been :meth:`adopt`-ed.
    """

    __slots__ = ("held",)

    def __init__(self, group: Mapping[str, Any]) -> None:
        self.held: dict[str, Any] = group[KEY]

    @staticmethod
    def fresh(group: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a group holds before anything is controlled: every factor is 1.

        ``start_lr`` and ``start_wd`` are the group's rates now; ``start_rms``, the layers' rms before the
        first controlled step, is -1 as long as it is unknown.
        """
        n = len(group["params"])
        return {
            "lr_scale": 1.0,
            "wd_scale": 1.0,
            "layer_factors": torch.ones(n, dtype=torch.float64, device="cpu"),
            "start_lr": _number(group["lr"]),
            "start_wd": _number(group["weight_decay"]),
            "start_rms": torch.full((n,), -1.0, dtype=torch.float64, device="cpu"),
        }

    @classmethod
    def adopt(cls, group: dict[str, Any]) -> Mapping[str, Any]:
        """Add to a group what is missing of its live state; return all that was saved under the key."""
        saved = group.get(KEY, {})
        group[KEY] = {key: saved.get(key, value) for key, value in cls.fresh(group).items()}
        for key in ("layer_factors", "start_rms"):
            group[KEY][key] = torch.as_tensor(group[KEY][key], dtype=torch.float64, device="cpu")
        return saved

    @property
    def lr_scale(self) -> float:
        """Factor on the group's learning rate."""
        return self.held["lr_scale"]

    @property
    def wd_scale(self) -> float:
        """Factor on the group's weight decay."""
        return self.held["wd_scale"]

    @property
    def factors(self) -> Tensor:
        """Factors on the layers' learning rates, ``[n]``."""
        return self.held["layer_factors"]

    @property
    def start(self) -> tuple[float, float, list[float]]:
        """Learning rate, weight decay and the layers' rms at the start."""
        return self.held["start_lr"], self.held["start_wd"], self.held["start_rms"].tolist()

    def forget_scales(self, group: Mapping[str, Any]) -> None:
        """Set every factor back to 1; the rates at the start stay those of construction."""
        fresh = self.fresh(group)
        for key in ("start_lr", "start_wd"):  # a dry step has lr 0
            del fresh[key]
        self.held.update(fresh)

    def snapshot(self) -> dict[str, Any]:
        """Return a copy."""
        return {k: v.clone() if isinstance(v, Tensor) else v for k, v in self.held.items()}


class Layout:
    """Which tensors an optimizer's groups hold and what they carry, as its ledger knows them.

    Args:
        groups: the parameter groups, each :meth:`GroupState.adopt`-ed.

    Attributes:
        gone: names of layers that are no longer there.
    """

    def __init__(self, groups: Sequence[dict[str, Any]]) -> None:
        self.gone: set[str] = set()
        self.remember(groups)

    def remember(self, groups: Sequence[dict[str, Any]]) -> None:
        """Remember the present layout."""
        self._members = [list(group["params"]) for group in groups]
        self._held = [group[KEY] for group in groups]

    def follow(self, groups: Sequence[dict[str, Any]], ledger: Ledger) -> str | None:
        """Make ledger and groups follow their tensors if groups were edited by hand.

        Returns:
            None if they were not, ``"exchange"`` if tensors were only replaced one by one, ``"foreign"`` if
            others had put theirs into them, which is dropped, else ``"edit"``.
        """
        members = [group["params"] for group in groups]
        if same_members(members, self._members):
            if all(group.get(KEY) is own for group, own in zip(groups, self._held, strict=True)):
                return None
            if all(KEY in group for group in groups):
                drop_foreign_state(groups, KEY)
                return "foreign"
        old, labels = ledger.meter.names, ledger.meter.group_names
        for group, i in zip(groups, follow_groups(self._members, members), strict=True):
            if i is not None:
                group.setdefault("name", labels[i])  # what it was called, wherever it stands now
        before = follow_edit(ledger, self._members, groups)
        kind = "exchange" if is_exchange(self._members, groups, before) else "edit"
        self._put_rows(groups, before)
        self.gone = (self.gone | set(old)) - set(ledger.meter.names)
        for group in groups:
            if "param_names" in group:
                group["param_names"] = [ledger.kept_names[p] for p in group["params"]]
        self.remember(groups)
        return kind

    def _put_rows(self, groups: Sequence[dict[str, Any]], before: Sequence[int | None]) -> None:
        """Give groups what belongs to their tensors, which were the layers ``before``."""
        blanks = {"layer_factors": 1.0, "start_rms": -1.0}
        old = {key: [value for held in self._held for value in held[key].tolist()] for key in blanks}
        i = 0
        for group in groups:
            rows = before[i : i + len(group["params"])]
            group[KEY] = {**GroupState.fresh(group), **group.get(KEY, {})}
            for key, blank in blanks.items():
                values = [blank if row is None else old[key][row] for row in rows]
                group[KEY][key] = torch.tensor(values, dtype=torch.float64, device="cpu")
            i += len(rows)


@contextmanager
def carried(
    groups: Sequence[dict[str, Any]], snapshots: Sequence[dict[str, Any]], state: MutableMapping[Any, Any]
) -> Iterator[None]:
    """Put snapshots into the groups, and only their own tensors into ``state``, within this context.

    torch's state dict refers to what a group holds, and hooks may read and edit it. Numbers of numpy in the
    groups become Python's, for good.
    """
    live = [group[KEY] for group in groups]
    own = {p for group in groups for p in group["params"]}
    out = {p: state.pop(p) for p in list(state) if isinstance(p, Tensor) and p not in own}
    try:
        for group, snapshot in zip(groups, snapshots, strict=True):
            group.update({key: plain_number(x) for key, x in group.items()})
            group[KEY] = snapshot
        yield
    finally:
        for group, thermo in zip(groups, live, strict=True):
            group[KEY] = thermo
        state.update(out)


def export_groups(
    groups: Sequence[Mapping[str, Any]], ledger: Ledger, loop: Exporter | None
) -> list[dict[str, Any]]:
    """Return every group's part of a checkpoint: scales, averages, counters, the controller."""
    exported = ledger.export_groups()
    out = [{**GroupState(group).snapshot(), **more} for group, more in zip(groups, exported, strict=True)]
    if loop is not None:
        meter = ledger.meter
        for i, group in enumerate(groups):
            layers = np.flatnonzero(meter.group_of == i).tolist()
            out[i].update(loop.export_group(layers, group["params"], int(meter.numel.sum())))
        if out:
            out[0][_CONTROLLER] = as_leaf(loop.controller.state_dict())
    return out


def import_groups(
    saved: Sequence[Mapping[str, Any]],
    ledger: Ledger,
    loop: Exporter | None,
    params: Sequence[Tensor],
    state: Mapping[Any, Any],
) -> None:
    """Restore what :func:`export_groups` returned; if nothing, count on from the steps in ``state``."""
    ledger.import_groups(saved)
    tell_of_missing_moments(ledger.run.step - sum(ledger.run.skipped.values()), state)
    if ledger.run.step == 0:
        counts = [own["step"] for own in state.values() if isinstance(own, dict) and "step" in own]
        ledger.run.step = int(max((float(count) for count in counts), default=0))
    controller = next((group[_CONTROLLER] for group in reversed(saved) if _CONTROLLER in group), None)
    if loop is not None:
        if controller is not None:
            names = ledger.meter.names  # the saved ones, if there were any: torch puts them into the groups
            sizes = np.bincount(ledger.meter.group_of)
            nameless = [name for i, n in enumerate(sizes) for name in names_by_position(i, n)]
            restore(loop.controller, with_present_names(from_leaf(controller), nameless, names))
        loop.import_groups(saved, ledger.meter, params)
    elif controller is not None:
        tell_of_scales(saved)


def apply_scales(groups: Sequence[Mapping[str, Any]], scales: Scales) -> None:
    """Set the groups' factors."""
    lrs, wds = scales.spread(len(groups))
    for group, lr, wd in zip(groups, lrs, wds, strict=True):
        held = group[KEY]
        held["lr_scale"], held["wd_scale"] = lr, wd


def set_layer_factors(
    groups: Sequence[Mapping[str, Any]], names: Sequence[str], factors: Mapping[str, float]
) -> None:
    """Set the layers' factors by name.

    Raises:
        KeyError, ValueError: as :meth:`thermoopt.ThermoAdamW.set_layer_factors`; nothing has changed then.
    """
    place = {name: i for i, name in enumerate(names)}
    factors = {name if name in place else plain_name(name): factor for name, factor in factors.items()}
    for name, factor in factors.items():
        if name not in place:
            raise KeyError(f"layer factor for {name!r}, which belongs to no parameter of this optimizer")
        if not (math.isfinite(factor) and factor >= 0):
            raise ValueError(f"layer factor of {name!r} must be a finite number >= 0, got {factor!r}")
    homes = [(GroupState(group).factors, j) for group in groups for j in range(len(group["params"]))]
    for name, factor in factors.items():
        tensor, j = homes[place[name]]
        tensor[j] = factor


def start_norms(groups: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float], list[float]]:
    """Return every layer's rms and every group's lr and wd at the start; unknown ones are taken as of now."""
    fresh = [group for group in groups if (group[KEY]["start_rms"] < 0).any()]
    found = root_mean_squares([p for group in fresh for p in group["params"]])
    for group, values in zip(fresh, found.split([len(g["params"]) for g in fresh]), strict=True):
        known = group[KEY]["start_rms"]
        group[KEY]["start_rms"] = torch.where(known < 0, values.to(known), known)
    starts = [GroupState(group).start for group in groups]
    rms = [x for _, _, values in starts for x in values]
    return rms, [lr for lr, _, _ in starts], [wd for _, wd, _ in starts]


class RunStart:
    """What a record should know of a run besides readings, where no observer tells it: how it started.

    Made anew when a checkpoint is loaded.

    Args:
        ledger: of the run.
        sinks: whose records ask.
        groups: the parameter groups; of a run that has begun, their start is on record or was missed.
        controller: knows how long the run is meant to be.
    """

    def __init__(
        self,
        ledger: Ledger,
        sinks: SinkQueue,
        groups: Sequence[Mapping[str, Any]],
        controller: Controller | None = None,
    ) -> None:
        self._ledger, self._sinks, self._groups, self._controller = ledger, sinks, groups, controller
        self._begun = len(groups) if ledger.run.step else 0
        self._begun_at = ledger.run.step
        sinks.rewind(ledger.run.step)
        sinks.introduce(self, RunStart.facts)

    def begin(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Remember before a step where new groups start: the first reading comes too late for that.

        Of layers that ranks share that reading is the start, since a record is kept on one rank alone.
        """
        self._groups = groups
        if self._begun < len(groups):
            see_parts([p for group in groups for p in group["params"]], self._controller is not None)
            if self._sinks.keeps_facts and not self._ledger.sharding:
                start_norms(groups[self._begun :])
        self._begun = len(groups)

    @uncompiled
    def take_loss(self, loss: Any, loop: LossTaker | None) -> None:
        """Pass on to the control loop and to records what a closure returned, if it is a loss."""
        if isinstance(loss, float) or (
            isinstance(loss, Tensor) and loss.numel() == 1 and loss.is_floating_point()
        ):
            if loop is not None:
                loop.report_loss(loss)
            self._sinks.report_loss(self._ledger.run.step + 1, loss)

    def facts(self, settled: bool) -> dict[str, Any]:
        """Return plain data; it waits for nothing.

        Args:
            settled: whether what readings count is asked for, too.
        """
        ledger, losses = self._ledger, self._sinks.losses
        params = [p for group in self._groups for p in group["params"]]
        layers = list(zip(ledger.meter.names, params, strict=False))
        rms = [x for group in self._groups for x in GroupState(group).start[2]]
        facts: dict[str, Any] = {
            "begun_at": self._begun_at,
            "ema_steps": ledger.ema_steps,
            "bad_losses": losses.bad,
            "matrices": sorted(name for name, p in layers if p.ndim >= 2),
            "frozen": sorted(name for name, p in layers if not p.requires_grad),
        }
        if self._controller is not None and self._controller.length is not None:
            facts["length"] = self._controller.length
        norms = {n: x**2 * real_elements(p) for (n, p), x in zip(layers, rms, strict=True) if x >= 0}
        if norms:
            facts["start_norms"] = norms
        if len(losses):
            facts["first_loss"] = [int(losses.steps[0]), float(losses.values[0])]
        if settled:
            facts |= {"steps": ledger.run.step, "skipped": dict(ledger.run.skipped)}
        return facts
