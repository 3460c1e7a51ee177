"""From an optimizer's tensors to the measuring pass in torch operations, and its sums on their way back."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from thermoopt.account import DeviceSums, Ledger, PendingSums
from thermoopt.adamw.rates import Rates, Rows, is_on_device, kernel_rates
from thermoopt.kernels import FlatPass, LayerTensors, is_flat, measure
from thermoopt.tensors import WARM_UP, Fetch, capturing, local, send

__all__ = ["FlatSums", "fill", "one_device", "torch_sums"]


def torch_sums(
    optimizer: Optimizer,
    rates: Sequence[Rates],
    only: Collection[int] | None = None,
    also: NDArray[np.int64] | None = None,
) -> PendingSums:
    """Start the measuring pass over every tensor that is about to be stepped.

    Args:
        optimizer: whose parameters, gradients and state are read: ``exp_avg`` and ``exp_avg_sq`` as torch's
            Adam and AdamW keep them, ``betas`` and ``eps`` in its groups.
        rates: effective rates of its groups.
        only: indices of the layers to measure; all by default.
        also: layers that are measured elsewhere; columns are kept free for them at the end.
    """
    layers: list[LayerTensors] = []
    index: list[int] = []
    lrs: list[float | Tensor] = []
    wds: list[float] = []
    i = -1
    nothing = only is not None and not only
    for group, rate in () if nothing else zip(optimizer.param_groups, rates, strict=True):
        beta1, beta2 = group["betas"]
        for j, p in enumerate(group["params"]):
            i += 1
            g = p.grad
            if g is None or g.is_sparse or p.is_meta or (only is not None and i not in only):
                continue
            state = optimizer.state.get(p) or {}
            layers.append(
                LayerTensors(
                    param=local(p),
                    grad=local(g, p),
                    exp_avg=_local_state(state, "exp_avg"),
                    exp_avg_sq=_local_state(state, "exp_avg_sq"),
                    max_exp_avg_sq=_local_state(state, "max_exp_avg_sq"),
                    step=_next_step(state.get("step")),
                    beta1=float(beta1),
                    beta2=float(beta2),
                    eps=float(group["eps"]),
                    amsgrad=group.get("amsgrad", False),
                    maximize=group.get("maximize", False),
                )
            )
            index.append(i)
            lrs.append(rate.layer_lr(j))
            wds.append(float(rate.wd))
    n = len(layers)
    pending = PendingSums.of(index if also is None else np.append(np.array(index, dtype=np.int64), also))
    if n:
        pending.wd[:n] = wds
        pending.beta1[:n] = [layer.beta1 for layer in layers]
        pending.beta2[:n] = [layer.beta2 for layer in layers]
        fill(pending, pending.lr, lrs)
        fill(pending, pending.t, [layer.step for layer in layers])
        pending.raw = np.arange(len(pending.index)) < n
    for parcel in measure(layers, getattr(optimizer, "grad_scale", None)):
        pending.parts.append((np.asarray(parcel.layer, dtype=np.int64), Fetch(parcel.sums)))
    found_inf = getattr(optimizer, "found_inf", None)
    if found_inf is not None:
        pending.found_inf = Fetch(found_inf)
    return pending


def one_device(optimizer: Optimizer, ledger: Ledger) -> torch.device | None:
    """Return the CUDA device that all parameters lie on, unless ranks share them; else None."""
    devices = {p.device for group in optimizer.param_groups for p in group["params"]}
    if len(devices) != 1 or ledger.sharding:
        return None
    (device,) = devices
    return device if device.type == "cuda" else None


class FlatSums:
    """The measuring pass in flat buffers over all tensors of one device, its layout and constants kept.

    Nothing waits for the device. In a captured graph tensors and rates must be those of the last step.
    """

    def __init__(self) -> None:
        self._flat: FlatPass | None = None
        self._sent: tuple[NDArray[np.float64], Tensor] | None = None
        self._index: tuple[NDArray[np.int64], Tensor | None] | None = None

    def sums(
        self, optimizer: Optimizer, rates: Sequence[Rates], device: torch.device
    ) -> DeviceSums | str | None:
        """Form the sums of the step that is about to be taken at the given rates.

        Returns:
            The sums; or a cause, if there is nothing to measure; or None, if there are tensors that this
            pass cannot take.

        Raises:
            RuntimeError: in a capture, for tensors or rates that are new.
        """
        layers: list[LayerTensors] = []
        place: list[tuple[int, int, int]] = []
        layer = -1
        for i, group in enumerate(optimizer.param_groups):
            for j, p in enumerate(group["params"]):
                layer += 1
                if p.grad is not None and not p.grad.is_sparse:
                    layers.append(_layer_tensors(p, group, optimizer.state.get(p) or {}))
                    place.append((layer, i, j))
        if not layers:
            return "no_gradients"
        if any(x.param.device != device or not is_flat(x) for x in layers):
            return None
        sizes = [x.param.numel() for x in layers]
        if self._flat is None or self._flat.sizes != sizes:
            if capturing():
                raise RuntimeError(WARM_UP)
            self._flat = FlatPass(sizes, device)
        index, group_of, position = (np.array(x) for x in zip(*place, strict=True))
        own = self._constants(layers, kernel_rates(rates, Rows(group_of, position)), device)
        sums = self._flat.measure(layers, own[2:], getattr(optimizer, "grad_scale", None))
        found_inf = getattr(optimizer, "found_inf", None)
        constants = torch.stack([own[0], own[1], own[2], own[3], own[5]])
        return DeviceSums(self._index_of(index, layer + 1, device), sums, constants, found_inf)

    def _constants(
        self, layers: Sequence[LayerTensors], given: Mapping[str, Any], device: torch.device
    ) -> Tensor:
        """Return ``[7, k]``: lr, weight decay, beta1, beta2, eps, the step's number, the sign."""
        steps = [x.step for x in layers]
        on_device = [isinstance(step, Tensor) for step in steps]
        rows = np.empty((7, len(layers)))
        rows[0] = 0.0 if isinstance(given["lr"], Tensor) else given["lr"]
        rows[1] = given["weight_decay"]
        rows[2:5] = np.array([(x.beta1, x.beta2, x.eps) for x in layers]).T
        rows[5] = [0.0 if isinstance(step, Tensor) else step for step in steps]
        rows[6] = [-1.0 if x.maximize else 1.0 for x in layers]
        factor = np.broadcast_to(np.asarray(given.get("factor", 1.0)), rows[0].shape)
        rows = np.concatenate([rows, factor[None]])
        if self._sent is None or not np.array_equal(self._sent[0], rows):
            self._sent = rows, send(rows, device)
        out = self._sent[1][:7].clone()
        if isinstance(given["lr"], Tensor):
            out[0] = given["lr"].double() * self._sent[1][7]
        if any(on_device):
            mine = [step for step in steps if isinstance(step, Tensor)]
            counts = torch.stack(mine).double().reshape(-1) + 1
            if all(on_device):
                out[5] = counts
            else:
                out[5].index_copy_(0, send(np.flatnonzero(on_device), device), counts)
        return out

    def _index_of(self, index: NDArray[np.int64], n: int, device: torch.device) -> Tensor | None:
        if self._index is None or not np.array_equal(self._index[0], index):
            self._index = index, None if len(index) == n else send(index, device)
        return self._index[1]


