"""A test of one backend on one device in seconds: how far from the reference, how fast beside torch fused."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from thermoopt.adamw import ThermoAdamW
from thermoopt.kernels import reference_step
from thermoopt.physics import Sum

__all__ = ["BACKENDS", "Verdict", "devices", "self_test"]

BACKENDS = ("torch", "native", "triton")
"""Backends that can be asked for by name."""

HOMES = {"native": "cpu", "triton": "cuda"}
"""The type of device that a kernel is for. Asked for elsewhere, it leaves every tensor to torch."""

SHAPES = ((513, 77), (100_003,), (64, 3, 3, 3), (1,))
"""Of the exactness test: odd sizes, several chunks of a kernel, more than two dimensions, one element."""

STEPS = 3
"""Of the exactness test."""

TIMED = 16, 262_144
"""Tensors, and elements of each, of the timing: 4.2 M, the matrices of a GPT of 5 M parameters."""

ROUNDS = 3, 400
"""Rounds of the timing, at least and at most."""

SPREAD = 0.02
"""Standard deviation of the parameters: what small GPTs start from."""

UPDATE_TOLERANCE = 1e-4
"""Of an update in units of the learning rate; an Adam update is about one such unit. A float32 parameter of 4
standard deviations rounds to 4e-9, or 4e-6 of lr, a step; the update itself to some 1e-6."""

SUM_TOLERANCE = 1e-5
"""Of the sums, relative: ten times what the native kernel states (1e-6)."""

LR, DECAY, BETAS, EPS = 1e-3, 0.1, (0.9, 0.999), 1e-8


@dataclass(frozen=True)
class Verdict:
    """What the test of a backend found.

    Attributes:
        refusal: why it does not run here; None if it does, and then all else is given.
        update_error: largest distance of a parameter from the reference after 3 steps, in units of lr.
        sum_error: largest relative distance of sigma, phi, gradient norm, parameter norm and gaussianity.
        milliseconds: median of a step that updates and measures 4.2 M float32 parameters.
        ratio: median over rounds of that step over one of torch's fused AdamW on the same device.
        note: what the ratio refers to if not to the fused step.
    """

    refusal: str | None = None
    update_error: float = math.nan
    sum_error: float = math.nan
    milliseconds: float = math.nan
    ratio: float = math.nan
    note: str = ""

    @property
    def agrees(self) -> bool:
        """Whether both errors are within what float32 explains."""
        return self.update_error <= UPDATE_TOLERANCE and self.sum_error <= SUM_TOLERANCE


def devices() -> list[torch.device]:
    """Return the CPU and the first device of every other kind that torch sees here."""
    found = [torch.device("cpu")]
    if torch.cuda.is_available():
        found.append(torch.device("cuda", torch.cuda.current_device()))
    if torch.backends.mps.is_available():
        found.append(torch.device("mps"))
    return found


def self_test(backend: str, device: torch.device, seconds: float = 2.0) -> Verdict:
    """Test a backend on a device. Torch's global generators are left as they are.

    Args:
        backend: of :data:`BACKENDS`.
        device: where the parameters lie.
        seconds: to spend on timing; the test of exactness takes some tenths of a second beside it.
    """
    home = HOMES.get(backend, device.type)
    if home != device.type:
        return Verdict(refusal=f"its kernel is for parameters on {home}")
    try:
        update_error, sum_error = _errors(backend, device)
    except (RuntimeError, ValueError) as refusal:  # the message of a backend that is not available says why
        return Verdict(refusal=str(refusal).split("\n", 1)[0])
    milliseconds, ratio, note = _timing(backend, device, seconds)
    return Verdict(None, update_error, sum_error, milliseconds, ratio, note)


def _parameters(shapes: tuple[tuple[int, ...], ...], device: torch.device) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter((SPREAD * torch.randn(s, generator=generator)).to(device)) for s in shapes]


def _errors(backend: str, device: torch.device) -> tuple[float, float]:
    """Take :data:`STEPS` steps beside the float64 reference: distance of the parameters, and of the sums."""
    params = _parameters(SHAPES, device)
    # averages over one step: the reading is the last step's own
    optimizer = ThermoAdamW(
        params,
        lr=LR,
        betas=BETAS,
        eps=EPS,
        weight_decay=DECAY,
        measure_every=1,
        ema_steps=1,
        backend=backend,
    )
    exact = [p.detach().double().cpu().clone() for p in params]
    moments = [[torch.zeros_like(x) for x in exact] for _ in range(2)]
    counts = [torch.zeros(()) for _ in exact]
    generator = torch.Generator().manual_seed(1)
    sums = torch.zeros(len(exact), len(Sum), dtype=torch.float64)
    for _ in range(STEPS):
        grads = [torch.randn(s, generator=generator) for s in SHAPES]
        for p, g in zip(params, grads, strict=True):
            p.grad = g.to(device)
        optimizer.step()
        sums = reference_step(
            exact,
            [g.double() for g in grads],
            moments[0],
            moments[1],
            [],
            counts,
            lr=LR,
            betas=BETAS,
            eps=EPS,
            weight_decay=DECAY,
        )
    update = max(
        float((p.detach().double().cpu() - x).abs().max()) for p, x in zip(params, exact, strict=True)
    )
    return update / LR, _sum_error(optimizer, sums)


def _sum_error(optimizer: ThermoAdamW, sums: Tensor) -> float:
    reading = optimizer.reading
    if reading is None:
        return math.inf
    total = sums.sum(0).tolist()
    expected = {
        "sigma": LR * total[Sum.A],
        "phi": LR / 4 * total[Sum.UU],
        "grad_norm": math.sqrt(total[Sum.GG]),
        "param_norm": math.sqrt(total[Sum.TT]),
        "gaussianity": total[Sum.N1] / total[Sum.D],
    }
    return max(abs(getattr(reading.total, name) / value - 1) for name, value in expected.items())


def _timing(backend: str, device: torch.device, seconds: float) -> tuple[float, float, str]:
    """Time steps in turn with torch's own until the time is over: median ms, median ratio, and to what."""
    n, size = TIMED
    ours = ThermoAdamW(
        _parameters(((size,),) * n, device), lr=LR, weight_decay=DECAY, measure_every=1, backend=backend
    )
    theirs = _parameters(((size,),) * n, device)
    note = ""
    try:
        torchs: torch.optim.Optimizer = torch.optim.AdamW(theirs, lr=LR, weight_decay=DECAY, fused=True)
    except RuntimeError:
        torchs, note = (
            torch.optim.AdamW(theirs, lr=LR, weight_decay=DECAY),
            "its default step, as it has no fused one here",
        )
    for optimizer in (ours, torchs):
        for p in optimizer.param_groups[0]["params"]:
            p.grad = p.detach().clone()
        for _ in range(3):  # state, plans and compiled kernels come with the first steps
            _timed(optimizer.step, device)
    end = time.perf_counter() + seconds
    own: list[float] = []
    ratios: list[float] = []
    while len(own) < ROUNDS[0] or (len(own) < ROUNDS[1] and time.perf_counter() < end):
        own.append(_timed(ours.step, device))
        ratios.append(own[-1] / _timed(torchs.step, device))
    return 1e3 * statistics.median(own), statistics.median(ratios), note


def _timed(step: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
