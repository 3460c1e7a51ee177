"""Time of an AdamW step on a CUDA device: torch's, ThermoAdamW and Observer, graphs, the Triton plan alone.

Run ``python -m thermoopt.benchmarks.overhead.cuda`` on a machine with a CUDA device and read the Markdown it
prints, in less than three minutes: whether the kernel's step and sums are those of float64, time of the first
compilation, every method on every set, what was wanted, host time, launch shapes of the plan, memory, and
whether 1,000 steps waited for the device. Each part is printed as soon as it is measured. Exit status 2: no
CUDA device, or no triton.

Every method steps its own copy of the same parameters. In each round every method runs once, so that drift of
clocks and temperature affects all alike; a run is several steps between two CUDA events, host time included
if the host is slower than the device. Bytes are those that a float32 step must move: parameter, gradient and
two moments read, all but the gradient written, 28 bytes per element. They are compared with the bandwidth of
``copy_`` between two buffers of half a GiB, timed in the same rounds. A method holds 16 bytes per element:
28 GB for the fourteen at 124 M; methods that do not fit are left out, and at 350 M only four take part.

``TRITON_INTERPRET=1 python -m thermoopt.benchmarks.overhead.cuda --dry-run`` takes every method's steps on a
CPU with a few small tensors: it shows that the script runs, and measures nothing.
"""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from thermoopt.benchmarks.overhead.cuda_methods import METHODS, SHAPES, Maker, device, stand_in
from thermoopt.benchmarks.overhead.shapes import BYTES_PER_ELEMENT, GPT_SETS, Shapes
from thermoopt.kernels import reference_step
from thermoopt.kernels import triton as kernels

COPY_BYTES = 1 << 30
"""Bytes that a copy reads and writes in total: larger than any cache, small against any GPU's memory."""


SETS: dict[str, Shapes] = {
    **{name: GPT_SETS[name] for name in ("GPT 5 M", "GPT 27 M", "GPT 124 M", "GPT 350 M")},
    "GPT 124 M bfloat16": GPT_SETS["GPT 124 M"],
    "200 x 1 K": [(1_024,)] * 200,
}

DRY = "dry run"
"""A set of some small tensors, for the interpreter."""

NAMES = list(SETS)

SETS[DRY] = [(7, 5), (3,), (300,)]

LARGE = 200_000_000
"""Number of elements above which only the methods of :data:`FEW` run: eleven copies would not fit."""


@dataclass
class Row:
    """Milliseconds per step of one method on one set, one number per round."""

    name: str
    method: str
    elements: int
    times: list[float] = field(default_factory=list)


def table(rows: Sequence[Row], copy_gb_per_s: float) -> str:
    """Format rows as Markdown; ratios are to the row ``torch fused`` of the same set.

    Args:
        rows: timings, at least one round each.
        copy_gb_per_s: bytes read and written per second by a copy, in units of 1e9.

    Returns:
        One line per row: median, quartiles, ratio of medians, GB/s, share of the copy's bandwidth.
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
    """Device time from before to after ``steps`` calls, divided by ``steps``; the host's without a device."""
    if device().type == "cpu":
        begun = time.perf_counter()
        for _ in range(steps):
            run()
        return (time.perf_counter() - begun) / steps * 1e3
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(steps):
        run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / steps


FEW = ("torch fused", "ThermoAdamW as imported", "Triton plan, not measuring", "Triton plan, measuring")
"""Methods of the largest set."""

SILENT = (
    "ThermoAdamW as imported",
    "ThermoAdamW, autotune",
    "ThermoAdamW fused, every 10th",
    "ThermoAdamW fused, no Triton, every 10th",
    "Observer on torch fused, every 10th",
)
"""Methods whose steps must not wait for the device, and whose memory is compared."""


