"""Two steps of two small tensors, which tell whether the Triton kernels compile and run here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thermoopt.kernels.native_checks import TABLE_ROWS
from thermoopt.kernels.triton_checks import RUN
from thermoopt.physics.sums import Sum

__all__ = ["two_steps"]

WANTED = [2.0, 2.0, 2.0, 8.0, 8.0]
"""Steps, readings and the last step averaged; the mean squares of eight ones, of two tensors."""


def two_steps(plan: Callable[..., Any], device: torch.device) -> str | None:
    """Take two measured steps with a plan of this class on a device; return what went wrong, or None."""
    try:
        found = _steps(plan, device)
    except Exception as error:  # whatever a compiler, its cache or the driver raises
        what = str(error).strip().partition("\n")[0]
        return f"its kernels do not compile: {type(error).__name__}: {what}"
    return None if found == WANTED else f"two steps of two tensors gave {found}, not {WANTED}"


def _steps(plan: Callable[..., Any], device: torch.device) -> list[float]:
    def zeros(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(size, dtype=dtype, device=device)

    params, exp_avgs, exp_avg_sqs = ([zeros(8) for _ in range(2)] for _ in range(3))
    made = plan(params, exp_avgs, exp_avg_sqs, [None, None], [zeros() for _ in params])
    table, run = zeros(TABLE_ROWS, 2, dtype=torch.float64), zeros(RUN, dtype=torch.float64)
    made.average_into(table, run, np.arange(2))
    grads = [torch.ones_like(p) for p in params]
    numbers = {"lr": 0.0, "weight_decay": 0.0, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    for number in (1, 2):
        made.step(grads, **numbers, maximize=False, number=number)
    return [*run[:3].tolist(), *table[Sum.GG].tolist()]
