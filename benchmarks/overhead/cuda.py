"""Time of an AdamW step on a CUDA device: torch's own, ThermoAdamW and Observer, the Triton plan alone.

Run ``python -m thermoopt.benchmarks.overhead.cuda`` on a machine with a CUDA device
and read the Markdown table it prints. Exit status 2: no CUDA device, or no triton.

Every method steps its own copy of the same parameters. In each round every method runs once, so that clocks
and temperature drift for all alike; a run is several steps between two CUDA events, host time included when
the host is slower than the device. Bytes are those a float32 step must move: parameter, gradient and two
moments read, all but the gradient written, 28 bytes an element. The bandwidth they are compared with is that
of ``copy_`` between two buffers of half a GiB, timed in the same rounds. A method holds 16 bytes an element:
22 GB for the eleven at 124 M; at 350 M only four take part.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from thermoopt import Observer, ThermoAdamW, autotune
from thermoopt.adamw import backends
from thermoopt.benchmarks.overhead.shapes import BYTES_PER_ELEMENT, GPT_SETS, Shapes
from thermoopt.kernels import triton as kernels

COPY_BYTES = 1 << 30
"""Bytes a copy reads and writes together: larger than any cache, small beside any GPU's memory."""


SETS: dict[str, Shapes] = {
    **{name: GPT_SETS[name] for name in ("GPT 5 M", "GPT 27 M", "GPT 124 M", "GPT 350 M")},
    "GPT 124 M bfloat16": GPT_SETS["GPT 124 M"],
    "200 x 1 K": [(1_024,)] * 200,
}

LARGE = 200_000_000
"""Elements from which on only the methods of :data:`FEW` take part: eleven copies would not fit."""


@dataclass
class Row:
    """Milliseconds a step of one method on one set, one number a round."""

    name: str
    method: str
    elements: int
    times: list[float] = field(default_factory=list)


