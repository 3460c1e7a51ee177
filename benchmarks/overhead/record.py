"""What a record costs: time in the training loop, bytes, reading it, and what is left of it after a kill.

The old build is measured in the same run, by an interpreter that has it installed. Loops alternate between
the builds, and within each between no sink and one. Wall time is that of the whole loop with
the last flush in it; CPU time counts all threads of the process, and is what wall time would be on one core.

    python benchmarks/overhead/record.py --old ../old/.venv/bin/python --out benchmarks/results/overhead
    python benchmarks/overhead/record.py --parts cost kill          # part of it, new build alone
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

PARTS = ("cost", "layers", "bytes", "inspect", "kill")

OLD_READINGS = 200
"""Readings of the old build that are written out; its lines are all alike, and longer runs are multiples."""

COST_READINGS, COST_LOOPS, COST_SINKS = 32, 7, 4
"""Of a loop, loops of a sink, and sinks: each reading has a row of layers, the dearest stretch, as rows are
thinned from 256 on."""

PER_READING = 10
"""Steps from one reading to the next by default. Here each step gives one: what it costs stands out so."""

Result = dict[str, Any]


def shapes_of(n_tensors: int) -> list[tuple[int, ...]]:
    """Tensors in the proportions of a GPT-2, small enough that a step is nearly all overhead."""
    block = [(32,)] * 4 + [(96, 32), (96,), (32, 32), (32,), (128, 32), (128,), (32, 128), (32,)]
    shapes = [(256, 32), (64, 32), *block * (n_tensors // len(block) + 1)]
    return [*shapes[: n_tensors - 2], (32,), (32,)]


def make_optimizer(n_tensors: int, sinks: Sequence[Any], ema_steps: int = 50) -> Any:
    """A ThermoAdamW with matrices and vectors in two groups, measuring every step."""
    import torch

    from thermoopt import ThermoAdamW
    from thermoopt.kernels import native

    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(0.02 * torch.randn(s, generator=rng)) for s in shapes_of(n_tensors)]
    for p in params:
        p.grad = 0.01 * torch.randn(p.shape, generator=rng)
    named = [(f"blocks.{i // 12}.part{i % 12}.weight", p) for i, p in enumerate(params)]
    groups: list[dict[str, Any]] = [
        {"params": [x for x in named if x[1].ndim > 1], "name": "matrices"},
        {"params": [x for x in named if x[1].ndim == 1], "name": "vectors", "weight_decay": 0.0},
    ]
    backend = "native" if native.available() else "auto"
    return ThermoAdamW(
        groups,
        lr=1e-4,
        measure_every=1,
        ema_steps=ema_steps,
        backend=backend,
        sinks=list(sinks),
    )


def sink_named(name: str, folder: str) -> Any:
    """Make the sink that a row is about."""
    import thermoopt
    from thermoopt import sinks

    kinds = {
        "jsonl.gz": lambda: thermoopt.JSONLSink(f"{folder}/run.jsonl.gz"),
        "jsonl": lambda: thermoopt.JSONLSink(f"{folder}/run.jsonl"),
        "parquet": lambda: sinks.ParquetSink(f"{folder}/run.parquet"),
        "csv": lambda: thermoopt.CSVSink(f"{folder}/run.csv"),
    }
    return kinds[name]()


def child_cost(sink: str, n_tensors: int, sinks: int = COST_SINKS, loops: int = COST_LOOPS) -> Result:
    """Milliseconds a step without a sink, and what one adds: wall, CPU of all threads, of the training one.

    Loops with and without alternate; each pair is one difference, and their median is what counts: on a
    machine that others use, neither the least nor the mean of times is of the same moment for both. A loop
    ends with a flush.
    """
    clocks = {"wall": time.perf_counter, "cpu": time.process_time, "training": time.thread_time}
    out: dict[str, list[float]] = {"none": [], **{name: [] for name in clocks}}
    for _ in range(sinks):
        with tempfile.TemporaryDirectory() as folder:
            plain = make_optimizer(n_tensors, (), ema_steps=5)
            fed = make_optimizer(n_tensors, [sink_named(sink, folder)], ema_steps=5)
            for optimizer in (plain, fed):
                for _ in range(10):
                    optimizer.step()
                optimizer.sinks.flush()
            for _ in range(loops):
                taken = []
                for optimizer in (plain, fed):
                    before = [clock() for clock in clocks.values()]
                    for _ in range(COST_READINGS):
                        optimizer.step()
                    optimizer.sinks.flush()
                    after = [clock() for clock in clocks.values()]
                    taken.append([1e3 * (b - a) / COST_READINGS for a, b in zip(before, after, strict=True)])
                out["none"].append(taken[0][1])
                for name, without, with_sink in zip(clocks, *taken, strict=True):
                    out[name].append((with_sink - without) / PER_READING)
    return {name: float(np.median(values)) for name, values in out.items()}


def readings_like(n_layers: int, n: int, every: int) -> Any:
    """Readings of a run as long as wanted: those of a short one, with the scatter of averages, drifting."""
    from dataclasses import replace

    optimizer = make_optimizer(n_layers, ())
    import torch

    for _ in range(60):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = 0.01 * torch.randn(p.shape)
        optimizer.step()
    first = optimizer.reading
    rng = np.random.default_rng(0)
    slow = [np.exp(0.3 * rng.standard_normal(first.terms.shape)) for _ in range(61)]
    fast = [first.terms * np.exp(0.1 * rng.standard_normal(first.terms.shape)) for _ in range(64)]
    for i in range(n):  # 3,904 readings until one comes again
        terms = slow[i % 61] * fast[i % 64]
        yield replace(first, step=1 + i * every, terms=terms, loss=float(3 + rng.standard_normal()))


def child_write(sink: str, n_layers: int, n: int, folder: str) -> Result:
    """Write ``n`` readings; return the seconds for all of it, including making them."""
    made = sink_named(sink, folder)
    began = time.perf_counter()
    for reading in readings_like(n_layers, n, 10):
        made.write(reading)
    if hasattr(made, "close"):
        made.close()
    return {"seconds": time.perf_counter() - began}


def child_where(n_tensors: int) -> Result:
    """Return microseconds per reading of each stage of a record, with and without a row of layers."""
    from thermoopt.record import pack_terms, reading_lines
    from thermoopt.sinks import JSONLSink

    readings = list(readings_like(n_tensors, 64, 10))
    groups = [r.group_terms for r in readings]
    steps, losses, skipped = [r.step for r in readings], [r.loss for r in readings], [[0] * 4] * 64
    text = reading_lines(steps, losses, skipped, groups)
    packed = pack_terms(readings[0].terms)
    with tempfile.TemporaryDirectory() as folder:
        sink = JSONLSink(f"{folder}/run.jsonl.gz")
        out = {
            "training thread: decide and hand over": _each(lambda: _write(sink, readings[:32]), 32),
            "form and format a block of 64": _each(lambda: reading_lines(steps, losses, skipped, groups), 64),
            "compress a block of 64 (no lock held)": _each(lambda: zlib.compress(text.encode(), 6), 64),
            "row of layers: pack": _each(lambda: pack_terms(readings[0].terms), 1),
            "row of layers: compress (no lock held)": _each(lambda: zlib.compress(packed.encode(), 6), 1),
        }
        sink.close()
    return out


def _write(sink: Any, readings: Sequence[Any]) -> None:
    for reading in readings:
        sink.write(reading)


def _each(work: Callable[[], Any], count: int) -> float:
    """Microseconds of one of ``count``, the least of some runs."""
    times = []
    for _ in range(7):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return 1e6 * min(times) / count


CHILDREN: dict[str, Callable[..., Result]] = {
    "cost": child_cost,
    "write": child_write,
    "where": child_where,
}


def ask(python: str, child: str, *arguments: Any) -> Result:
    """Run one of the functions above in a process of a build, and take its result."""
    command = [python, __file__, "--child", child, json.dumps(arguments)]
    # the safe path: cuda.py, which lies beside this file, is not torch's cuda
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{child} {arguments} of {python}: {done.stderr[-2000:]}")
    result: Result = json.loads(done.stdout.splitlines()[-1])
    return result


def cost(old: str | None, rounds: int) -> list[str]:
    """Time that a sink adds to a step at 148 tensors."""
    table: dict[tuple[str, str], list[Result]] = {}
    builds = [("today", old, ["jsonl"])] if old else []
    builds.append(("new", sys.executable, ["jsonl.gz", "jsonl", "parquet", "csv"]))
    for _ in range(rounds):
        for build, python, sinks in builds:
            for sink in sinks:
                table.setdefault((build, sink), []).append(ask(python, "cost", sink, 148))
    lines = [
        "| build, sink | step without a sink, CPU ms | added: wall, ms | CPU, ms | training thread, ms "
        "| relative to today: wall | CPU | training thread |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    base: dict[str, float] = {}
    for (build, sink), runs in table.items():
        none, *added = (float(np.median([r[of] for r in runs])) for of in ("none", *_CLOCKS))
        base = dict(zip(_CLOCKS, added, strict=True)) if build == "today" else base
        shares = [
            f"{mine / base[of]:.3f}" if base and build != "today" else ""
            for of, mine in zip(_CLOCKS, added, strict=True)
        ]
        cells = [f"{none:.3f}", *(f"{x:+.4f}" for x in added), *shares]
        lines.append(f"| {build}, {sink} | {' | '.join(cells)} |")
    return lines


_CLOCKS = ("wall", "cpu", "training")


def layers(old: str | None, rounds: int) -> list[str]:
    """Cost by the number of layers, and where it goes."""
    lines = [
        "| layers | build | step without a sink, CPU ms | added: wall, ms | CPU, ms | training thread, ms "
        "| CPU, us per layer and reading |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for n, sinks, loops in ((148, 2, 7), (1000, 1, 5), (3000, 1, 3)):
        for build, python, sink in (("today", old, "jsonl"), ("new", sys.executable, "jsonl.gz")):
            if python:
                runs = [ask(python, "cost", sink, n, sinks, loops) for _ in range(rounds)]
                none, wall, cpu, training = (np.median([r[of] for r in runs]) for of in ("none", *_CLOCKS))
                cells = f"{none:.3f} | {wall:+.4f} | {cpu:+.4f} | {training:+.4f}"
                lines.append(f"| {n} | {build} | {cells} | {1e3 * cpu * PER_READING / n:.2f} |")
    lines += ["", "Microseconds a reading:", ""]
    found = {n: ask(sys.executable, "where", n) for n in (148, 1000, 3000)}
    lines += [f"| stage | {' | '.join(f'{n} layers' for n in found)} |", "| --- | ---: | ---: | ---: |"]
    for stage in found[148]:
        lines.append(f"| {stage} | {' | '.join(f'{found[n][stage]:.0f}' for n in found)} |")
    return lines


def folder_bytes(folder: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


RUNS = {"100,000 steps, 148 layers": (148, 10_000), "1,000,000 steps, 300 layers": (300, 100_000)}
"""Layers, and readings: one in ten steps is recorded at the default average."""


def write_runs(old: str | None, place: Path) -> list[str]:
    """Write the runs that are then inspected; bytes of each."""
    lines = ["| run | today, MB | jsonl.gz, MB | of today's | jsonl, MB | parquet, MB |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, (n_layers, n) in RUNS.items():
        sizes = {}
        for sink in ("jsonl.gz", "jsonl", "parquet"):
            folder = place / f"{n}_{sink}"
            folder.mkdir()
            ask(sys.executable, "write", sink, n_layers, n, str(folder))
            sizes[sink] = folder_bytes(folder) / 1e6
        today, share = "", ""
        if old:
            folder = place / f"{n}_today"
            folder.mkdir()
            ask(old, "write", "jsonl", n_layers, OLD_READINGS, str(folder))
            whole = folder_bytes(folder) / 1e6 * n / OLD_READINGS
            today, share = f"{whole:,.0f}", f"1/{whole / sizes['jsonl.gz']:.0f}"
        lines.append(
            f"| {name} | {today} | {sizes['jsonl.gz']:.1f} | {share} | {sizes['jsonl']:.1f} "
            f"| {sizes['parquet']:.1f} |"
        )
    return lines


def inspected(python: str, path: Path) -> tuple[float, float]:
    """Seconds and peak megabytes of ``thermoopt inspect`` on a file."""
    command = [python, "-m", "thermoopt", "inspect", str(path), "--html", str(path.parent / "page.html")]
    before = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - before
    if status:
        raise RuntimeError(f"inspect {path}: status {status}")
    return seconds, used.ru_maxrss / 1e3


def inspect(old: str | None, place: Path) -> list[str]:
    """Time and memory of inspect on the runs written."""
    lines = ["| run | build | seconds | peak MB | page, MB |", "| --- | --- | ---: | ---: | ---: |"]
    for name, (n_layers, n) in RUNS.items():
        if old:
            points = []
            for readings in (OLD_READINGS, 4 * OLD_READINGS):
                folder = place / f"{n}_old_{readings}"
                folder.mkdir()
                ask(old, "write", "jsonl", n_layers, readings, str(folder))
                points.append((readings, *inspected(old, folder / "run.jsonl")))
            (a, ta, _), (b, tb, memory) = points
            each = (tb - ta) / (b - a)
            lines.append(
                f"| {name} | today (line through {a} and {b} readings) | {ta + each * (n - a):.0f} "
                f"| {memory:.0f} at {b} readings | |"
            )
        for sink in ("jsonl.gz", "jsonl", "parquet"):
            folder = place / f"{n}_{sink}"
            seconds, memory = inspected(sys.executable, folder / f"run.{sink}")
            page = (folder / "page.html").stat().st_size / 1e6
            lines.append(f"| {name} | new, {sink} | {seconds:.1f} | {memory:.0f} | {page:.2f} |")
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--old", help="interpreter that has the build to compare with installed")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="(default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: 5)")
    parser.add_argument("--kills", type=int, default=50, help="(default: 50)")
    parser.add_argument("--out", type=Path, help="folder for record.md")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(CHILDREN[args.child[0]](*json.loads(args.child[1]))))
        return
    text = [
        "# What a record costs",
        "",
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; load "
        f"{os.getloadavg()[0]:.0f} at its start. Made by `benchmarks/overhead/record.py`.",
    ]

    def section(title: str, lines: list[str]) -> None:
        text.extend(["", f"## {title}", "", *lines])
        print("\n".join(["", f"## {title}", "", *lines]), flush=True)
        if args.out is not None:
            args.out.mkdir(parents=True, exist_ok=True)
            (args.out / "record.md").write_text("\n".join(text) + "\n")

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if "cost" in args.parts:
            section("A step at 148 tensors, measured every step", cost(args.old, args.rounds))
        if "layers" in args.parts:
            section("By the number of layers", layers(args.old, max(1, args.rounds // 2)))
        if {"bytes", "inspect"} & set(args.parts):
            section("Bytes", write_runs(args.old, place))
        if "inspect" in args.parts:
            section("thermoopt inspect, with its page", inspect(args.old, place))
        if "kill" in args.parts:
            from thermoopt.benchmarks.overhead.record_killed import killed

            section("Killed and resumed", killed(place, args.kills))


if __name__ == "__main__":
    main()
