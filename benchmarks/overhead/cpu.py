"""Cost of measuring on CPU: milliseconds, bandwidth and memory of an AdamW step, as ratios within one run.

Every method steps the same parameters with fixed gradients and has its own moments. In each round every
method runs a block of steps, so that drift of the machine affects all alike; ratios are taken against
``torch fused`` of the same round, and the table shows the median with the tenth and ninetieth percentile.
Memory is the peak resident set of a process that runs one method alone, less that of torch's own step in the
same setting, per parameter.

A float32 AdamW step reads parameter, gradient and two moments, and writes all but the gradient: 28 bytes per
parameter. The bandwidth-bound time is the time of that many bytes at the speed of ``a += b`` over large
buffers, which writes where it has read, as a step does. A copy writes elsewhere, so the lines that it writes
are read first, and it is slower. Caches hold part of the smaller sets, which may then beat the bound.

    python -m thermoopt.benchmarks.overhead                      # everything, about 10 minutes on 2 cores
    python -m thermoopt.benchmarks.overhead --sets "GPT 27 M"    # one set
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from thermoopt import Observer, ThermoAdamW, autotune
from thermoopt.benchmarks.overhead.shapes import BYTES_PER_ELEMENT, GPT_SETS, Shapes
from thermoopt.kernels import native
from thermoopt.observer import TRACKABLE

OFF = 1 << 40  # measure_every is larger than any run: measuring is off

CONTROLLED_STEPS = 10_000  # length that autotune is told: it takes a reading every 50 steps

Stepper = Callable[[], None]

ABOUT = """The tables show milliseconds per optimizer step, from rounds in which the methods take turns.
Ratios are to torch's fused step in the same round (median, with the 10 to 90 % range). *x own torch step* is
relative to torch's step of the same kind: foreach, or fused for the native kernel. *Of in-place bandwidth* is
the time of a step limited by memory bandwidth alone, as a share of the time taken; caches can carry small
sets beyond 100 %. *Extra bytes* are peak memory above torch's own step. `make bench-overhead` makes this
page.
"""
"""What the columns are, for the head of ``overhead.md``."""


SETS = {name: GPT_SETS[name] for name in ("GPT 0.1 M", "GPT 5 M", "GPT 27 M", "GPT 124 M")}

SMALL: dict[str, tuple[int, int]] = {
    "10 x 1 K, 1 group": (10, 1),
    "200 x 1 K, 1 group": (200, 1),
    "200 x 1 K, 200 groups": (200, 200),
    "2000 x 1 K, 1 group": (2000, 1),
    "2000 x 1 K, 200 groups": (2000, 200),
}


def groups_of(params: list[nn.Parameter], count: int) -> list[dict[str, Any]]:
    """Split parameters evenly into ``count`` groups."""
    return [{"params": params[i::count]} for i in range(count)]


def torch_step(**flags: Any) -> Callable[[list[dict[str, Any]]], Stepper]:
    def build(groups: list[dict[str, Any]]) -> Stepper:
        return torch.optim.AdamW(groups, lr=1e-5, **flags).step

    return build


def thermo_step(**options: Any) -> Callable[[list[dict[str, Any]]], Stepper]:
    def build(groups: list[dict[str, Any]]) -> Stepper:
        return ThermoAdamW(groups, lr=1e-5, **options).step

    return build


def autotuned_step(**options: Any) -> Callable[[list[dict[str, Any]]], Stepper]:
    def build(groups: list[dict[str, Any]]) -> Stepper:
        return ThermoAdamW(groups, controller=autotune(CONTROLLED_STEPS), **options).step

    return build


def observed_step(log_every: int, **options: Any) -> Callable[[list[dict[str, Any]]], Stepper]:
    def build(groups: list[dict[str, Any]]) -> Stepper:
        optimizer = torch.optim.AdamW(groups, lr=1e-5, fused=True)
        Observer(None, optimizer, log_every, **options)  # the optimizer's hooks keep it
        return optimizer.step

    return build


def thermoclaw_step(tools: int) -> Callable[[list[dict[str, Any]]], Stepper]:
    def build(groups: list[dict[str, Any]]) -> Stepper:
        import thermoclaw

        params = [p for group in groups for p in group["params"]]
        model = nn.Module()
        for i, p in enumerate(params):
            model.register_parameter(f"layer{i}", p)
        optimizer = torch.optim.AdamW(groups, lr=1e-5, fused=True)
        observer = thermoclaw.Observer(model, optimizer)
        after: list[Any] = [observer]
        if tools == 3:
            after.append(thermoclaw.EntropySplit(model, optimizer, observer))
            after.append(thermoclaw.CollapseDetector(model, optimizer))

        def step() -> None:
            optimizer.step()
            for tool in after:
                tool.step()

        return step

    return build


def methods() -> dict[str, tuple[Callable[[list[dict[str, Any]]], Stepper], int]]:
    """Return each method with the steps of one block; report and leave out what is not installed."""
    table = {
        "torch for-loop": (torch_step(foreach=False), 2),
        "torch foreach": (torch_step(foreach=True), 10),
        "torch fused": (torch_step(fused=True), 10),
        "ThermoAdamW foreach, off": (thermo_step(foreach=True, measure_every=OFF), 10),
        "ThermoAdamW foreach, every 10": (thermo_step(foreach=True, measure_every=10), 10),
        "ThermoAdamW foreach, every step": (thermo_step(foreach=True, measure_every=1), 2),
        "ThermoAdamW fused, every 10": (thermo_step(fused=True, measure_every=10), 10),
        "ThermoAdamW foreach, every 10, autotune": (autotuned_step(foreach=True, measure_every=10), 50),
        "Observer on fused, every 10": (observed_step(10), 10),
        "Observer on fused, every step": (observed_step(1), 10),
        "Observer on fused, every 10, tracking": (observed_step(10, track=TRACKABLE), 10),
        "Observer on fused, every step, tracking": (observed_step(1, track=TRACKABLE), 10),
    }
    if native.available():
        table["ThermoAdamW native, off"] = (thermo_step(backend="native", measure_every=OFF), 10)
        table["ThermoAdamW native, every 10"] = (thermo_step(backend="native", measure_every=10), 10)
        table["ThermoAdamW native, every step"] = (thermo_step(backend="native", measure_every=1), 10)
        table["ThermoAdamW native, every step, autotune"] = (
            autotuned_step(backend="native", measure_every=1),
            50,
        )
    else:
        print(f"left out: native backend ({native.unavailable_reason()})")
    if importlib.util.find_spec("thermoclaw") is not None:
        table["thermoclaw Observer on fused"] = (thermoclaw_step(1), 1)
        table["thermoclaw, three tools on fused"] = (thermoclaw_step(3), 1)
    else:
        print("left out: thermoclaw (not installed; `pip install thermoclaw` adds its rows)")
    return table


def make_params(shapes: Shapes) -> list[nn.Parameter]:
    rng = torch.Generator().manual_seed(0)
    params = [nn.Parameter(0.02 * torch.randn(shape, generator=rng)) for shape in shapes]
    for p in params:
        p.grad = 0.01 * torch.randn(p.shape, generator=rng)
    return params


def bandwidths(megabytes: int = 512, rounds: int = 9) -> tuple[float, float]:
    """Bytes read and written per second by a large copy and by a large ``a += b``."""
    a = torch.ones(megabytes << 18)
    b = torch.zeros_like(a)
    out = []
    for run, moved in ((lambda: b.copy_(a), 2 * a.nbytes), (lambda: a.add_(b), 3 * a.nbytes)):
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        out.append(moved / float(np.median(times)))
    return out[0], out[1]


def race(params: list[nn.Parameter], n_groups: int, rounds: int, seconds: float) -> dict[str, np.ndarray]:
    """Milliseconds per step of every method, ``[rounds]`` each, interleaved."""
    table = methods()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "CollapseDetector")  # it wants named groups; its cost is the same
        steppers = {name: build(groups_of(params, n_groups)) for name, (build, _) in table.items()}
    for step in steppers.values():  # state, plans, caches
        step()
        step()
    out: dict[str, list[float]] = {name: [] for name in table}
    begin = time.perf_counter()
    for r in range(rounds):
        for name, (_, steps) in table.items():
            start = time.perf_counter()
            for _ in range(steps):
                steppers[name]()
            out[name].append(1e3 * (time.perf_counter() - start) / steps)
        if r >= 4 and time.perf_counter() - begin > seconds:
            break
    return {name: np.array(times) for name, times in out.items()}


def table_of(
    name: str, times: dict[str, np.ndarray], elements: int, bandwidth: float
) -> list[dict[str, Any]]:
    """One plain row per method."""
    fused = times["torch fused"]
    bound = 1e3 * BYTES_PER_ELEMENT * elements / bandwidth
    rows = []
    for method, ms in times.items():
        ratio = ms / fused
        rows.append(
            {
                "set": name,
                "method": method,
                "ms": float(np.median(ms)),
                "ratio": float(np.median(ratio)),
                "low": float(np.quantile(ratio, 0.1)),
                "high": float(np.quantile(ratio, 0.9)),
                "gb_per_s": BYTES_PER_ELEMENT * elements / float(np.median(ms)) / 1e6,
                "of_bound": bound / float(np.median(ms)),
                "rounds": len(ms),
            }
        )
    own = {"foreach": times["torch foreach"], "native": fused, "fused": fused}
    for row in rows:
        method = str(row["method"])
        kind = method.split(",")[0].split()[-1]
        if method.startswith("ThermoAdamW"):
            row["of_own"] = float(np.median(times[method] / own[kind]))
    return rows


def markdown(rows: list[dict[str, Any]], memory: dict[str, float]) -> str:
    """Rows of one set as a Markdown table."""
    lines = [
        "| method | ms per step | x torch fused (10 to 90 %) | x own torch step | GB/s "
        "| of in-place bandwidth | extra bytes per parameter |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in rows:
        own = f"{r['of_own']:.2f}" if "of_own" in r else ""
        extra = f"{memory[r['method']]:+.2f}" if r["method"] in memory else ""
        lines.append(
            f"| {r['method']} | {r['ms']:.3g} | {r['ratio']:.2f} ({r['low']:.2f} to {r['high']:.2f}) | {own} "
            f"| {r['gb_per_s']:.1f} | {100 * r['of_bound']:.0f} % | {extra} |"
        )
    return "\n".join(lines)


def peak_bytes(set_name: str, method: str, runs: int = 2) -> int:
    """Peak resident bytes of a process that runs only this method, the smallest of several runs.

    Freed tensors are returned at once (glibc's mmap threshold is fixed at its initial value); otherwise the
    peaks of one program would differ by what the allocator happens to keep.
    """
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(128 << 10)}
    command = [sys.executable, __file__, "--peak-of", method, "--sets", set_name]
    peaks = []
    for _ in range(runs):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.split()[-1]))
    return min(peaks)


def print_peak(set_name: str, method: str) -> None:
    """Run a method alone for 12 steps and print the peak resident bytes of this process's own memory.

    ``getrusage`` does not work here: its peak is inherited from the parent process.
    """
    step = methods()[method][0](groups_of(make_params(SETS[set_name]), 1))
    for _ in range(12):
        step()
    status = Path("/proc/self/status").read_text()
    print(1024 * int(status.split("VmHWM:")[1].split()[0]))


def extra_memory(set_name: str) -> dict[str, float]:
    """Peak bytes per parameter above torch's own step of the same kind."""
    elements = sum(int(np.prod(s)) for s in SETS[set_name])
    if not Path("/proc/self/status").exists():
        print("peak memory is left out: it needs Linux")
        return {}
    base = {kind: peak_bytes(set_name, f"torch {kind}") for kind in ("foreach", "fused")}
    own = {"foreach": base["foreach"], "native": base["fused"], "fused": base["fused"]}
    out = {}
    for method in methods():
        if method in ("torch for-loop", "torch foreach", "torch fused"):
            continue
        kind = method.split(",")[0].split()[-1] if method.startswith("ThermoAdamW") else "fused"
        out[method] = (peak_bytes(set_name, method) - own[kind]) / elements
    return out


def main() -> None:
    """Measure, print the tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--sets", nargs="*", default=[*SETS, *SMALL], help="names of parameter sets (default: all)"
    )
    parser.add_argument("--rounds", type=int, default=40, help="at most (default: 40)")
    parser.add_argument("--seconds", type=float, default=60.0, help="time for each set, at least 5 rounds")
    parser.add_argument("--threads", type=int, default=2, help="(default: 2)")
    parser.add_argument(
        "--memory-of",
        default="GPT 27 M",
        help="set whose peak memory is measured; '' for none (default: GPT 27 M)",
    )
    parser.add_argument("--out", type=Path, help="folder for overhead.md and overhead.json")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    unknown = [s for s in args.sets if s not in SETS and s not in SMALL]
    if unknown:
        parser.error(f"--sets must be among {[*SETS, *SMALL]}, got {unknown}")
    torch.set_num_threads(args.threads)
    if args.peak_of:
        print_peak(args.sets[0], args.peak_of)
        return
    copy, bandwidth = bandwidths()
    head = (
        f"torch {torch.__version__}, {args.threads} threads, {torch.backends.cpu.get_cpu_capability()}; "
        f"copy {copy / 1e9:.1f} GB/s, in-place add {bandwidth / 1e9:.1f} GB/s (read and written)"
    )
    text, everything = ["# What measuring costs on CPU\n", ABOUT, head], []
    print(head, flush=True)
    for name in args.sets:
        if name in SETS:
            shapes, n_groups = SETS[name], 1
        else:
            count, n_groups = SMALL[name]
            shapes = [(1024,)] * count
        params = make_params(shapes)
        elements = sum(p.numel() for p in params)
        rounds = args.rounds if name in SETS else 5 * args.rounds
        times = race(params, n_groups, rounds, args.seconds)
        rows = table_of(name, times, elements, bandwidth)
        memory = extra_memory(name) if name == args.memory_of else {}
        title = (
            f"\n## {name}: {elements / 1e6:.2f} M elements in {len(params)} tensors, "
            f"{rows[0]['rounds']} rounds; "
            f"a bandwidth-bound step takes {1e3 * BYTES_PER_ELEMENT * elements / bandwidth:.3g} ms\n"
        )
        text += [title, markdown(rows, memory)]
        print(title, markdown(rows, memory), sep="\n", flush=True)
        if "ThermoAdamW foreach, every step" in times:
            once = np.median(times["ThermoAdamW foreach, every step"] - times["torch foreach"])
            line = f"\nOne measured step of the torch pass adds {once:.3g} ms."
            text.append(line)
            print(line, flush=True)
        for method in (m for m in times if m.startswith("Observer")):
            added = 100 * (np.quantile(times[method] / times["torch fused"], (0.1, 0.5, 0.9)) - 1)
            line = f"\n{method}: adds {added[1]:.1f} % of a fused step ({added[0]:.1f} to {added[2]:.1f})."
            text.append(line)
            print(line, flush=True)
        for kind in ("foreach, every 10", "native, every step"):
            method = f"ThermoAdamW {kind}"
            if method in times:
                ratio = np.quantile(times[f"{method}, autotune"] / times[method], (0.1, 0.5, 0.9))
                line = f"\nautotune on {kind}: x {ratio[1]:.3f} ({ratio[0]:.3f} to {ratio[2]:.3f})."
                text.append(line)
                print(line, flush=True)
        everything += [{**row, "elements": elements, "extra": memory.get(row["method"])} for row in rows]
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "overhead.md").write_text("\n".join(text) + "\n")
        (args.out / "overhead.json").write_text(json.dumps({"head": head, "rows": everything}, indent=1))
        print(f"== wrote {args.out}/overhead.md and {args.out}/overhead.json")


if __name__ == "__main__":
    main()
