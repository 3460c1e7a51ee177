"""Cost of a change: optimizer steps of two installed versions, as ratios within one run.

Each version runs in a process of its own Python. The two take turns, block by block, on the same shapes with
fixed gradients, in reverse order in every second round. Ratios of a block's processor time, which other load
on the machine disturbs less than wall time, are taken round by round; the table shows the
median and its 95 % interval by the order statistics of the median (exact for any distribution).

    python -m thermoopt.benchmarks.overhead.versions --before OLD/bin/python --after NEW/bin/python
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from scipy.stats import binom

__all__ = ["interval", "main"]

SETS = {"200 x 1 K": (200, 1024), "4 x 1 M": (4, 1 << 20)}
"""Number of layers and elements of each: one set that calls dominate, one that memory does."""

METHODS = (
    "measuring off",
    "every step",
    "every step, diffusion",
    "every step, autotune",
    "Observer on AdamW",
)
"""Methods; ``autotune`` is the law of the respective version, ``diffusion`` is the same in both."""

SECONDS = 0.15
"""Approximate length of a block: long against the clock's resolution, short against drift of the machine."""

WORKER = """
import json, sys, time, torch
torch.set_num_threads(1)
from thermoopt import Observer, ThermoAdamW, autotune
from thermoopt.controllers import Thermostat

def build(count, size, method):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(size)) for _ in range(count)]
    for p in params:
        p.grad = torch.randn(size)
    if method == "Observer on AdamW":
        optimizer = torch.optim.AdamW(params, lr=1e-5, fused=True)
        return optimizer, Observer(None, optimizer, 1)
    every = 1 << 40 if method == "measuring off" else 1
    controller = None
    if method.endswith("autotune"):
        controller = autotune(100_000)
    if method.endswith("diffusion"):
        controller = Thermostat("diffusion", total_steps=100_000)
    return ThermoAdamW(params, lr=1e-5, measure_every=every, controller=controller), None

made = {}
for line in sys.stdin:
    count, size, method, steps = json.loads(line)
    key = count, size, method
    if key not in made:
        made.clear()
        made[key] = build(*key)
    step = made[key][0].step
    start = time.process_time()
    for _ in range(steps):
        step()
    print(json.dumps((time.process_time() - start) / steps), flush=True)
"""


class Version:
    """A process with one version of the package."""

    def __init__(self, python: str) -> None:
        """Start it; it waits for what to run."""
        self._process = subprocess.Popen(
            [python, "-I", "-W", "ignore", "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def seconds(self, count: int, size: int, method: str, steps: int) -> float:
        """Take some steps; return the processor time of one in seconds."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps([count, size, method, steps]) + "\n")
        stdin.flush()
        return float(json.loads(stdout.readline()))

    def end(self) -> None:
        """End the process."""
        self._process.communicate()


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Interval that holds the median of a distribution with at least 95 % probability.

    The ends are the k-th smallest and the k-th largest value, k the largest with
    2 P(Binomial(n, 1/2) < k) <= 0.05 (David and Nagaraja, Order Statistics, 2003, section 7.1).

    Raises:
        ValueError: fewer than 6 values, which have no such interval.
    """
    n = len(values)
    if n < 6:
        raise ValueError(f"values must be at least 6, got {n}")
    row, k = sorted(values), int(binom.ppf(0.025, n, 0.5))
    return row[k - 1], row[-k]


def main(words: Sequence[str] | None = None) -> None:
    """Race the two versions, write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--before", required=True, help="Python that has the older version")
    parser.add_argument("--after", required=True, help="Python that has the newer version")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="(default: all)")
    parser.add_argument("--rounds", type=int, default=60, help="rounds of one block per version, at least 6")
    parser.add_argument("--out", type=Path, default=Path("runs/overhead"), help="folder for the results")
    args = parser.parse_args(words)
    if args.rounds < 6:
        parser.error(f"--rounds must be >= 6, got {args.rounds}")
    versions = {"before": Version(args.before), "after": Version(args.after)}
    load = os.getloadavg()[0]
    rows = []
    for name, (count, size) in SETS.items():
        for method in args.methods:
            first = {v: one.seconds(count, size, method, 20) for v, one in versions.items()}  # state, plans
            steps = max(5, round(SECONDS / first["before"]))
            took: dict[str, list[float]] = {"before": [], "after": []}
            for r in range(args.rounds):
                for v in ("before", "after") if r % 2 else ("after", "before"):
                    took[v].append(versions[v].seconds(count, size, method, steps))
            ratios = [b / a for a, b in zip(took["before"], took["after"], strict=True)]
            low, high = interval(ratios)
            row = {"set": name, "method": method, "steps": steps, "low": low, "high": high}
            row |= {"before_us": 1e6 * median(took["before"]), "after_us": 1e6 * median(took["after"])}
            rows.append(row | {"ratio": median(ratios), "rounds": args.rounds})
            print(f"{name:10} {method:22} {median(ratios):.3f} ({low:.3f} to {high:.3f})")
    for one in versions.values():
        one.end()
    lines = [
        f"Load average {load:.1f} to {os.getloadavg()[0]:.1f}; {args.rounds} rounds, one thread, CPU time.",
        "",
        "| layers | method | before, µs | after, µs | ratio | 95 % interval |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {r['set']} | {r['method']} | {r['before_us']:.0f} | {r['after_us']:.0f} | {r['ratio']:.3f} "
            f"| {r['low']:.3f} to {r['high']:.3f} |"
            for r in rows
        ),
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "versions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (args.out / "versions.md").write_text("\n".join(lines) + "\n")
    print(f"== results: {args.out}/versions.md, {args.out}/versions.jsonl")


if __name__ == "__main__":
    main()
