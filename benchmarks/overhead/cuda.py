"""Time of an AdamW step on a CUDA device: torch's, ThermoAdamW and Observer, graphs, the Triton plan alone.

Run ``python -m thermoopt.benchmarks.overhead.cuda`` on a machine with a CUDA device and read the Markdown it
prints, in less than three minutes: time of the first compilation, every method on every set, launch shapes of
the plan, memory, and whether 1,000 steps waited for the device. Exit status 2: no CUDA device, or no triton.

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

import torch

from thermoopt.benchmarks.overhead.cuda_methods import METHODS, SHAPES, Maker, device, stand_in
from thermoopt.benchmarks.overhead.shapes import BYTES_PER_ELEMENT, GPT_SETS, Shapes
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
    parser.add_argument("--steps", type=int, default=10, help="steps a run (default 10)")
    parser.add_argument("--warm-up", type=int, default=20, help="steps before the first round (default 20)")
    parser.add_argument("--sets", nargs="+", choices=NAMES, default=NAMES, help="parameter sets")
    parser.add_argument("--seconds", type=float, default=170, help="begin no set later (default 170)")
    parser.add_argument("--dry-run", action="store_true", help="interpreted on CPU: shows that all runs")
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
    begun = time.perf_counter()
    reason = kernels.trial()
    print(f"first compilation, or its cache: {time.perf_counter() - begun:.1f} s {reason or ''}")
    numbers = (options.rounds, options.steps, options.warm_up)
    copy_bytes = 1 << 12 if options.dry_run else COPY_BYTES
    rows: list[Row] = []
    copies: list[float] = []
    for name in options.sets:
        if time.perf_counter() - begun > options.seconds:
            print(f"{name}: not begun, {options.seconds:.0f} s are over (--sets takes it alone)")
            continue
        more, speeds = measure_set(name, *numbers, copy_bytes=copy_bytes)
        rows += more
        copies += speeds
        _free()
    shaped = next((name for name in ("GPT 124 M", *options.sets) if name in options.sets), None)
    shape_rows: list[Row] = []
    if shaped is not None and time.perf_counter() - begun <= options.seconds:
        shape_rows, _ = measure_set(shaped, *numbers, SHAPES, copy_bytes)
        _free()
    speed = statistics.median(copies) if copies else math.nan
    low, high = quartiles(copies) if copies else (math.nan, math.nan)
    where = "CPU, interpreted: no measurement" if options.dry_run else torch.cuda.get_device_name()
    print(
        f"{where}, torch {torch.__version__}, CUDA {torch.version.cuda}, triton {kernels.triton.__version__}"
    )
    print(f"copy: {speed:.0f} GB/s read and written (quartiles {low:.0f} to {high:.0f})")
    print(f"{options.rounds} rounds of {options.steps} steps, float32 unless said\n")
    print(table(rows, speed))
    if shape_rows:
        print(f"\nLaunch shapes, the first is in use\n\n{table(shape_rows, speed)}")
    if not options.dry_run:
        small = options.sets[0]
        print("\nWaiting for the device (`set_sync_debug_mode`)\n")
        for method in SILENT:
            print(f"- {waits(small, method)}")
        print("\nMemory\n")
        for line in memory(small, SILENT):
            print(f"- {line}")
    print(f"\n{time.perf_counter() - begun:.0f} s in all")


if __name__ == "__main__":
    sys.exit(main())
