"""Sums of a step of any optimizer, from what the step did to a sample of its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from thermoopt.account import PendingSums
from thermoopt.adamw import Rates, fill
from thermoopt.physics.sums import Sum
from thermoopt.tensors import Fetch, local, sample_pages
from thermoopt.traits import effective_lr, found_factor, group_lr

__all__ = ["MOMENT_SUMS", "Displacement"]

Array = NDArray[np.float64]

MOMENT_SUMS = frozenset({Sum.B, Sum.MU, Sum.SV, Sum.V, Sum.M2, Sum.C, Sum.N1, Sum.D})
"""Sums that only Adam's moments give; a displacement does not."""


@dataclass
class _Sampled:
    """What is kept of one tensor during a step."""

    param: Tensor
    before: Tensor
    grad: Tensor
    maximize: bool
    group: int
    lr: float | Tensor
    found: float | Tensor | None
    wd: float


class Displacement:
    r"""Sums of a step of any optimizer, from what the step did.

    .. math:: U := -\frac{\theta' - (1-\eta\lambda)\,\theta}{\eta}

    with the group's lr :math:`\eta` and decoupled weight decay :math:`\lambda`. If decay is coupled, or
    not known to be decoupled, :math:`\lambda = 0` and the whole displacement counts as U. If the step itself
    writes lr into the group, the value after the step counts; a factor on it that the optimizer finds by
    itself (:func:`~thermoopt.traits.found_factor`: Prodigy's d) is part of :math:`\eta`, as of before the
    step. A, UU, TU, TT, GG and GT (:class:`~thermoopt.physics.Sum`) follow; :data:`MOMENT_SUMS` stay 0.

    Created before the step, it keeps gradients and parameters, because a step may clear or change either. For
    tensors of up to 65,536 elements these are copies; for larger ones, samples of pages with at least one
    element in 16, whose sums are scaled up by n / n_sampled: an estimate that takes 2/16 of the parameters'
    memory during a measured step (up to 4/16 for tensors of just over 65,536 elements). A tensor that is not
    contiguous is copied whole at first.

    Args:
        optimizer: about to step.
        rates: its groups' effective lr and decoupled weight decay. Groups with lr 0 are left out: their step
            does not reveal U.

    Attributes:
        sparse: indices of layers whose gradient is sparse; they are left out.
    """

    @torch.no_grad()
    def __init__(self, optimizer: Optimizer, rates: Sequence[Rates]) -> None:
        self._kept: dict[int, _Sampled] = {}
        self.sparse: list[int] = []
        i = -1
        for k, (group, rate) in enumerate(zip(optimizer.param_groups, rates, strict=True)):
            for p in group["params"]:
                i += 1
                if p.grad is not None and p.grad.is_sparse:
                    self.sparse.append(i)
                    continue
                if p.grad is None or p.is_meta or rate.maybe_zero:
                    continue
                self._kept[i] = _Sampled(
                    param=p,
                    before=sample_pages(p).clone(),
                    grad=sample_pages(local(p.grad, p)).clone(),
                    maximize=group.get("maximize", False),
                    group=k,
                    lr=rate.lr,
                    found=found_factor(optimizer, group),
                    wd=rate.wd,
                )

    def __len__(self) -> int:
        """Number of tensors kept."""
        return len(self._kept)

    @torch.no_grad()
    def sums(self, optimizer: Optimizer, horizon_decay: float) -> PendingSums:
        """Start forming the sums, right after the step.

        Args:
            optimizer: the optimizer, which has just stepped.
            horizon_decay: takes the place of beta2: the norm forecast looks 1/(1 - beta2) steps ahead.
        """
        pending = _DisplacementSums.of(list(self._kept))
        kept = list(self._kept.values())
        _take_lrs(kept, optimizer)
        pending.t[:] = 1.0
        pending.beta2[:] = horizon_decay
        pending.wd[:] = [k.wd for k in kept]
        fill(pending, pending.lr, [k.lr for k in kept])
        rows: dict[tuple[torch.device, torch.dtype], list[tuple[int, Tensor]]] = {}
        for column, k in enumerate(kept):
            row = _displacement_row(k, getattr(optimizer, "grad_scale", None))
            rows.setdefault((row.device, row.dtype), []).append((column, row))
        for own in rows.values():
            columns, stacked = zip(*own, strict=True)
            pending.parts.append((np.array(columns, dtype=np.int64), Fetch(torch.stack(stacked))))
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None:
            pending.found_inf = Fetch(found_inf)
        return pending


def _take_lrs(kept: Sequence[_Sampled], optimizer: Optimizer) -> None:
    """Set each lr to its group's lr after the step, unless that is 0, times the factor found before it.

    An optimizer that writes lr at every step does so before using it (pytorch_optimizer's ASGD).
    """
    for k in kept:
        group = optimizer.param_groups[k.group]
        lr = group_lr(group)
        if (isinstance(lr, Tensor) and lr.device.type != "cpu") or float(lr) != 0.0:
            k.lr = effective_lr(group, k.found)


class _DisplacementSums(PendingSums):
    """Sums with the displacement -lr U instead of U; the lr may itself still be in transit."""

    def arrays(self) -> tuple[Array, Array, dict[str, Array]]:
        sums, t, constants = super().arrays()
        sums[Sum.A] /= -self.lr
        sums[Sum.TU] /= -self.lr
        sums[Sum.UU] /= self.lr**2
        return sums, t, constants


def _displacement_row(kept: _Sampled, grad_scale: Tensor | None) -> Tensor:
    """Sums of one tensor, ``[len(Sum)]``, with -lr U instead of U."""
    wide = kept.before.dtype == torch.float64
    dtype = torch.float64 if wide else torch.float32
    theta, g = kept.before.to(dtype).reshape(-1), kept.grad.to(dtype).reshape(-1)
    if grad_scale is not None:
        g = g / grad_scale
    if kept.maximize:
        g = -g
    # theta' - (1 - lr wd) theta
    moved = sample_pages(kept.param).to(dtype).reshape(-1) - theta * (1 - kept.lr * kept.wd)
    out = theta.new_zeros(len(Sum))
    pairs = {
        Sum.A: (g, moved),
        Sum.UU: (moved, moved),
        Sum.TU: (theta, moved),
        Sum.TT: (theta, theta),
        Sum.GG: (g, g),
        Sum.GT: (g, theta),
    }
    for column, (x, y) in pairs.items():
        out[column] = torch.dot(x, y)
    real = 2 if kept.param.is_complex() else 1
    return out.mul_(local(kept.param).numel() * real / max(1, theta.numel()))
