"""The laws in real networks: runs held at a rate, cooled and averaged, and runs along schedules."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from thermoopt import Quantities, ThermoAdamW
from thermoopt.benchmarks.methods import schedules
from thermoopt.benchmarks.workloads import WORKLOADS, Task
from thermoopt.landscape import gradient_noise, noise_spectrum

__all__ = [
    "FACTORS",
    "HELD",
    "QUENCHES",
    "SCHEDULED",
    "SHAPES",
    "TUNED",
    "Held",
    "Scheduled",
    "held_rates",
    "hold",
    "rates",
    "schedule",
]

TUNED = {"gpt": 1e-3, "gru": 1e-2, "mlp": 1e-2, "cnn": 3e-2, "vit": 3e-3, "digits": 1e-2, "lstm": 1e-2}
"""Best learning rates of AdamW + linear (benchmarks/results/control)."""

HELD = ("gpt", "gru", "mlp", "cnn", "vit")
"""Workloads of the hold: two language models, and kinds that the paper did not cover."""

SCHEDULED = ("gpt", "gru", "mlp")
"""Workloads of the grid of schedules."""

FACTORS = (0.3, 1.0, 3.0)
"""Learning rates in units of the tuned one."""

WARMUP = 20
QUENCHES = (50, 100)
"""Lengths of the linear cooling to zero, in steps."""

WINDOW = 50
"""Steps that weights are averaged over; also the memory of the readings."""

JUDGED = 16.0
"""Size of the batch on which losses are compared, in training batches; the same batch for all weights."""

BATCHES = 48
"""Number of gradients at fixed parameters: it gives their mean energy to 2 to 5 %."""

CURVED = 4
"""Number of training batches in the mean loss whose Hessian is used."""


@dataclass(frozen=True)
class Held:
    """A run at a constant rate, measured at its end; ``steps`` is at least :data:`WINDOW`."""

    workload: str
    factor: float
    seed: int
    steps: int = 300

    def __post_init__(self) -> None:
        if self.steps < WINDOW:
            raise ValueError(
                f"steps must be >= {WINDOW}, the window that is averaged over, got {self.steps!r}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return {"experiment": "hold", **asdict(self)}


@dataclass(frozen=True)
class Scheduled:
    """A run along a schedule; ``steps`` is more than :data:`WARMUP`."""

    workload: str
    shape: str
    factor: float
    seed: int
    steps: int = 400

    def __post_init__(self) -> None:
        if self.steps <= WARMUP:
            raise ValueError(f"steps must be > {WARMUP}, the length of the warm-up, got {self.steps!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return {"experiment": "schedule", **asdict(self)}


SHAPES = {
    "constant": schedules.constant,
    "linear": schedules.linear,
    "linear to a third": lambda u: 1 - 2 * u / 3,
    "cosine": schedules.cosine,
    "cosine to a tenth": schedules.cosine_to_tenth,
    "wsd": schedules.wsd,
    "1/t": schedules.inverse_time,
}
"""Shapes in u, the completed fraction of the run after the warm-up."""


def rates(shape: str, peak: float, steps: int) -> np.ndarray:
    """Return the learning rates of a run, ``[steps]``; u is taken mid-step, so that D is the integral."""
    n = np.arange(steps)
    up = (n + 1) / WARMUP
    u = (n - WARMUP + 0.5) / (steps - WARMUP)
    return peak * np.array([a if i < WARMUP else SHAPES[shape](b) for i, a, b in zip(n, up, u, strict=True)])


def held_rates(peak: float, steps: int, extra: int = 0, quench: int = 0) -> np.ndarray:
    """Learning rates of a hold, ``extra`` more steps at the same rate, then a linear quench."""
    cooled = peak * (1 - (np.arange(quench) + 0.5) / max(1, quench))
    return np.concatenate([rates("constant", peak, steps), np.full(extra, peak), cooled])


class _Run:
    """A task in training, its readings, and losses on one fixed large batch."""

    def __init__(self, workload: str, seed: int) -> None:
        self.workload, self.seed = workload, seed
        self.task: Task = WORKLOADS[workload].build(seed)
        self.optimizer = ThermoAdamW(
            self.task.model.named_parameters(), weight_decay=0.0, measure_every=1, ema_steps=WINDOW
        )

    def train(self, etas: np.ndarray) -> Iterator[int]:
        """Take one step per rate and yield the number of steps taken."""
        for i, eta in enumerate(etas, 1):
            for group in self.optimizer.param_groups:
                group["lr"] = float(eta)
            self.optimizer.zero_grad()
            self.task.loss().backward()
            self.optimizer.step()
            yield i

    def weights(self) -> dict[str, Tensor]:
        """A copy of the model's state."""
        return copy.deepcopy(self.task.model.state_dict())

    @torch.no_grad()
    def judge(self, weights: Mapping[str, Tensor] | None = None) -> float:
        """Training loss on a batch that is the same at every call."""
        other = WORKLOADS[self.workload].build(10_000 + self.seed, JUDGED)
        other.model.load_state_dict(self.task.model.state_dict() if weights is None else weights)
        return other.loss().item()


