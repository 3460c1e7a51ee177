"""Which tensors the native kernel can read and write."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thermoopt.kernels.layout import is_dense
from thermoopt.kernels.native_library import LIBRARY, REASON

__all__ = [
    "CODES",
    "PLAIN",
    "TABLE_ROWS",
    "GradientRefused",
    "check_averages",
    "ineligible",
    "one_number",
    "refuse_overlaps",
    "same_layout",
    "unlike",
    "unreadable",
]

CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""The dtypes that the kernel takes, and its numbers for them."""

PLAIN = frozenset((Tensor, torch.nn.Parameter))
"""Classes whose storage holds their values as plain numbers."""

TABLE_ROWS = 27
"""Rows of a table of averages: :data:`thermoopt.account.meter.STATE_ROWS`, which is in a higher layer."""


class GradientRefused(ValueError):
    """A gradient cannot be read by the native kernel; nothing has moved."""


def check_averages(table: NDArray[np.float64], layer: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Return the columns that a kernel averages ``n`` tensors into.

    Args:
        table: of averages.
        layer: column of each tensor.
        n: number of tensors.

    Raises:
        ValueError: if table or layer has another shape or type.
    """
    if table.dtype != np.float64 or table.ndim != 2 or not table.flags.c_contiguous:
        raise ValueError(f"table must be float64, of two dimensions and contiguous, not {table.dtype}")
    if len(table) != TABLE_ROWS:
        raise ValueError(f"table must have {TABLE_ROWS} rows, got {len(table)}")
    columns = np.ascontiguousarray(layer, dtype=np.int64)
    if columns.shape != (n,) or len(set(columns.tolist()) & set(range(table.shape[1]))) != n:
        raise ValueError(f"layer must hold {n} different columns of the table")
    return columns


def ineligible(
    param: Tensor,
    grad: Tensor | None,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    step: Tensor,
    *,
    dry: bool = False,
) -> str | None:
    """Why this tensor cannot be stepped natively, or None if it can.

    A dense tensor without gaps whose gradient and moments share its strides (transposed, channels_last) is
    fine: the step is elementwise, in memory order.

    Args:
        param, grad, exp_avg, exp_avg_sq: the tensors of one parameter; a ``grad`` of None is not checked.
        max_exp_avg_sq: the running maximum under amsgrad, else None.
        step: the step count.
        dry: for a step that writes nothing; what it reads must meet the same conditions.

    Returns:
        A clause such as ``"exp_avg is torch.float64, not torch.float32 as its parameter"``.
    """
    if LIBRARY is None:
        return REASON
    if reason := unreadable("step", step):
        return reason
    if step.dtype is not torch.float32 or step.numel() != 1:
        return f"step is {step.dtype} of {step.numel()} elements, not one torch.float32"
    if reason := unreadable("param", param):
        return reason
    if param.dtype not in CODES:
        return f"param is {param.dtype}; the native kernel takes float32, bfloat16 and float16"
    if not is_dense(param):
        return "param has gaps or overlaps in memory"
    rest = {"grad": grad, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "max_exp_avg_sq": max_exp_avg_sq}
    for what, t in rest.items():
        if t is not None and (reason := unreadable(what, t) or unlike(what, t, param)):
            return reason
    return None


def unreadable(what: str, t: Tensor) -> str | None:
    """Why no kernel may read the memory of ``t`` as plain numbers, or None."""
    if type(t) not in PLAIN:
        return f"{what} is a {type(t).__name__}, not a plain tensor"
    if t.layout is not torch.strided:
        return f"{what} has layout {t.layout}"
    if t.device.type != "cpu":
        return f"{what} is on {t.device}"
    if t.is_neg():
        return f"{what} is a lazily negated view"
    return None


def unlike(what: str, t: Tensor, param: Tensor) -> str | None:
    """Why ``t`` cannot be walked together with ``param``, or None."""
    if t.dtype is not param.dtype:
        return f"{what} is {t.dtype}, not {param.dtype} as its parameter"
    if t.shape != param.shape:
        return f"{what} has shape {tuple(t.shape)}, not {tuple(param.shape)} as its parameter"
    if not same_layout(t, param):
        return f"{what} has strides {t.stride()}, not {param.stride()} as its parameter"
    return None


def same_layout(t: Tensor, param: Tensor) -> bool:
    """Whether two tensors of the same size have the same memory order."""
    if t.is_contiguous() and param.is_contiguous():
        return t.numel() == param.numel()
    return t.shape == param.shape and t.stride() == param.stride()


def refuse_overlaps(columns: Mapping[str, Sequence[Tensor | None]], names: Sequence[str]) -> None:
    """Raise if two of the tensors that a step writes share memory.

    Args:
        columns: ``n`` tensors each, by what they are.
        names: of the ``n`` parameters.

    Raises:
        ValueError: by name.
    """
    spans = sorted(
        (t.data_ptr(), t.data_ptr() + t.nbytes, kind, i)
        for kind, tensors in columns.items()
        for i, t in enumerate(tensors)
        if t is not None and t.nbytes
    )
    for a, b in itertools.pairwise(spans):
        if b[0] < a[1]:
            one, other = (f"{x[2]} of {names[x[3]]}" for x in (a, b))
            raise ValueError(f"{one} and {other} share memory: a step in one pass would write it twice")


def one_number(what: str, t: Tensor | None) -> int | None:
    """Return the address of a float32 number on CPU, or None for None.

    Raises:
        ValueError: for any other tensor.
    """
    if t is None:
        return None
    if unreadable(what, t) or t.dtype is not torch.float32 or t.numel() != 1:
        raise ValueError(f"{what} must be one torch.float32 number on CPU, not {t.dtype} on {t.device}")
    return t.data_ptr()
