"""What measuring sharded layers costs: time and bytes added to a step here, and a model of 1,024 ranks.

A byte GPT is sharded by FSDP2 over processes of this machine (gloo). All methods step the same parameters,
with gradients of a real backward pass; each method has its own moments. In each round every method runs one
block, which all ranks start together and which takes as long as its slowest rank. Ratios are taken round by
round against the same optimizer without measuring; the tables show the median with the tenth and ninetieth
percentile.

    steps      10 optimizer steps back to back, which hide no communication; the block ends when all sums
               have arrived.
    training   forward, backward and step, as in a run: the sums travel during the next forward pass, and the
               block does not wait for the last ones.

Bytes are counted in the calls of ``torch.distributed.all_reduce`` during a step. The cost at 1,024 ranks is
computed from them (``benchmarks/distributed/cost.py``).

    python -m thermoopt.benchmarks.distributed --out runs/distributed   # about 10 minutes on 2 cores
    python -m thermoopt.benchmarks.distributed --models "5 M" --ranks 1 2 --rounds 5
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

from thermoopt import Observer, ThermoAdamW, autotune
from thermoopt.benchmarks.distributed.report import report
from thermoopt.demo import GPT, GPTConfig
from thermoopt.kernels import native

OFF = 1 << 40  # measure_every is larger than any run: measuring is off

MODELS = {
    "0.1 M": GPTConfig(depth=2, width=48, heads=4, context=64),
    "5 M": GPTConfig(depth=6, width=256, heads=4, context=64),
    "27 M": GPTConfig(depth=8, width=528, heads=8, context=64),
}

BASES = {
    "ThermoAdamW, every step": "ThermoAdamW, measuring off",
    "ThermoAdamW, every step, autotune": "ThermoAdamW, measuring off",
    "Observer on AdamW, every step": "torch AdamW",
    "Observer on AdamW, every 10": "torch AdamW",
}
"""What each measuring method is compared with."""

CONTROLLED_STEPS = 10_000  # length that autotune is told

LAYERS = (100, 300, 1000)
COLUMN_BYTES = 8

LEAST_ROUNDS = 3

WAIT = timedelta(minutes=5)
"""Seconds after which a rank gives up waiting for another."""


class Method:
    """An optimizer on the shared parameters, and how to wait for what it measures."""

    def __init__(self, optimizer: torch.optim.Optimizer, source: Any = None) -> None:
        self.step = optimizer.step
        self._source = source

    def settle(self) -> None:
        """Wait for sums under way."""
        if self._source is not None:
            _ = self._source.reading


def methods(model: torch.nn.Module) -> dict[str, Method]:
    """All methods, in the order in which they run."""

    def thermo(every: int, controller: Any = None) -> Method:
        backend = "native" if native.available() else "torch"
        options: dict[str, Any] = {"measure_every": every, "backend": backend, "controller": controller}
        optimizer = ThermoAdamW(model.named_parameters(), lr=1e-5, **options)
        return Method(optimizer, optimizer)

    def adamw() -> torch.optim.AdamW:
        return torch.optim.AdamW(model.named_parameters(), lr=1e-5, fused=True)

    def observed(every: int) -> Method:
        optimizer = adamw()
        return Method(optimizer, Observer(model, optimizer, every))

    return {
        "ThermoAdamW, measuring off": thermo(OFF),
        "ThermoAdamW, every step": thermo(1),
        "ThermoAdamW, every step, autotune": thermo(1, autotune(CONTROLLED_STEPS)),
        "torch AdamW": Method(adamw()),
        "Observer on AdamW, every step": observed(1),
        "Observer on AdamW, every 10": observed(10),
    }


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Count calls and bytes of all-reduces."""
    real, count = dist.all_reduce, {"calls": 0, "bytes": 0}

    def all_reduce(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        count["calls"] += 1
        count["bytes"] += tensor.numel() * tensor.element_size()
        return real(tensor, *args, **kwargs)

    dist.all_reduce = all_reduce
    try:
        yield count
    finally:
        dist.all_reduce = real


def traffic(method: Method, steps: int) -> dict[str, float]:
    """Mean number of all-reduces per step, and their bytes."""
    with counted() as count:
        for _ in range(steps):
            method.step()
        method.settle()
    return {name: n / steps for name, n in count.items()}


def slowest(seconds: Sequence[float]) -> list[float]:
    """Return the time of the slowest rank in each measurement."""
    times = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(times, op=dist.ReduceOp.MAX)
    return times.tolist()


def race(
    table: dict[str, Method],
    one: Callable[[Method], None],
    steps: int,
    rounds: int,
    seconds: float,
    *,
    settled: bool,
) -> dict[str, list[float]]:
    """Time every method, interleaved.

    Args:
        table: the methods.
        one: takes a step.
        steps: of a block.
        rounds: maximum number; none begins after ``seconds``.
        seconds: see ``rounds``.
        settled: include the wait for sums under way at the end of a block.

    Returns:
        Seconds per step, one number per round.
    """
    out: dict[str, list[float]] = {name: [] for name in table}
    begin = time.perf_counter()
    for r in range(rounds + 1):  # the first warms up
        if r > LEAST_ROUNDS and slowest([time.perf_counter() - begin])[0] > seconds:
            break
        for name, method in table.items():
            dist.barrier()
            start = time.perf_counter()
            for _ in range(steps):
                one(method)
            if settled:
                method.settle()
            if r:
                out[name].append((time.perf_counter() - start) / steps)
            method.settle()
    return {name: slowest(times) for name, times in out.items()}


def latencies(sizes: Sequence[int], rounds: int) -> list[float]:
    """Return the median seconds of an all-reduce of each of these numbers of bytes; sizes take turns."""
    times: list[list[float]] = [[] for _ in sizes]
    for r in range(rounds + 1):  # the first warms up
        for size, row in zip(sizes, times, strict=True):
            x = torch.zeros(size // COLUMN_BYTES, dtype=torch.float64)
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(x)
            if r:
                row.append(time.perf_counter() - start)
    return [float(np.median(slowest(row))) for row in times]


def measure_model(name: str, arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Shard one model over all ranks and race the methods on it."""
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    config = MODELS[name]
    model = GPT(config)
    elements, layers = sum(p.numel() for p in model.parameters()), len(list(model.parameters()))
    mesh = init_device_mesh("cpu", (world,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    draw = torch.Generator().manual_seed(1 + rank)
    x = torch.randint(256, (arguments["windows"], config.context + 1), generator=draw)

    def backward() -> None:
        model.zero_grad()
        F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten()).backward()

    def train(method: Method) -> None:
        backward()
        method.step()

    backward()
    table = methods(model)
    for each in table.values():  # state, plans
        each.step()
        each.settle()
    # the distance between autotune's readings: a message holds the sums of all steps since the last one
    sent = {method: traffic(each, 50) for method, each in table.items()}
    seconds = arguments["seconds"]
    timed = {
        "steps": race(table, lambda m: m.step(), 10, arguments["rounds"], seconds, settled=True),
        "training": race(table, train, arguments["block"], arguments["train_rounds"], seconds, settled=False),
    }
    for what, times in timed.items():
        for method, took in times.items():
            base = times.get(BASES[method]) if method in BASES else None
            yield {
                "kind": "time",
                "model": name,
                "elements": elements,
                "layers": layers,
                "ranks": world,
                "what": what,
                "method": method,
                "base": BASES.get(method),
                "ms": [1e3 * s for s in took],
                "ratios": None if base is None else [a / b for a, b in zip(took, base, strict=True)],
                **sent[method],
            }


def worker(rank: int, world: int, folder: str, arguments: dict[str, Any]) -> None:
    """One rank: rows go to a file, written by the first."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet{world}", rank=rank, world_size=world, timeout=WAIT
    )
    try:
        with open(f"{folder}/{world}.{rank}.jsonl", "w") as file:
            for name in arguments["models"]:
                for row in measure_model(name, arguments):
                    file.write(json.dumps(row) + "\n")
            if world > 1:
                sizes = [n * arguments["layer_bytes"] for n in (1, *LAYERS, 10_000)]
                row = {"kind": "latency", "ranks": world, "sizes": sizes}
                file.write(json.dumps({**row, "seconds": latencies(sizes, arguments["calls"])}) + "\n")
        dist.barrier()
    finally:
        _leave()


def layer_bytes() -> int:
    """Bytes that ranks reduce for one layer, counted in a step of a small sharded model.

    A single rank reduces nothing, so two are needed.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_count_bytes, (folder,), nprocs=2)
        return int(Path(folder, "bytes").read_text())


def _count_bytes(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=WAIT
    )
    try:
        sent = _sent_of_one_layer()
        if rank == 0:
            Path(folder, "bytes").write_text(str(int(sent["bytes"])))
        dist.barrier()
    finally:
        _leave()


def _sent_of_one_layer() -> dict[str, float]:
    model = torch.nn.Linear(4, 4, bias=False)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    model(torch.ones(1, 4)).sum().backward()
    optimizer = ThermoAdamW(model.named_parameters(), measure_every=1)
    return traffic(Method(optimizer, optimizer), 1)


def _leave() -> None:
    """Leave the process group once nothing sharded is left: otherwise torch 2.13 may abort or hang."""
    gc.collect()
    dist.destroy_process_group()


def machine() -> dict[str, Any]:
    """Describe the machine and its load."""
    return {
        "kind": "machine",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "simd": torch.backends.cpu.get_cpu_capability(),
        "native": native.available(),
        "load": os.getloadavg()[0],
    }


def arguments_of(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["5 M", "27 M"], help=f"some of {', '.join(MODELS)}")
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 4], help="numbers of ranks")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of blocks of 10 steps")
    parser.add_argument("--train-rounds", type=int, default=8, help="rounds of blocks of training steps")
    parser.add_argument("--block", type=int, default=2, help="training steps per block")
    parser.add_argument("--windows", type=int, default=1, help="windows of 64 bytes per rank and step")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="time of a race, after which no round begins (3 do)"
    )
    parser.add_argument("--calls", type=int, default=200, help="all-reduces timed per size")
    parser.add_argument("--out", type=Path, default=Path("runs/distributed"), help="folder for the results")
    args = parser.parse_args(words)
    if unknown := [name for name in args.models if name not in MODELS]:
        parser.error(f"--models must be among {list(MODELS)}, got {unknown}")
    if wrong := [n for n in args.ranks if n < 1]:
        parser.error(f"--ranks must be >= 1, got {wrong}")
    for name in ("rounds", "train_rounds", "block", "windows", "calls"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be >= 1, got {getattr(args, name)}")
    return args


def main(words: Sequence[str] | None = None) -> None:
    """Measure, compute, write and print."""
    args = arguments_of(words)
    asked = ("models", "rounds", "train_rounds", "block", "windows", "seconds", "calls")
    arguments = {name: getattr(args, name) for name in asked} | {"layer_bytes": layer_bytes()}
    rows: list[dict[str, Any]] = [{**machine(), **arguments, "ranks": args.ranks}]
    for world in args.ranks:
        print(f"== {world} rank(s), load average {os.getloadavg()[0]:.1f}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(worker, (world, folder, arguments), nprocs=world)
            found = Path(folder, f"{world}.0.jsonl").read_text().splitlines()
        rows += [json.loads(line) | {"load": os.getloadavg()[0]} for line in found]
    text = report(rows, LAYERS)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "distributed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (args.out / "distributed.md").write_text(text)
    print(text)
    print(f"== results: {args.out}/distributed.md, {args.out}/distributed.jsonl")