def _quantities(q: Quantities) -> dict[str, float | None]:
    kept = ("thermal_loss", "d_iS_noise", "r", "coherence", "energy_ratio", "rho_momentum", "phi", "numel")
    return {name: v if math.isfinite(v := getattr(q, name)) else None for name in kept}


def hold(case: Held) -> dict[str, Any]:
    """Train at a constant rate, then measure: readings, gradients at rest, curvature, averages, quenches.

    Returns:
        The row: the case; ``lr``; ``total`` and ``layers``, readings; ``in_band``, their equilibrium
        fraction; ``rest``, energies of gradients at fixed parameters; ``spectrum``; ``loss`` and ``valid``
        at the end; ``middle`` and ``averaged``, losses of the weights in the middle of the last
        :data:`WINDOW` steps and of their mean;
        ``layer_averaged``, losses of the middle's with one layer averaged; ``constant``, losses by number of
        further steps at the same rate; ``quenched``, losses by length of a quench; ``seconds``.
    """
    started = time.perf_counter()
    lr = TUNED[case.workload] * case.factor
    run = _Run(case.workload, case.seed)
    params = dict(run.task.model.named_parameters())
    mean = {name: torch.zeros_like(p) for name, p in params.items()}
    middle: dict[str, Tensor] = {}
    for step in run.train(held_rates(lr, case.steps)):
        if step > case.steps - WINDOW:
            for name, p in params.items():
                mean[name] += p.detach() / WINDOW
        if step == case.steps - WINDOW // 2:
            middle = run.weights()
    reading = run.optimizer.reading
    assert reading is not None
    rest = gradient_noise(run.task.model, run.optimizer, run.task.loss, BATCHES)

    def curved() -> Tensor:
        return torch.stack([run.task.loss() for _ in range(CURVED)]).mean()

    with sdpa_kernel(SDPBackend.MATH):  # the fused one has no second derivative
        spectrum = noise_spectrum(run.task.model, run.optimizer, run.task.loss, curved)
    out = {
        **case.to_dict(),
        "lr": lr,
        "total": _quantities(reading.total),
        "layers": {name: _quantities(q) for name, q in reading.layers.items()},
        "in_band": reading.equilibrium_fraction(),
        "rest": {
            "energy": rest.total_energy,
            "signal": rest.total_signal,
            "error": rest.error,
            "layers": dict(rest.energy),
        },
        "spectrum": {"curvatures": spectrum.curvatures.tolist(), "weights": spectrum.weights.tolist()},
        "loss": run.judge(),
        "valid": run.task.evaluate(),
        "middle": run.judge(middle),
        "averaged": run.judge({**middle, **mean}),
        "layer_averaged": {name: run.judge({**middle, name: mean[name]}) for name in params},
    }
    model, optimizer = run.weights(), copy.deepcopy(run.optimizer.state_dict())
    constant: dict[str, float] = {}
    for i in run.train(np.full(max(QUENCHES) // 2, lr)):
        if 2 * i in QUENCHES:
            constant[str(i)] = run.judge()
    quenched: dict[str, float] = {}
    for length in QUENCHES:
        run.task.model.load_state_dict(model)
        run.optimizer.load_state_dict(optimizer)
        for _ in run.train(held_rates(lr, case.steps, quench=length)[case.steps :]):
            pass
        quenched[str(length)] = run.judge()
    seconds = round(time.perf_counter() - started, 2)
    return {**out, "constant": constant, "quenched": quenched, "seconds": seconds}


def schedule(case: Scheduled) -> dict[str, Any]:
    """Train along a schedule.

    Returns:
        The row: the case; ``lr``, the peak; ``D``, the sum of the rates; ``last``, the last rate; ``loss`` on
        the fixed training batch, ``valid``; ``curve``, for the constant rate, ``[step, D, loss]`` on the way;
        ``seconds``.
    """
    started = time.perf_counter()
    lr = TUNED[case.workload] * case.factor
    etas = rates(case.shape, lr, case.steps)
    run = _Run(case.workload, case.seed)
    curve = []
    for step in run.train(etas):
        if case.shape == "constant" and step % (case.steps // 4) == 0:
            curve.append([step, float(etas[:step].sum()), run.judge()])
    return {
        **case.to_dict(),
        "lr": lr,
        "D": float(etas.sum()),
        "last": float(etas[-1]),
        "loss": run.judge(),
        "valid": run.task.evaluate(),
        "curve": curve,
        "seconds": round(time.perf_counter() - started, 2),
    }