def measure_set(
    name: str,
    rounds: int,
    steps: int,
    warm_up: int,
    methods: dict[str, Maker] | None = None,
    copy_bytes: int = COPY_BYTES,
) -> tuple[list[Row], list[float]]:
    """Time methods on one set; return the rows and the copy's bandwidth of each round, GB/s."""
    shapes = SETS[name]
    elements = sum(math.prod(shape) for shape in shapes)
    half = torch.empty(copy_bytes // 8, device=device())
    other = torch.empty_like(half)
    dtype = torch.bfloat16 if name.endswith("bfloat16") else torch.float32
    taking_part = methods or ({m: METHODS[m] for m in FEW} if elements > LARGE else METHODS)
    runs: dict[str, Callable[[], object]] = {}
    for method, maker in taking_part.items():
        try:
            run = maker(shapes, dtype)
            milliseconds(run, warm_up)
        except torch.OutOfMemoryError:
            print(f"{name}: no memory left for {method!r}, left out", file=sys.stderr)
            continue
        except Exception as error:  # a method that fails must not lose the table of all others
            print(
                f"{name}: {method!r} failed and is left out: {type(error).__name__}: {error}", file=sys.stderr
            )
            continue
        runs[method] = run
    rows = {method: Row(name, method, elements) for method in runs}
    copies = []
    milliseconds(lambda: other.copy_(half), warm_up)
    for k in range(rounds):
        # each round starts with another method
        order = [*runs][k % len(runs) :] + [*runs][: k % len(runs)]
        for method in order:
            rows[method].times.append(milliseconds(runs[method], steps))
        copies.append(copy_bytes / milliseconds(lambda: other.copy_(half), steps) / 1e6)
    return list(rows.values()), copies


WANTED: tuple[tuple[str, str, str, float], ...] = (
    *(
        (name, "ThermoAdamW as imported", "torch fused", most)
        for name, most in (
            ("GPT 124 M", 1.0),
            ("GPT 350 M", 1.0),
            ("GPT 124 M bfloat16", 0.85),
            ("GPT 27 M", 0.8),
            ("GPT 5 M", 0.8),
            ("200 x 1 K", 0.8),
        )
    ),
    ("GPT 124 M", "Triton plan, measuring", "Triton plan, not measuring", 1.12),
    ("GPT 124 M", "ThermoAdamW, autotune", "ThermoAdamW as imported", 1.05),
    ("GPT 27 M", "ThermoAdamW, autotune", "ThermoAdamW as imported", 1.05),
    *(
        (name, "Observer on torch fused, every 10th", "torch fused", 1.1)
        for name in ("GPT 124 M", "GPT 27 M")
    ),
)
"""Set, method, the one it is compared with, and the largest ratio that is wanted of their medians."""


def wanted(rows: Sequence[Row]) -> list[str]:
    """Return a line for each ratio of :data:`WANTED` that was measured."""
    medians = {(r.name, r.method): statistics.median(r.times) for r in rows}
    lines = []
    for name, method, other, most in WANTED:
        if (name, method) in medians and (name, other) in medians:
            ratio = medians[name, method] / medians[name, other]
            met = "met" if ratio <= most else "not met"
            lines.append(f"- {name}: {method} / {other} {ratio:.3f}, target {most:.2f}: {met}")
    return lines


TENSORS = 148
"""Tensors whose host time is measured: those of a GPT-2."""

HOST_METHODS = (
    "torch fused",
    "ThermoAdamW, measuring off",
    "ThermoAdamW as imported",
    "ThermoAdamW as imported, gradients elsewhere each step",
    "ThermoAdamW, autotune",
)
"""Methods whose host time is measured."""


def host(method: str, tensors: int, steps: int) -> float:
    """Return the host's milliseconds a step for tensors so small that the device waits for the host."""
    run = METHODS[method]([(64,)] * tensors, torch.float32)
    milliseconds(run, min(25, steps))
    begun = time.perf_counter()
    for _ in range(steps):
        run()
    return (time.perf_counter() - begun) / steps * 1e3


def wrong() -> list[str]:
    """Return where the kernel's step and sums of some odd tensors differ from float64's, in words."""
    found = []
    for dtype, rough in ((torch.float32, 2e-6), (torch.bfloat16, 2e-2)):
        rng = torch.Generator().manual_seed(1)
        # the last is longer than a chunk; the last but one begins 4 or 2 bytes behind a multiple of 16
        shapes = [(5,), (300, 70), (4097,), (1 << 16,)]
        drawn = [[torch.randn(shape, generator=rng).to(dtype) for shape in shapes] for _ in range(3)]
        p, g, m = ([x.to(device()) for x in column] for column in drawn)
        p[2], g[2] = (torch.cat([x[2][:1], x[2]])[1:] for x in (p, g))
        v = [x.square() for x in m]
        t = [torch.full((), 4.0, device=device()) for _ in p]
        mirror = [[x.cpu().clone() for x in column] for column in (p, g, m, v, t)]
        size = [[x.abs() for x in column] for column in mirror]
        numbers: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1, "eps": 1e-8, "maximize": False}
        sums = kernels.Plan(p, m, v, [None] * 4, t).step(g, **numbers, beta1=0.9, beta2=0.99, factor=1.0)
        of = [
            reference_step(x[0], x[1], x[2], x[3], [], x[4], betas=(0.9, 0.99), **numbers)
            for x in (mirror, size)
        ]
        assert sums is not None
        error = ((sums.cpu() - of[0]).abs() / of[1]).max().item()
        if not error < 1e-6:
            found.append(f"{dtype}: a sum is off by {error:.1e} of its absolute terms")
        for name, own, other in (("parameter", p, mirror[0]), ("m", m, mirror[2]), ("v", v, mirror[3])):
            far = max(
                (a.cpu().double() - b.double()).abs().max().item() for a, b in zip(own, other, strict=True)
            )
            if not far < rough * 8:
                found.append(f"{dtype}: a {name} is off by {far:.1e}")
    return found


