"""Healthy and sick runs on which the diagnosis is judged, and their training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thermoopt.benchmarks.workloads import WORKLOADS, Task

__all__ = ["DEVELOPMENT", "TUNED", "Case", "healthy", "sick", "train"]

TUNED = {
    "gpt": 1e-3,
    "gru": 1e-2,
    "cnn": 3e-2,
    "mlp": 1e-2,
    "digits": 1e-2,
    "linear": 3e-1,
    "vit": 3e-3,
    "lstm": 1e-2,
}
"""Best learning rate of AdamW + linear on the grid of :mod:`methods` (benchmarks/results/control), the lower
where the two horizons differ."""

DEVELOPMENT = ("gpt", "gru", "cnn", "mlp", "digits", "linear")
"""Workloads whose seed 0 was used to set thresholds."""

STEPS = 400
WARMUP = 0.05


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        kind: ``"healthy"``, or the kind of finding that the run should have.
        workload, seed, steps: workload, seed and length of the run.
        what: description for tables.
        lr: learning rate as a factor on the tuned one.
        schedule: ``constant``, ``cosine``, ``linear`` (both to zero, after a warm-up over 5 %), ``warm-up``
            (linear over 30 %, then constant), ``short`` (linear to zero at 60 %, and zero from there on) or
            ``runaway`` (grows exponentially, 10,000 times in all).
        batch: batch size as a factor on the workload's own.
        decay: weight decay.
        betas: AdamW's betas.
        switch: number of batches over which gradients are accumulated in the second half.
        defect: name of what is broken (:data:`DEFECTS`), or none.
    """

    kind: str
    workload: str
    seed: int
    steps: int = STEPS
    what: str = ""
    lr: float = 1.0
    schedule: str = "cosine"
    batch: float = 1.0
    decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    switch: int = 1
    defect: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return asdict(self)


def healthy(workloads: tuple[str, ...], seeds: tuple[int, ...]) -> Iterator[Case]:
    """Yield runs in which nothing is wrong."""
    for seed in seeds:
        for w in workloads:
            for lr in (1 / 3, 1.0, 3.0):
                for schedule in ("constant", "cosine", "linear"):
                    yield Case(
                        "healthy", w, seed, what=f"lr x {lr:.2g}, {schedule}", lr=lr, schedule=schedule
                    )
            for batch in (0.25, 4.0):
                yield Case("healthy", w, seed, what=f"batch x {batch:g}", batch=batch)
            yield Case("healthy", w, seed, what="warm-up over 30 %", schedule="warm-up")
            yield Case("healthy", w, seed, what="accumulation from 1 to 4 in mid-run", switch=4)
            if w != "linear":  # at its rate of 0.3, 0.1 triples its loss
                yield Case("healthy", w, seed, what="decay 0.1", decay=0.1)
            yield Case("healthy", w, seed, what="no decay", decay=0.0, schedule="linear")
        if "digits" in workloads:  # BatchNorm makes its convolutions scale-invariant
            yield Case("healthy", "digits", seed, 1200, "scale-invariant layers, decay 0.3", decay=0.3)
        for w in {"cnn", "mlp"} & set(workloads):
            yield Case("healthy", w, seed, 3000, "converged, decay 1e-6", decay=1e-6, schedule="constant",
                       lr=1 / 3)  # fmt: skip


def sick(workloads: tuple[str, ...], seeds: tuple[int, ...]) -> Iterator[Case]:
    """Yield runs in which one thing is wrong."""
    for seed in seeds:
        for w in workloads:
            for schedule in ("constant", "cosine"):
                yield Case("learning_rate_too_high", w, seed, what=f"lr x 100, {schedule}", lr=100.0,
                           schedule=schedule)  # fmt: skip
            yield Case("learning_rate_too_low", w, seed, what="lr / 1000", lr=1e-3)
            yield Case("learning_rate_zero", w, seed, what="schedule ends at 60 %", schedule="short")
            yield Case("learning_rate_runaway", w, seed, what="lr grows 10,000 times", schedule="runaway")
            for pull in (0.03, 0.1):
                yield Case("weight_decay_collapse", w, seed, what=f"decay takes {pull:g} of weights a step",
                           decay=pull / TUNED[w], schedule="linear")  # fmt: skip
            yield Case("momentum_overdamped", w, seed, what="beta1 0.999", betas=(0.999, 0.999))
            for defect, kind in DEFECTS.items():
                if w != "linear" or kind not in NEED_LAYERS:
                    yield Case(kind, w, seed, what=defect, defect=defect)


