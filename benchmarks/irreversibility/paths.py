"""Update energy along a run: a training, its readings, and their recomputation in float64."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from thermoopt import ThermoAdamW
from thermoopt.benchmarks.irreversibility.models import BUILD, LR
from thermoopt.physics import Term

__all__ = ["COLUMNS", "SCHEDULES", "STEPS", "Path", "plan", "train"]

STEPS = 2000
RECOMPUTED = 200
"""Number of steps that are confirmed in float64."""

BETAS, EPS = (0.9, 0.999), 1e-8

COLUMNS = ("energy", "r", "lr", "loss")
"""Of a stored path ``[steps, 4]``: ``energy`` is phi/eta = ‖U‖²/4, ``loss`` that of the training batch."""

WARMUP = 0.1
DROPS = (0.5, 0.75)
INVERSE_RATE = 9.0

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda u: 1.0,
    "warm-up": lambda u: min(1.0, u / WARMUP),
    "cosine": lambda u: (1 + math.cos(math.pi * u)) / 2,
    "linear": lambda u: 1 - u,
    "step": lambda u: 0.1 ** sum(u >= drop for drop in DROPS),
    "1/t": lambda u: 1 / (1 + INVERSE_RATE * u),
}
"""Factor on the learning rate at share u of the run. Warm-up is linear over a tenth and then constant, step
falls by ten at a half and at three quarters, 1/t ends at a tenth."""


@dataclass(frozen=True)
class Path:
    """One training run.

    Attributes:
        model: name in :data:`BUILD`.
        schedule: name in :data:`SCHEDULES`.
        seed: of weights and batches.
        steps: of the run.
    """

    model: str
    schedule: str
    seed: int
    steps: int = STEPS

    @property
    def name(self) -> str:
        """File name of the stored path, without suffix."""
        return f"{self.model}_{self.schedule.replace('/', '')}_{self.seed}"


def plan(models: list[str], schedules: list[str], seeds: list[int], steps: int) -> list[Path]:
    """Return all runs, seeds outermost."""
    return [Path(m, s, seed, steps) for seed in seeds for m in models for s in schedules]


class Recomputation:
    """Adam's moments in float64 from the same gradients by the textbook formulas: an independent ‖U‖²/4."""

    def __init__(self, parameters: list[torch.Tensor]) -> None:
        self._parameters = parameters
        self._m = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
        self._v = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
        self._t = 0

    def energy(self) -> float:
        """Update with the present gradients and return ‖U‖²/4 of the next step."""
        self._t += 1
        total = 0.0
        for p, m, v in zip(self._parameters, self._m, self._v, strict=True):
            assert p.grad is not None
            g = p.grad.double()
            m.mul_(BETAS[0]).add_(g, alpha=1 - BETAS[0])
            v.mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
            update = (m / (1 - BETAS[0] ** self._t)) / ((v / (1 - BETAS[1] ** self._t)).sqrt() + EPS)
            total += update.square().sum().item()
        return total / 4


def train(path: Path) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """Train once, reading every step.

    The first :data:`RECOMPUTED` steps of seed 0 under the cosine are recomputed in float64.

    Returns:
        The row: the run, final and initial ``valid`` loss, means of the energy over tenths of the run,
        ``recomputed`` (largest relative difference of the reading to float64; None where not asked for),
        ``seconds``; and the path ``[steps, len(COLUMNS)]``.
    """
    task = BUILD[path.model](path.seed)
    initial = task.evaluate()
    optimizer = ThermoAdamW(
        task.model.named_parameters(), lr=LR[path.model], betas=BETAS, eps=EPS, weight_decay=0.0,
        ema_steps=1, measure_every=1,
    )  # fmt: skip
    shape = SCHEDULES[path.schedule]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: shape((n + 1) / path.steps))
    check = None
    if path.seed == 0 and path.schedule == "cosine":
        check = Recomputation(list(task.model.parameters()))
    worst = 0.0
    out = np.full((path.steps, len(COLUMNS)), np.nan, dtype=np.float32)
    start = time.perf_counter()
    for step in range(path.steps):
        optimizer.zero_grad()
        loss = task.loss()
        loss.backward()
        expected = check.energy() if check is not None and step < RECOMPUTED else None
        lr = optimizer.param_groups[0]["lr"]
        optimizer.step()
        schedule.step()
        reading = optimizer.reading
        assert reading is not None
        if reading.step == step + 1:
            sums = reading.terms.sum(axis=1)
            energy = sums[Term.PHI] / lr if lr else sums[Term.UU] / 4
            out[step] = energy, sums[Term.UU] / sums[Term.NULL], lr, loss.item()
            if expected is not None:
                worst = max(worst, abs(energy / expected - 1))
    tenths = np.array_split(out[:, 0].astype(float), 10)
    row = {
        **asdict(path),
        "initial": initial,
        "valid": task.evaluate(),
        "tenths": [float(np.mean(t)) for t in tenths],
        "recomputed": worst if check is not None else None,
        "seconds": round(time.perf_counter() - start, 2),
    }
    return row, out
