"""torch's AdamW step, and a form of it that ``torch.compile`` traces only once: rates are tensors there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from thermoopt.adamw.rates import Rates
from thermoopt.controllers import Controller
from thermoopt.tensors import widest

__all__ = [
    "Traceable",
    "check_capturable",
    "check_controllable",
    "check_replayable",
    "split_traceable",
    "torch_step",
    "traced_step",
]


@dataclass
class Traceable:
    """Tensors that step together at one rate; every list ``[n]``.

    Attributes:
        lr: effective learning rate, 0-d.
        keep: 1 - lr * weight decay, the share of a parameter that decay leaves, 0-d.
        constants: beta1, beta2, eps, amsgrad and maximize.
    """

    params: list[Tensor]
    grads: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    max_exp_avg_sqs: list[Tensor]
    steps: list[Tensor]
    lr: Tensor
    keep: Tensor
    constants: dict[str, Any]


def split_traceable(
    optimizer: Optimizer, rates: Sequence[Rates]
) -> tuple[list[dict[str, Any]], list[Traceable]]:
    """Split groups, at their effective rates, into what torch's eager step takes and what can be traced.

    The eager step takes groups with ``fused`` (already one kernel) or ``differentiable``, and the first step
    of a tensor, in which torch creates its state. Parameters without a gradient are in neither. Once layers
    have factors of their own, each parameter is a separate part: factors may then become equal or different
    without a new trace.
    """
    eager: list[dict[str, Any]] = []
    traced: list[Traceable] = []
    for group in _at_their_rates(optimizer.param_groups, rates):
        params = [p for p in group["params"] if p.grad is not None]
        whole = group["fused"] or group["differentiable"]
        able = [p for p in params if not whole and optimizer.state.get(p) and not p.grad.is_sparse]
        known = set(able)
        if rest := [p for p in params if p not in known]:
            eager.append({**group, "params": rest})
        if able:
            traced.append(_traceable(able, [optimizer.state[p] for p in able], group))
    return eager, traced


def _at_their_rates(groups: Sequence[dict[str, Any]], rates: Sequence[Rates]) -> Iterator[dict[str, Any]]:
    for group, rate in zip(groups, rates, strict=True):
        if rate.factors is None:
            yield {**group, "lr": rate.lr, "weight_decay": rate.wd}
            continue
        for j, p in enumerate(group["params"]):
            yield {**group, "params": [p], "lr": rate.layer_lr(j), "weight_decay": rate.wd}


def _traceable(params: list[Tensor], states: list[dict[str, Any]], group: Mapping[str, Any]) -> Traceable:
    lr = group["lr"]
    lr = (
        lr.to(widest(lr.device)).reshape(())
        if isinstance(lr, Tensor)
        else torch.tensor(lr, dtype=torch.float64, device="cpu")
    )
    return Traceable(
        params=params,
        grads=[p.grad for p in params if p.grad is not None],
        exp_avgs=[state["exp_avg"] for state in states],
        exp_avg_sqs=[state["exp_avg_sq"] for state in states],
        max_exp_avg_sqs=[state["max_exp_avg_sq"] for state in states] if group["amsgrad"] else [],
        steps=[state["step"] for state in states],
        lr=lr,
        keep=1 - lr * float(group["weight_decay"]),
        constants={
            "beta1": group["betas"][0],
            "beta2": group["betas"][1],
            **{key: group[key] for key in ("eps", "amsgrad", "maximize")},
        },
    )


def traced_step(parts: Sequence[Traceable]) -> None:
    r"""Take the step of every part: :math:`\theta \leftarrow (1-\eta\lambda)\theta`, then torch's own AdamW.

    Call it only while ``torch.compile`` is tracing; rounding is up to the compiler.
    """
    with torch.no_grad():
        for part in parts:
            for p in part.params:
                p.mul_(part.keep)
            adamw(
                part.params,
                part.grads,
                part.exp_avgs,
                part.exp_avg_sqs,
                part.max_exp_avg_sqs,
                part.steps,
                foreach=False,
                capturable=True,  # step counts stay tensors
                has_complex=any(p.is_complex() for p in part.params),
                lr=part.lr,
                weight_decay=0.0,
                **part.constants,
            )


def check_replayable(captured: bool) -> None:
    """Check that there is a captured step to replay.

    Raises:
        RuntimeError: if no step was captured.
    """
    if not captured:
        raise RuntimeError("before_replay: no step of this optimizer was captured in a CUDA graph")


def check_controllable(backend: str, controller: Controller | None) -> None:
    """Refuse to capture a controlled step whose rates would be fixed in the graph.

    Raises:
        RuntimeError: with a controller, unless the backend reads its rates from the device.
    """
    if controller is not None and backend != "triton":
        raise RuntimeError(
            "with a controller, a CUDA graph can capture step() only with backend 'triton', got "
            f"{backend!r}, whose rates would be fixed in the graph"
        )


def check_capturable(optimizer: torch.optim.AdamW) -> None:
    """Raise torch's error for a CUDA graph that captures a step of groups that are not ``capturable``."""
    newer = getattr(optimizer, "_accelerator_graph_capture_health_check", None)
    (newer or optimizer._cuda_graph_capture_health_check)()


def torch_step(optimizer: torch.optim.AdamW, groups: list[dict[str, Any]] | None = None) -> None:
    """Run torch's own AdamW step over ``groups``, or over the optimizer's own if None.

    ``torch.optim.AdamW.step`` may carry the wrapper that runs step hooks; a subclass's step has one already,
    and hooks must run once.
    """
    step: Any = torch.optim.AdamW.step
    if getattr(step, "hooked", False):
        step = step.__wrapped__
    if groups is None:
        step(optimizer)
        return
    own = optimizer.param_groups
    _begin_state(optimizer)
    optimizer.param_groups = groups
    try:
        step(optimizer)
    finally:
        optimizer.param_groups = own


def _begin_state(optimizer: torch.optim.AdamW) -> None:
    """Make the state entries, in torch's order, of parameters that are about to take their first step.

    torch creates state group by group; groups split by factors would create it in another order.
    """
    state = optimizer.state
    if len(state) < sum(len(group["params"]) for group in optimizer.param_groups):
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None and not p.grad.is_sparse:
                    state.setdefault(p, {})