def _matrices(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Matrices of a model, in its order."""
    return [(name, p) for name, p in model.named_parameters() if p.ndim >= 2]


def _detach(model: nn.Module) -> None:
    """The first matrix gets no gradient, as if its output had been detached."""
    _matrices(model)[0][1].register_hook(torch.zeros_like)


def _silence(model: nn.Module) -> None:
    """The first matrix gets no gradient from half way on, as if the units after it had died."""
    calls = 0

    def hook(grad: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.zeros_like(grad) if calls > STEPS // 2 else grad

    _matrices(model)[0][1].register_hook(hook)


def _mute(model: nn.Module) -> None:
    """The last matrix is given zeros from half way on, as if all units before it had died."""
    calls = 0

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal calls
        calls += module.training
        return (0 * inputs[0], *inputs[1:]) if calls > STEPS // 2 else inputs

    model.get_submodule(_matrices(model)[-1][0].rpartition(".")[0]).register_forward_pre_hook(hook)


def _poison(model: nn.Module) -> None:
    """Half way through, a gradient is not a number."""
    calls = 0

    def hook(grad: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return grad * math.nan if calls == STEPS // 2 else grad

    _matrices(model)[0][1].register_hook(hook)


def _drown(model: nn.Module) -> None:
    """Every gradient gets noise of 30 times its own norm, as from a privacy mechanism."""
    for _, p in model.named_parameters():
        p.register_hook(lambda g: g + 30 * g.norm() / math.sqrt(g.numel()) * torch.randn_like(g))


def _shrink(model: nn.Module) -> None:
    """Every gradient is far below Adam's eps, as of a loss in units that make it tiny."""
    for _, p in model.named_parameters():
        p.register_hook(lambda g: 1e-13 * g)


DEFECTS = {
    "first matrix detached": "dead_layer",
    "first matrix detached half way": "dead_layer",
    "units before the last matrix dead half way": "progress_lost",
    "last matrix at 300 times the rate": "exploding_layer",
    "every second matrix at a thousandth of the rate": "layers_out_of_step",
    "one gradient not a number": "non_finite_steps",
    "gradients drowned in noise": "gradient_noise",
    "gradients times 1e-13": "gradients_below_eps",
}
"""The defects of a run, and the finding that each should have."""

NEED_LAYERS = {"exploding_layer", "layers_out_of_step"}
"""Kinds that compare layers, for which a model needs several."""

_HOOKS: dict[str, Callable[[nn.Module], None]] = {
    "first matrix detached": _detach,
    "first matrix detached half way": _silence,
    "units before the last matrix dead half way": _mute,
    "one gradient not a number": _poison,
    "gradients drowned in noise": _drown,
    "gradients times 1e-13": _shrink,
}


def _groups(model: nn.Module, defect: str, lr: float) -> list[dict[str, Any]]:
    """Return one parameter group per module, with wrong rates if that is the defect."""
    matrices = [name for name, _ in _matrices(model)]
    off, factor = {
        "last matrix at 300 times the rate": (matrices[-1:], 300.0),
        "every second matrix at a thousandth of the rate": (matrices[1::2], 1e-3),
    }.get(defect, ([], 1.0))
    groups: dict[str, dict[str, Any]] = {}
    for name, p in model.named_parameters():
        module = name.rpartition(".")[0] + (" off" if name in off else "")
        group = groups.setdefault(module, {"params": [], "name": module, "lr": lr})
        group["params"].append((name, p))
        if name in off:
            group["lr"] = lr * factor
    return list(groups.values())


def shape(schedule: str, u: float) -> float:
    """Factor on the learning rate at the share u of a run."""
    if schedule == "constant":
        return 1.0
    if schedule == "warm-up":
        return min(1.0, u / 0.3 + 1e-3)
    if schedule == "runaway":
        return float(10_000**u)
    if schedule == "short":
        return max(0.0, 1 - u / 0.6)
    if u < WARMUP:
        return u / WARMUP + 1e-3
    rest = (u - WARMUP) / (1 - WARMUP)
    return 1 - rest if schedule == "linear" else (1 + math.cos(math.pi * rest)) / 2


def train(
    case: Case,
    watch: Callable[[nn.Module, torch.optim.Optimizer], Any],
    each: Callable[[Any, int, float], None],
) -> tuple[Any, Task, float]:
    """Train once.

    Args:
        case: the run to train.
        watch: creates the observer of a model and its optimizer.
        each: called after every step with the observer, the step and the loss, before gradients are cleared.

    Returns:
        The observer, the task, and the validation loss before training.
    """
    task = WORKLOADS[case.workload].build(case.seed, case.batch)
    lr = TUNED[case.workload] * case.lr
    torch.manual_seed(case.seed)  # the noise of the defects
    if case.defect in _HOOKS:
        _HOOKS[case.defect](task.model)
    groups = _groups(task.model, case.defect, lr)
    optimizer = torch.optim.AdamW(groups, betas=case.betas, weight_decay=case.decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: shape(case.schedule, t / case.steps))
    initial = task.evaluate()
    observer = watch(task.model, optimizer)
    for step in range(1, case.steps + 1):
        optimizer.zero_grad()
        k = case.switch if step > case.steps // 2 else 1
        total = 0.0
        for _ in range(k):
            loss = task.loss() / k
            loss.backward()
            total += loss.item()
        optimizer.step()
        each(observer, step, total)
        schedule.step()
    return observer, task, initial
