"""From an optimizer's tensors to the measuring pass in torch operations, and its sums on their way back."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from thermoopt.account import PendingSums
from thermoopt.adamw.rates import Rates
from thermoopt.kernels import LayerTensors, measure
from thermoopt.tensors import Fetch, local

__all__ = ["fill", "torch_sums"]


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
        only: layer indices to measure, all by default.
        also: layers measured elsewhere, for which columns are kept free at the end.
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


def _local_state(state: Mapping[str, Tensor], key: str) -> Tensor | None:
    return local(state[key]) if key in state else None


def _next_step(step: Tensor | float | None) -> float | Tensor:
    if isinstance(step, Tensor):
        return float(step) + 1 if step.device.type == "cpu" else step + 1
    return 1.0 if step is None else float(step) + 1


def fill(pending: PendingSums, array: Any, values: Sequence[float | Tensor]) -> None:
    """Put host numbers in at once, device scalars when they arrive."""
    devices: dict[torch.device, list[int]] = {}
    for i, value in enumerate(values):
        if isinstance(value, Tensor) and value.device.type != "cpu":
            devices.setdefault(value.device, []).append(i)
        else:
            array[i] = float(value)
    for columns in devices.values():
        stacked = torch.stack([values[i].detach().reshape(()) for i in columns])  # type: ignore[union-attr]
        pending.late.append((array, np.asarray(columns, dtype=np.int64), Fetch(stacked)))