def table(rows: Sequence[Row], copy_gb_per_s: float) -> str:
    """Format rows as Markdown; ratios are to the row ``torch fused`` of the same set.

    Args:
        rows: timings, at least one round each.
        copy_gb_per_s: bytes read and written a second by a copy, in units of 1e9.

    Returns:
        One line a row: median, quartiles, ratio of medians, GB/s, share of the copy's bandwidth.
    """
    lines = [
        "| parameters | method | ms (median) | quartiles | ratio to torch fused | GB/s | of copy |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    fused = {r.name: statistics.median(r.times) for r in rows if r.method == "torch fused"}
    for r in rows:
        ms = statistics.median(r.times)
        low, high = quartiles(r.times)
        ratio = f"{ms / fused[r.name]:.2f}" if r.name in fused else "-"
        speed = r.elements * BYTES_PER_ELEMENT / ms / 1e6
        lines.append(
            f"| {r.name} | {r.method} | {ms:.3f} | {low:.3f} to {high:.3f} | {ratio} | {speed:.0f} "
            f"| {speed / copy_gb_per_s:.0%} |"
        )
    return "\n".join(lines)


def quartiles(times: Sequence[float]) -> tuple[float, float]:
    """First and third quartile; the number itself if there is only one."""
    if len(times) == 1:
        return times[0], times[0]
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return low, high


def milliseconds(run: Callable[[], object], steps: int) -> float:
    """Device time from before to after ``steps`` calls, divided by ``steps``."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(steps):
        run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / steps


Maker = Callable[[Shapes, torch.dtype], Callable[[], object]]
"""Makes a method's step of parameters of these shapes."""


def random_parameters(shapes: Shapes, dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    """Parameters with gradients, the same numbers at every call."""
    rng = torch.Generator("cuda").manual_seed(0)
    params = []
    for shape in shapes:
        p = torch.nn.Parameter((0.02 * torch.randn(shape, device="cuda", generator=rng)).to(dtype))
        p.grad = (1e-3 * torch.randn(shape, device="cuda", generator=rng)).to(dtype)
        params.append(p)
    return params


def torch_method(*, fused: bool, observed: bool = False) -> Maker:
    """Torch's own step, with an observer or without."""

    def make(shapes: Shapes, dtype: torch.dtype) -> Callable[[], object]:
        params = random_parameters(shapes, dtype)
        optimizer = torch.optim.AdamW(params, lr=1e-4, fused=fused, foreach=not fused)
        if observed:
            observers.append(Observer(None, optimizer))
        return optimizer.step

    return make


observers: list[Observer] = []


def thermo_method(*, triton: bool = True, tuned: bool = False, **flags: Any) -> Maker:
    """ThermoAdamW, with autotune or without; ``triton=False`` as where there is no Triton."""

    def make(shapes: Shapes, dtype: torch.dtype) -> Callable[[], object]:
        kept, backends.dry_kernel = (
            backends.dry_kernel,
            backends.dry_kernel if triton else lambda groups: None,
        )
        try:
            controller = autotune(100_000) if tuned else None
            return ThermoAdamW(random_parameters(shapes, dtype), lr=1e-4, controller=controller, **flags).step
        finally:
            backends.dry_kernel = kept

    return make


def plan_method(*, measure: bool) -> Maker:
    """The Triton plan alone."""

    def make(shapes: Shapes, dtype: torch.dtype) -> Callable[[], object]:
        params = random_parameters(shapes, dtype)
        moments = [[torch.zeros_like(p, requires_grad=False) for p in params] for _ in range(2)]
        steps = [torch.zeros((), device="cuda") for _ in params]
        plan = kernels.Plan(params, moments[0], moments[1], [None] * len(params), steps)
        grads = [p.grad for p in params if p.grad is not None]
        numbers = {"lr": 1e-4, "weight_decay": 1e-2, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
        return lambda: plan.step(grads, **numbers, maximize=False, measure=measure)  # type: ignore[arg-type]

    return make


METHODS: dict[str, Maker] = {
    "torch foreach": torch_method(fused=False),
    "torch fused": torch_method(fused=True),
    "ThermoAdamW as imported": thermo_method(),
    "ThermoAdamW, measuring off": thermo_method(measure_every=1 << 30),
    "ThermoAdamW, autotune": thermo_method(tuned=True),
    "ThermoAdamW fused, every 10th": thermo_method(fused=True),
    "ThermoAdamW fused, no Triton, every 10th": thermo_method(fused=True, triton=False),
    "ThermoAdamW fused, no Triton, every step": thermo_method(fused=True, triton=False, measure_every=1),
    "Observer on torch fused, every 10th": torch_method(fused=True, observed=True),
    "Triton plan, not measuring": plan_method(measure=False),
    "Triton plan, measuring": plan_method(measure=True),
}

FEW = ("torch fused", "ThermoAdamW as imported", "Triton plan, not measuring", "Triton plan, measuring")
"""Methods of the largest set."""


def measure_set(name: str, rounds: int, steps: int, warm_up: int) -> tuple[list[Row], list[float]]:
    """Time every method on one set; return the rows and the copy's bandwidth of each round, GB/s."""
    shapes = SETS[name]
    elements = sum(math.prod(shape) for shape in shapes)
    half = torch.empty(COPY_BYTES // 8, device="cuda")
    other = torch.empty_like(half)
    dtype = torch.bfloat16 if name.endswith("bfloat16") else torch.float32
    taking_part = FEW if elements > LARGE else METHODS
    runs = {method: METHODS[method](shapes, dtype) for method in taking_part}
    rows = {method: Row(name, method, elements) for method in runs}
    copies = []
    for run in (*runs.values(), lambda: other.copy_(half)):
        milliseconds(run, warm_up)
    for k in range(rounds):
        # another first method every round
        order = [*runs][k % len(runs) :] + [*runs][: k % len(runs)]
        for method in order:
            rows[method].times.append(milliseconds(runs[method], steps))
        copies.append(COPY_BYTES / milliseconds(lambda: other.copy_(half), steps) / 1e6)
    return list(rows.values()), copies


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12, help="interleaved rounds (default 12)")
    parser.add_argument("--steps", type=int, default=10, help="steps a run (default 10)")
    parser.add_argument("--warm-up", type=int, default=20, help="steps before the first round (default 20)")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS), help="parameter sets")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("cuda_overhead: torch sees no CUDA device, so nothing was measured", file=sys.stderr)
        return 2
    if not kernels.available():
        print(f"cuda_overhead: {kernels.unavailable_reason()}, so nothing was measured", file=sys.stderr)
        return 2
    cold = time.perf_counter()
    reason = kernels.trial()
    print(f"first compilation, or its cache: {time.perf_counter() - cold:.1f} s {reason or ''}")
    rows: list[Row] = []
    copies: list[float] = []
    for name in options.sets:
        more, speeds = measure_set(name, options.rounds, options.steps, options.warm_up)
        rows += more
        copies += speeds
        observers.clear()
        torch.cuda.empty_cache()
    speed = statistics.median(copies)
    low, high = quartiles(copies)
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}, "
        f"triton {kernels.triton.__version__}"
    )
    print(f"copy: {speed:.0f} GB/s read and written (quartiles {low:.0f} to {high:.0f})")
    print(f"{options.rounds} rounds of {options.steps} steps, float32 unless said\n")
    print(table(rows, speed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
