"""Connects an optimizer to its controller: describes the parameters and hands over each reading once."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thermoopt.account import LedgerView, Meter, as_loss
from thermoopt.account.reading import Reading, seen_by_all
from thermoopt.adamw.rates import Rates, RatesCache, Rows, group_rates, layer_rates
from thermoopt.adamw.state import GroupState
from thermoopt.adamw.torch_backend import Backend
from thermoopt.controllers import Controller, Scales, Start, check_claim, claim
from thermoopt.kernels import Addresses
from thermoopt.physics.travel import Travel, Weights
from thermoopt.sinks import SinkQueue
from thermoopt.tensors import WARM_UP, Fetch, PendingTravel, TravelProbe, capturing, uneven_rows

__all__ = ["ControlLoop", "LoopView", "start_of"]

NO_FORCE = Weights(keep=1.0, work=0.0, impulse=0.0)
"""Weights of a step that leaves the sums of forces as they are."""


class ControlLoop:
    """What a controlled optimizer keeps in addition to its meter.

    Args:
        controller: consulted before every step.
        stand: told of every reading handed over what the controller made of it (:meth:`LedgerView.stand`).
        process_group: a ``torch.distributed`` group whose ranks all act on the readings of its first rank.

    Raises:
        ValueError: if the controller needs sums that nobody measures, or controls another optimizer already.
    """

    def __init__(self, controller: Controller, stand: Callable[..., None], process_group: Any = None) -> None:
        claim(controller, self)
        self.controller = controller
        self.probe = TravelProbe(controller.needs) if controller.needs else None
        self._stand, self._group = stand, process_group
        self._attached, self._scales = False, Scales()
        self._waiting: list[tuple[Reading, PendingTravel | Travel | None, Fetch | float | None]] = []
        self._loss: Fetch | float | None = None

    # -------------------------------------------------------------- before a step

    @property
    def attached(self) -> bool:
        """Whether the controller knows the parameters."""
        return self._attached

    @property
    def waiting(self) -> bool:
        """Whether a recorded reading has not been handed over yet."""
        return bool(self._waiting)

    def attach(self, start: Start, params: Sequence[Tensor]) -> None:
        """Describe the parameters to the controller. New ones start from their present values."""
        self.controller.attach(start)
        self._shown: list[float] = []
        group = np.array(start.group_of, dtype=np.int64)
        counts = np.bincount(group)
        self._rows = Rows(group, np.arange(len(group)) - np.repeat(np.cumsum(counts) - counts, counts))
        if self.probe is not None:
            self.probe.start(params)
        self._attached = True

    def detach(self, *, forget: bool) -> None:
        """Attach again before the next step; with ``forget``, as if there had been no step yet."""
        self._attached = False
        if forget:
            self.controller.reset()
            self._waiting.clear()
            if self.probe is not None:
                self.probe.forget()

    def follow(self, *, drop: bool) -> None:
        """Attach again before the next step, after groups were edited by hand.

        Args:
            drop: discard readings of the former layers that were not handed over yet.
        """
        self.detach(forget=False)
        if drop:
            self._waiting.clear()

    def decide(self, step: int, lag: int, groups: Sequence[Mapping[str, Any]] = ()) -> Scales:
        """Return the scales of the coming step.

        Args:
            step: its number.
            groups: their lr is shown to the controller, without waiting for one on a device.
            lag: a reading of step s is handed over from step s + 1 + lag on.
        """
        check_claim(self.controller, self)
        reading = None
        while self._waiting and self._waiting[0][0].step + lag < step:
            reading = self._whole(*self._waiting.pop(0))
        lrs = [_host_lr(group["lr"]) for group in groups]
        # a controller that was reset has forgotten; lr 0 everywhere is a checkpoint library's dry step
        if any(lrs) and (lrs != self._shown or not self.controller.begun):
            self.controller.see_lr(lrs)
            self._shown = lrs
        if reading is None:
            self._scales = self.controller.update(None, step)
            return self._scales
        with np.errstate(all="ignore"):  # readings of a diverging run may overflow in a law
            self._scales = self.controller.update(reading, step)
        self._stand(reading.step, self.controller.standing.values(), self.controller.log)
        return self._scales

    def measure_travel(
        self,
        groups: Sequence[Mapping[str, Any]],
        rates: Sequence[Rates],
        optimizer: Any,
        due: bool,
        at: Addresses | None = None,
    ) -> PendingTravel | None:
        """Form the sums that the controller needs, of the parameters before the coming step.

        In a captured graph each replay adds its own forces, at the rates of the last :meth:`put_travel`.

        Args:
            groups: parameter groups.
            rates: of the groups in the coming step.
            optimizer: may hold a fused GradScaler's ``grad_scale`` and ``found_inf``.
            due: whether the reading of that step will be recorded.
            at: addresses of layers and gradients, if a kernel is about to read them.
        """
        if self.probe is None:
            return None
        if capturing() and not self._attached:
            raise RuntimeError(WARM_UP)
        weights = self._scales.weights
        if weights is not None and at is not None and self.probe.is_carried(at):
            return self.probe.carry(weights, at, due)
        if "impulse" in self.probe.needs and (weights is not None or capturing()):
            lrs, base = layer_rates(groups, rates, self._rows)
            scaler = {key: getattr(optimizer, key, None) for key in ("grad_scale", "found_inf")}
            self.probe.push(lrs, weights or NO_FORCE, **scaler, base=base, at=at)
        return self.probe.measure() if due else None

    def put_travel(
        self, groups: Sequence[Mapping[str, Any]], rates: Sequence[Rates], due: bool
    ) -> Callable[[], PendingTravel | None]:
        """Make the coming replay of a captured step add its forces at these rates.

        Returns:
            A function to call after the replay; it returns the sums of that step if they are due.
        """
        probe = self.probe
        if probe is None:
            return lambda: None
        if "impulse" in probe.needs:
            lrs, _ = layer_rates(groups, rates, self._rows)
            probe.put(lrs, self._scales.weights or NO_FORCE)
        pending = probe.measure() if due else None

        def after() -> PendingTravel | None:
            if pending is not None:
                probe.measure_forces(pending)
            return pending

        return after

    def missed(self, replays: int) -> None:
        """Warn of replays that the controller was not asked about."""
        warnings.warn(
            f"{replays} replays of a captured step were made without before_replay(): they used the rates of "
            "the step before, and the controller was not asked. Call before_replay() before each replay",
            RuntimeWarning,
            stacklevel=2,
        )

    def report_loss(self, loss: object) -> None:
        """Keep the loss for the next reading; a loss that is not finite counts as none.

        Raises:
            TypeError, ValueError: as :func:`thermoopt.account.as_loss`.
        """
        value = as_loss(loss)
        # the caller may go on to change a tensor
        self._loss = Fetch(value.clone()) if isinstance(loss, Tensor) else float(value)

    # -------------------------------------------------------------- after a step

    def offer(self, reading: Reading, travel: PendingTravel | None) -> None:
        """Keep a recorded reading for the controller."""
        self._waiting.append((reading, travel, self._loss))

    def _whole(
        self, reading: Reading, travel: PendingTravel | Travel | None, loss: Fetch | float | None
    ) -> Reading:
        came = travel.travel() if isinstance(travel, PendingTravel) else travel
        return seen_by_all(replace(reading, travel=came, loss=_finite(loss)), self._group)

    # -------------------------------------------------------------- state

    def export_group(self, layers: Sequence[int], params: Sequence[Tensor], total: int) -> dict[str, Any]:
        """Return a group's part of a checkpoint: start and sums of its layers, what was not handed over yet.

        Every key is always present, so that checkpoint libraries find a place for each.

        Args:
            layers: indices of the group's layers.
            params: their tensors; if they are sharded and the controller needs travel, all ranks must call.
            total: number of real elements of all layers.
        """
        out: dict[str, Any] = {"loss_unseen": None, "loss_last": _finite(self._loss)}
        if self.probe is not None:
            out.update(self.probe.export_layers(layers, params, total))
            out["travel_unseen"] = torch.zeros(3, len(layers), dtype=torch.float64, device="cpu")
        if self._waiting:
            reading, travel, loss = self._waiting[-1]
            whole = self._whole(reading, travel, loss) if self._group is None else reading
            if whole.travel is not None:
                t = whole.travel
                rows = np.stack([t.distance2, t.work, t.impulse])[:, list(layers)]
                out["travel_unseen"] = torch.from_numpy(rows)
            out["loss_unseen"] = whole.loss
        return out

    def import_groups(
        self, saved: Sequence[Mapping[str, Any]], meter: Meter, params: Sequence[Tensor]
    ) -> None:
        """Restore what :meth:`export_group` returned, for all groups together."""
        self._attached = False
        self._waiting.clear()
        self._loss = saved[0].get("loss_last") if saved else None
        if self.probe is not None:
            self.probe.forget()
            total = int(meter.numel.sum())
            for i, group in enumerate(saved):
                layers = np.flatnonzero(meter.group_of == i).tolist()
                self.probe.import_layers(layers, [params[j] for j in layers], total, group)
        if meter.run.unseen and meter.reading is not None:
            rows = [r for group in saved if isinstance(r := group.get("travel_unseen"), Tensor)]
            travel = None
            if rows and len(rows) == len(saved):
                sums = torch.cat(rows, dim=1).numpy()
                if sums.shape[1] == len(meter.names):
                    travel = Travel(sums[0], sums[1], sums[2])
            self._waiting.append((meter.reading, travel, saved[0].get("loss_unseen") if saved else None))


def _host_lr(lr: float | Tensor) -> float:
    """Return lr as a number, or NaN if the host would have to wait for it."""
    return math.nan if isinstance(lr, Tensor) and lr.device.type != "cpu" else float(lr)


def _finite(loss: Fetch | float | None) -> float | None:
    """Return a loss if it is finite, else None."""
    value = float(loss.numpy()) if isinstance(loss, Fetch) else loss
    return value if value is not None and math.isfinite(value) else None


def start_of(
    groups: Sequence[Mapping[str, Any]],
    meter: Meter,
    rms: Sequence[float],
    lr: Sequence[float],
    wd: Sequence[float],
) -> Start:
    """Collect what a controller is told of the parameters.

    Args:
        groups: parameter groups; ``betas`` may be missing.
        meter: gives layer and group names.
        rms, lr, wd: of every layer at the start, of every group when the controller was attached.
    """
    params = [p for group in groups for p in group["params"]]
    betas = [group.get("betas", (0.0, 0.0)) for group in groups]
    return Start(
        names=meter.names,
        group_of=tuple(meter.group_of.tolist()),
        group_names=meter.group_names,
        numel=tuple(int(n) for n in meter.numel),
        ndim=tuple(p.ndim for p in params),
        rms=tuple(rms),
        fan_in=tuple(
            int(n) // p.shape[0] if p.ndim >= 2 and p.shape[0] else 1
            for n, p in zip(meter.numel, params, strict=True)
        ),
        lr=tuple(lr),
        wd=tuple(wd),
        beta1=tuple(float(b[0]) for b in betas),
        beta2=tuple(float(b[1]) for b in betas),
        trainable=tuple(p.requires_grad for p in params),
        uneven=tuple(uneven_rows(params).tolist()),
    )


class LoopView(LedgerView):
    """Properties of a controlled optimizer; a class that inherits them sets the attributes below."""

    _loop: ControlLoop | None
    _backend: Backend
    _measure_every: int | None
    _sinks: SinkQueue
    _factors: RatesCache
    param_groups: list[dict[str, Any]]

    @property
    def measure_every(self) -> int:
        """One step in this many is measured; in a captured CUDA graph, every step."""
        return self._measure_every or self._backend.measure_every

    @property
    def sinks(self) -> SinkQueue:
        """The sinks' queue: ``unsent`` and ``dropped`` count readings that a failing sink did not take."""
        self._ledger.settle()
        return self._sinks

    @property
    def controller(self) -> Controller | None:
        """The controller, whose ``log`` holds every action."""
        return None if self._loop is None else self._loop.controller

    @property
    def backend(self) -> str:
        """The backend in use: ``"torch"``, ``"native"`` or ``"triton"``."""
        return self._backend.name

    def report_loss(self, loss: float | Tensor) -> None:
        """Tell controller and records the loss of the coming step; ``step(closure)`` does so by itself.

        Only laws that depend on the loss need it. A loss that is not finite counts as not reported.

        Raises:
            TypeError, ValueError: unless it is a number or a floating tensor with one element.
        """
        if self._loop is not None:
            self._loop.report_loss(loss)
        self._sinks.report_loss(self._ledger.run.step + 1, loss)

    def _rates(self) -> list[Rates]:
        return [group_rates(i, group, self._factors) for i, group in enumerate(self.param_groups)]

    def _travel(self, rates: Sequence[Rates], due: bool, at: Addresses | None) -> PendingTravel | None:
        """Form the sums that the controller needs, of the parameters before the step."""
        if self._loop is None:
            return None
        due = due and self._ledger.is_record_due(self._ledger.run.step + 1)
        return self._loop.measure_travel(self.param_groups, rates, self, due, at)

    def _put_travel(self, rates: Sequence[Rates]) -> Callable[[], PendingTravel | None]:
        """Make the coming replay add its forces; return a function that gives its sums once it was taken."""
        if self._loop is None:
            return lambda: None
        due = self._ledger.is_record_due(self._ledger.run.step + 1)
        return self._loop.put_travel(self.param_groups, rates, due)

    def _offer(self, reading: Reading, travel: PendingTravel | None) -> None:
        """Keep a recorded reading for the controller."""
        assert self._loop is not None
        self._loop.offer(reading, travel)

    def _unbegin(self) -> None:
        """Forget what the controller learned from a dry step before the run began."""
        assert self._loop is not None
        self._loop.detach(forget=True)
        for group in self.param_groups:
            GroupState(group).forget_scales(group)

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]
