"""Cost of the controller: optimizer steps and training steps of one network, with and without it.

Four optimizers take turns in one process on copies of one transformer, step by step, in reverse order at
every second step: torch's fused AdamW, ThermoAdamW measuring only, and the same with autotune, with and
without a known length. Ratios of processor time, which other load disturbs less than wall time, are taken
round by round. The table has medians with their 95 % intervals by order statistics. Figures go to
``cost.json``, the table to ``cost.md``.

    python -m thermoopt.benchmarks.control.cost --out runs/control/cost
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thermoopt import ThermoAdamW, autotune
from thermoopt.benchmarks.overhead.versions import interval

__all__ = ["OPTIMIZERS", "Network", "main", "shares", "table"]

VOCABULARY, WIDTH, LAYERS, LENGTH, BATCH = 512, 256, 6, 64, 8
"""A transformer of 5.0 M parameters; a training step sees 512 tokens."""

LENGTHS = 10_000
"""Length that autotune is told, in steps: one reading every 50."""

OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "torch, fused": lambda net: torch.optim.AdamW(net.parameters(), 1e-4, fused=True),
    "measuring": lambda net: ThermoAdamW(net.named_parameters(), 1e-4),
    "autotune": lambda net: ThermoAdamW(net.named_parameters(), 1e-4, controller=autotune(LENGTHS)),
    "autotune, anytime": lambda net: ThermoAdamW(net.named_parameters(), 1e-4, controller=autotune()),
}

BASE = "measuring"
"""Baseline of the controller's cost: the same optimizer without it."""

STEPS = 50
"""Optimizer steps of a round: one interval between readings."""


class Network(nn.Module):
    """A causal transformer that predicts the next token."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(VOCABULARY, WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, 4, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.readout = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the loss of predicting each token from those before it."""
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
        seen = self.readout(self.body(self.table(tokens[:, :-1]), mask, is_causal=True))
        return F.cross_entropy(seen.flatten(0, 1), tokens[:, 1:].flatten())


def _took(act: Callable[[], object], times: int) -> float:
    start = time.process_time()
    for _ in range(times):
        act()
    return (time.process_time() - start) / times


def measure(rounds: int, steps: int = STEPS) -> dict[str, Any]:
    """Run all in turns; return processor seconds by round per optimizer step, and of forward and backward."""
    tokens = torch.randint(0, VOCABULARY, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(1))
    nets = {name: Network() for name in OPTIMIZERS}
    made = {name: make(nets[name]) for name, make in OPTIMIZERS.items()}

    def gradients(name: str) -> None:
        made[name].zero_grad()
        nets[name](tokens).backward()

    for name, optimizer in made.items():
        gradients(name)
        _took(optimizer.step, steps)  # state, plans, kernels
    names = list(made)
    taken: dict[str, list[float]] = {name: [] for name in names}
    passes: list[float] = []
    for _ in range(rounds):
        took = dict.fromkeys(names, 0.0)
        for s in range(steps):  # in blocks, what other processes do to memory in between would be theirs
            for name in names if s % 2 else names[::-1]:
                took[name] += _took(made[name].step, 1)
        for name in names:
            taken[name].append(took[name] / steps)
        passes.append(_took(lambda: gradients(BASE), 2))
    return {
        "parameters": sum(p.numel() for p in nets[BASE].parameters()),
        "tensors": sum(1 for _ in nets[BASE].parameters()),
        "load": round(os.getloadavg()[0], 1),
        "steps": taken,
        "passes": passes,
    }


def shares(found: Mapping[str, Any], name: str) -> dict[str, list[float]]:
    """Return, by round, what a controller adds over an optimizer step and over a training step without it."""
    rounds = zip(found["steps"][name], found["steps"][BASE], found["passes"], strict=True)
    both = [((a - b) / b, (a - b) / (b + c)) for a, b, c in rounds]
    return {"of an optimizer step": [x for x, _ in both], "of a training step": [x for _, x in both]}


def table(found: Mapping[str, Any]) -> str:
    """Return the table as Markdown."""
    lines = ["| optimizer | ms per step |", "| --- | ---: |"]
    lines += [f"| {name} | {1e3 * median(took):.2f} |" for name, took in found["steps"].items()]
    lines += [f"| forward and backward | {1e3 * median(found['passes']):.1f} |", ""]
    lines += [
        "| controller | adds to | median | 95 % interval | target |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    wanted = {"of an optimizer step": 0.03, "of a training step": 0.01}
    for name in found["steps"]:
        if name.startswith("autotune"):
            for of, values in shares(found, name).items():
                lo, hi = interval(values)
                what = of.removeprefix("of ")
                lines.append(
                    f"| {name} | {what} | {median(values):.1%} | {lo:.1%} to {hi:.1%} | {wanted[of]:.0%} |"
                )
    return (
        "# What the controller costs\n\n"
        f"The network is a transformer of {found['parameters'] / 1e6:.1f} M parameters in {found['tensors']} "
        f"tensors, on batches of {BATCH} x {LENGTH} tokens. Times are processor time of one thread over "
        f"{len(found['passes'])} rounds of {STEPS} steps (torch {torch.__version__}, load average "
        f"{found['load']:g}). The second table shows what the controller adds to the same optimizer that "
        "measures without it.\n\n" + "\n".join(lines) + "\n"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/control/cost"), help="folder for the results")
    parser.add_argument("--rounds", type=int, default=21, help="at least 6 (default: 21)")
    args = parser.parse_args(argv)
    if args.rounds < 6:
        parser.error(f"--rounds must be >= 6, got {args.rounds}")
    torch.set_num_threads(1)
    found = measure(args.rounds)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "cost.json").write_text(json.dumps(found) + "\n")
    (args.out / "cost.md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
