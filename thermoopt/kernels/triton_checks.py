"""Which tensors the Triton kernels can read and write."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thermoopt.kernels.layout import is_dense
from thermoopt.kernels.native_checks import PLAIN, same_layout
from thermoopt.kernels.triton_kernels import IMPORT_ERROR, INTERPRETED

__all__ = [
    "RUN",
    "alike",
    "check_averages",
    "check_owned",
    "ineligible",
    "kinds",
    "miscounts",
    "readable",
    "unavailable_reason",
]

LEAST_CAPABILITY = (8, 0)
"""Compute capability the kernels need: bfloat16 arithmetic came with 8.0, and nothing older was tried."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

RUN = 8
"""Counters of a run, see :func:`~thermoopt.kernels.triton_account.account_kernel`."""


def unavailable_reason() -> str | None:
    """Return why these kernels cannot run in this process, or ``None`` if they can."""
    if IMPORT_ERROR is not None:
        return f"triton cannot be imported ({IMPORT_ERROR})"
    if INTERPRETED:
        return None
    if not torch.cuda.is_available():
        return "torch sees no CUDA device (and TRITON_INTERPRET=1 was not set when triton was imported)"
    if torch.version.hip is not None:
        return "torch is built for ROCm, on which these kernels were not tried"
    return _incapable(torch.cuda.current_device())


@functools.cache
def _incapable(device: int) -> str | None:
    """Return why a CUDA device cannot run the kernels, or ``None`` if it can."""
    capability = torch.cuda.get_device_capability(device)
    if capability >= LEAST_CAPABILITY:
        return None
    have, need = (".".join(map(str, pair)) for pair in (capability, LEAST_CAPABILITY))
    return f"{torch.cuda.get_device_name(device)} has compute capability {have}, below {need}"


def ineligible(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    step: Tensor,
    *,
    dry: bool = False,
) -> str | None:
    """Return why one parameter must go to another backend, or ``None`` if it can be handled here.

    Required: plain tensors of one shape, one order in memory without gaps (contiguous, channels_last,
    transposed), one CUDA device and one dtype (float32, bfloat16 or float16), and a zero-dimensional float32
    step on that device (as torch holds it under ``fused`` or ``capturable``); in a dry step any kind of
    count is accepted. Under Triton's interpreter the device is the CPU.
    """
    place = "cpu" if INTERPRETED else "cuda"
    if param.device.type != place:
        return f"the parameter is on {param.device}, not on a {place} device"
    if param.dtype not in DTYPES:
        return f"the parameter is {param.dtype}, not float32, bfloat16 or float16"
    if place == "cuda" and (reason := _incapable(param.device.index)):
        return reason  # a machine may hold devices of several kinds
    others = {"gradient": grad, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    if max_exp_avg_sq is not None:
        others["max_exp_avg_sq"] = max_exp_avg_sq
    for name, x in {"parameter": param, **others}.items():
        if type(x) not in (Tensor, torch.nn.Parameter):
            return f"the {name} is a {type(x).__name__}, a subclass of Tensor"
        if x.layout != torch.strided:
            return f"the {name} is sparse"
        if x.is_neg():
            return f"the {name} is negated lazily: its memory holds the opposite (resolve_neg() helps)"
    if not is_dense(param):
        return "the parameter has gaps or overlaps in memory"
    for name, x in others.items():
        if (x.device, x.dtype, x.shape) != (param.device, param.dtype, param.shape):
            return f"the {name} differs from the parameter in device, dtype or shape"
        if not same_layout(x, param):
            return f"the {name} lies in memory in another order than the parameter"
    if not dry and miscounts(step, param.device):
        return f"the step is not a 0-d float32 tensor on {param.device}"
    return None


def miscounts(step: Tensor, device: torch.device) -> bool:
    """Whether the kernels cannot read a step count from the memory it is in."""
    return step.device != device or step.dtype != torch.float32 or step.ndim != 0


_kind = operator.attrgetter("device", "dtype", "shape")
_layout = operator.attrgetter("layout")
_is_neg = torch._C.TensorBase.is_neg


def kinds(tensors: Sequence[Tensor]) -> list[Any]:
    """Return device, dtype and shape of each tensor."""
    return list(map(_kind, tensors))


def alike(tensors: Sequence[Tensor], params: Sequence[Tensor], contiguous: bool) -> bool:
    """Whether tensors of the parameters' shapes lie in memory in their order.

    Args:
        tensors: one per parameter.
        params: without gaps.
        contiguous: whether all parameters are.
    """
    if contiguous:
        return all(map(Tensor.is_contiguous, tensors))
    return all(map(same_layout, tensors, params))


def readable(grads: Sequence[Tensor], wanted: list[Any]) -> bool:
    """Whether gradients are plain tensors of these :func:`kinds`; they may still lie in another order.

    The checks of :func:`ineligible`, each made for all at once: in most steps gradients are new tensors.
    """
    return (
        PLAIN.issuperset(map(type, grads))
        and {torch.strided}.issuperset(map(_layout, grads))
        and not any(map(_is_neg, grads))
        and kinds(grads) == wanted
    )


def check_owned(
    columns: Sequence[Sequence[Tensor | None]],
    numels: Sequence[int],
    device: torch.device,
    names: Sequence[str],
) -> None:
    """Raise unless every tensor is eligible, on one device and shares no memory with another.

    Args:
        columns: ``n`` params, exp_avgs, exp_avg_sqs, max_exp_avg_sqs and steps.
        numels: elements that the parameters had.
        device: of the first.
        names: of the parameters.

    Raises:
        ValueError: by name.
    """
    rows: Any = zip(*columns, strict=True)
    for i, (p, m, v, x, step) in enumerate(rows):
        reason = ineligible(p, m, m, v, x, step)
        if reason is None and p.device != device:
            reason = f"it is on {p.device}, the first on {device}"
        if reason is None and p.numel() != numels[i]:
            reason = f"it has {p.numel()} elements, and had {numels[i]}"
        if reason is not None:
            raise ValueError(f"{names[i]}: {reason}")
    spans = sorted(
        (x.data_ptr(), x.data_ptr() + x.numel() * x.element_size(), i)
        for column in columns
        for i, x in enumerate(column)
        if x is not None and x.numel()
    )
    for (_, end, i), (start, _, j) in pairwise(spans):
        if start < end:
            one, other = names[min(i, j)], names[max(i, j)]
            raise ValueError(f"{one} and {other} share memory: a step in one pass would write it twice")


def check_averages(
    table: Tensor, run: Tensor, layer: NDArray[np.int64], n: int, device: torch.device
) -> None:
    """Raise ValueError unless ``n`` tensors can be averaged into a table on the device."""
    for name, x in (("table", table), ("run", run)):
        if x.device != device or x.dtype != torch.float64 or not x.is_contiguous():
            raise ValueError(f"{name} must be contiguous float64 on {device}, not {x.dtype}")
    if run.shape != (RUN,) or len(layer) != n:
        raise ValueError(f"run must hold {RUN} numbers and layer {n}")
