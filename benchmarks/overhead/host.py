"""Host time of a step: what Python does around the kernel, whose call is replaced by a no-op.

``python -m thermoopt.benchmarks.overhead.host`` prints milliseconds per step for 10, 148 and 1,000 tensors:
not measuring, measuring every step, and with ``autotune``; beside them torch's fused step of the same
tensors, of 64 elements each, kernel included. Times are CPU time of one thread, methods take turns in each
round, and a row is the median over rounds with its quartiles. Nothing is trained: gradients do not change.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import torch

from thermoopt import ThermoAdamW, autotune
from thermoopt.kernels import native

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["COUNTS", "main", "measure", "methods"]

COUNTS = (10, 148, 1000)
"""Tensors; 148 are those of a GPT-2."""

ELEMENTS = 64
"""Elements of each tensor: so few that torch's fused step is host time as well."""


def parameters(count: int) -> list[torch.nn.Parameter]:
    """Return parameters with gradients, the same numbers at every call."""
    rng = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(ELEMENTS, generator=rng)) for _ in range(count)]
    for p in params:
        p.grad = 1e-3 * torch.randn(ELEMENTS, generator=rng)
    return params


@contextmanager
def no_kernel() -> Iterator[None]:
    """Replace the native kernel's call by one that does nothing."""
    library = native.LIBRARY
    native.LIBRARY = SimpleNamespace(thermoopt_step=lambda pointer: 0)  # type: ignore[assignment]  # a stand-in
    try:
        yield
    finally:
        native.LIBRARY = library


def methods(count: int) -> dict[str, tuple[Callable[[], object], bool]]:
    """Return a step of each method, and whether it is taken without the kernel."""
    unmeasured = ThermoAdamW(parameters(count), measure_every=1 << 30)
    measured = ThermoAdamW(parameters(count))
    tuned = ThermoAdamW(parameters(count), controller=autotune(1 << 20))
    return {
        "torch fused": (torch.optim.AdamW(parameters(count), fused=True).step, False),
        "ThermoAdamW, every step, with its kernel": (ThermoAdamW(parameters(count)).step, False),
        "host time, not measuring": (unmeasured.step, True),
        "host time, every step": (measured.step, True),
        "host time, every step, autotune": (tuned.step, True),
    }


def measure(count: int, rounds: int, seconds: float = 0.02) -> dict[str, list[float]]:
    """Return milliseconds per step of each method, one number per round.

    Args:
        count: tensors.
        rounds: interleaved rounds.
        seconds: approximate time of a method in each round.
    """
    steps = methods(count)
    out: dict[str, list[float]] = {name: [] for name in steps}
    per_round: dict[str, int] = {}
    for name, (step, bare) in steps.items():
        for _ in range(5):  # state, plans, and the controller's start
            step()
        with no_kernel() if bare else _as_it_is():
            per_round[name] = max(3, int(seconds / max(_milliseconds(step, 3) / 1e3, 1e-6)))
    for _ in range(rounds):
        for name, (step, bare) in steps.items():
            with no_kernel() if bare else _as_it_is():
                out[name].append(_milliseconds(step, per_round[name]))
    return out


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


def _milliseconds(step: Callable[[], object], times: int) -> float:
    start = time.thread_time()
    for _ in range(times):
        step()
    return (time.thread_time() - start) / times * 1e3


def main(arguments: list[str] | None = None) -> int:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30, help="interleaved rounds (default 30)")
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS), help="numbers of tensors")
    options = parser.parse_args(arguments)
    if not native.available():
        print(f"overhead.host: {native.unavailable_reason()}")
        return 2
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, CPU time of one thread, {options.rounds} rounds\n")
    print("| tensors | method | ms per step | quartiles | x torch fused |")
    print("| ---: | --- | ---: | ---: | ---: |")
    for count in options.counts:
        times = measure(count, options.rounds)
        fused = np.array(times["torch fused"])
        for name, values in times.items():
            low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
            ratio = np.median(np.array(values) / fused)
            print(f"| {count} | {name} | {middle:.3f} | {low:.3f} to {high:.3f} | {ratio:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