def memory(name: str, methods: Sequence[str]) -> list[str]:
    """Return the bytes per parameter by which each method's peak exceeds that of torch's fused step."""
    shapes = SETS[name]
    elements = sum(math.prod(shape) for shape in shapes)
    peaks = {}
    for method in ("torch fused", *methods):
        _free()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run = METHODS[method](shapes, torch.float32)
        milliseconds(run, 12)
        peaks[method] = torch.cuda.max_memory_allocated() - before
        del run
    base = peaks.pop("torch fused")
    return [
        f"{name}, {method}: {(peak - base) / elements:+.3f} byte a parameter"
        for method, peak in peaks.items()
    ]


def waits(name: str, method: str, steps: int = 1000) -> str:
    """Return whether a method's steps wait for the device, by torch's own check."""
    run = METHODS[method](SETS[name], torch.float32)
    milliseconds(run, 25)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(steps):
            run()
    except RuntimeError as error:
        return f"{name}, {method}: {str(error).strip().partition(chr(10))[0]}"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return f"{name}, {method}: {steps} steps without waiting"


def _free() -> None:
    gc.collect()
    if device().type == "cuda":
        torch.cuda.empty_cache()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12, help="interleaved rounds (default 12)")
    parser.add_argument(
        "--steps", type=int, help="steps per run (default 10; 50 for sets below 50 M elements)"
    )
    parser.add_argument("--warm-up", type=int, default=20, help="steps before the first round (default 20)")
    parser.add_argument("--sets", nargs="+", choices=NAMES, default=NAMES, help="parameter sets")
    parser.add_argument(
        "--seconds", type=float, default=170, help="start no set after this time (default 170)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only show that everything runs, interpreted on CPU"
    )
    options = parser.parse_args(arguments)
    if options.dry_run and not kernels.INTERPRETED:
        print("overhead.cuda: --dry-run needs TRITON_INTERPRET=1 in the environment", file=sys.stderr)
        return 2
    if not options.dry_run and not torch.cuda.is_available():
        print("overhead.cuda: torch sees no CUDA device, so nothing was measured", file=sys.stderr)
        return 2
    if not kernels.available():
        print(f"overhead.cuda: {kernels.unavailable_reason()}, so nothing was measured", file=sys.stderr)
        return 2
    with stand_in() if options.dry_run else nullcontext():
        if options.dry_run:
            options.sets, options.rounds, options.steps, options.warm_up = [DRY], 1, 1, 2
        _run(options)
    return 0


def _run(options: argparse.Namespace) -> None:
    import triton  # there is one: the kernels are available

    begun = time.perf_counter()
    where = "CPU, interpreted: no measurement" if options.dry_run else torch.cuda.get_device_name()
    say(f"{where}, torch {torch.__version__}, CUDA {torch.version.cuda}, triton {triton.__version__}")
    reason = kernels.trial()
    say(f"first compilation, or its cache: {time.perf_counter() - begun:.1f} s {reason or ''}")
    say(f"against float64: {'; '.join(wrong()) or 'step and sums agree'}")
    say(f"{options.rounds} rounds, float32 unless said")
    copy_bytes = 1 << 12 if options.dry_run else COPY_BYTES
    rows: list[Row] = []

    def part(name: str, methods: dict[str, Maker] | None = None) -> None:
        if time.perf_counter() - begun > options.seconds:
            say(f"\n{name}: not begun, {options.seconds:.0f} s are over (--sets takes it alone)")
            return
        # short steps in longer runs, so that the first step after waiting weighs little
        steps = options.steps or (10 if sum(map(math.prod, SETS[name])) > 50_000_000 else 50)
        more, copies = measure_set(name, options.rounds, steps, options.warm_up, methods, copy_bytes)
        rows.extend(more if methods is None else [])
        low, high = quartiles(copies)
        speed = statistics.median(copies)
        say(f"\n{table(more, speed)}\n\n{steps} steps a run; a copy reads and writes", end=" ")
        say(f"{speed:.0f} GB/s (quartiles {low:.0f} to {high:.0f})")
        _free()

    for name in options.sets:
        part(name)
    say("\nTargets\n\n" + ("\n".join(wanted(rows)) or "nothing of it was measured"))
    tensors, steps = (2, 1) if options.dry_run else (TENSORS, 300)
    say(f"\nHost, {tensors} tensors of 64 elements, ms a step\n")
    for method in HOST_METHODS:
        say(f"- {method}: {host(method, tensors, steps):.3f}")
    if not options.dry_run:
        small = "GPT 124 M" if "GPT 124 M" in options.sets else options.sets[0]
        say("\nWaiting for the device (`set_sync_debug_mode`)\n")
        for method in SILENT:
            say(f"- {waits(options.sets[0], method)}")
        say("\nMemory\n")
        for line in memory(small, SILENT):
            say(f"- {line}")
    shaped = next((name for name in ("GPT 124 M", *options.sets) if name in options.sets), None)
    if shaped is not None:
        say("\nLaunch shapes, the first is in use from 16 M elements on")
        part(shaped, SHAPES)
    say(f"\n{time.perf_counter() - begun:.0f} s in all")


def say(text: str, end: str = "\n") -> None:
    """Print at once: a device that fails later must not take along what was measured."""
    print(text, end=end, flush=True)


if __name__ == "__main__":
    sys.exit(main())