def _layer_tensors(p: Tensor, group: Mapping[str, Any], state: Mapping[str, Any]) -> LayerTensors:
    """Return what the pass reads of a parameter: on a device the last step count, else the coming one."""
    assert p.grad is not None
    step = state.get("step")
    return LayerTensors(
        param=p.detach(),
        grad=p.grad.detach(),
        exp_avg=state.get("exp_avg"),
        exp_avg_sq=state.get("exp_avg_sq"),
        max_exp_avg_sq=state.get("max_exp_avg_sq"),
        step=step if is_on_device(step) else _next_step(step),
        beta1=float(group["betas"][0]),
        beta2=float(group["betas"][1]),
        eps=float(group["eps"]),
        amsgrad=group.get("amsgrad", False),
        maximize=group.get("maximize", False),
    )


def _local_state(state: Mapping[str, Tensor], key: str) -> Tensor | None:
    return local(state[key]) if key in state else None


def _next_step(step: Tensor | float | None) -> float | Tensor:
    if isinstance(step, Tensor):
        return float(step) + 1 if step.device.type == "cpu" else step + 1
    return 1.0 if step is None else float(step) + 1


def fill(pending: PendingSums, array: Any, values: Sequence[float | Tensor]) -> None:
    """Enter host numbers at once and device scalars when they arrive."""
    devices: dict[torch.device, list[tuple[int, Tensor]]] = {}
    for i, value in enumerate(values):
        if is_on_device(value):
            devices.setdefault(value.device, []).append((i, value.detach().reshape(())))
        else:
            array[i] = float(value)
    for scalars in devices.values():
        columns, stacked = zip(*scalars, strict=True)
        pending.late.append((array, np.asarray(columns, dtype=np.int64), Fetch(torch.stack(stacked))))
