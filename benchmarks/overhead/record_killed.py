"""What a kill leaves of a record: a run is killed at random moments and resumes from its last checkpoint."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import torch

from thermoopt import JSONLSink, ThermoAdamW
from thermoopt.record import SavedRun

__all__ = ["killed"]

CHECKPOINT = 50
"""Steps between checkpoints."""


def train(place: Path, log: Path) -> None:
    """Train endlessly from the last checkpoint and print each step; the sink is the one that users have."""
    out = log.open("w", buffering=1)
    rng = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(32, 8, generator=rng)) for _ in range(24)]
    for p in params:
        p.grad = 0.01 * torch.randn(p.shape, generator=rng)
    sink = JSONLSink(place / "run.jsonl.gz", max_rows=16)
    optimizer = ThermoAdamW(params, lr=1e-4, measure_every=1, ema_steps=1, sinks=[sink])
    step = 0
    if (place / "checkpoint.pt").exists():
        state = torch.load(place / "checkpoint.pt", weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    print("begun", step, file=out)
    while True:
        step += 1
        optimizer.step()
        print(step, file=out)
        if step % CHECKPOINT == 0:
            torch.save({"optimizer": optimizer.state_dict(), "step": step}, place / "new.pt")
            os.replace(place / "new.pt", place / "checkpoint.pt")
            print("saved", step, file=out)
        if step % 64 == 0:
            time.sleep(0.01)


def _started(place: Path, log: Path) -> int:
    """Train in a forked process, which need not load torch again."""
    process = os.fork()
    if process == 0:
        try:
            train(place, log)
        finally:
            os._exit(1)
    return process


def killed(place: Path, times: int) -> list[str]:
    """Kill a run at random moments, resume it from its checkpoint, and check the file each time."""
    folder = place / "killed"
    folder.mkdir()
    path, log = folder / "run.jsonl.gz", folder / "steps.txt"
    rng = random.Random(0)
    lost, saves, reached, wrong = [], 0, 0, []
    for i in range(times):
        log.write_text("")
        process = _started(folder, log)
        while not log.read_text() and os.waitpid(process, os.WNOHANG) == (0, 0):
            time.sleep(0.02)
        time.sleep(rng.uniform(0.0, 1.0))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        lines = log.read_text().split("\n")[:-1]
        begun = int(lines[0].split()[1])
        saved = max((int(line.split()[1]) for line in lines if line.startswith("saved")), default=0)
        done = max((int(line) for line in lines if line.isdigit()), default=begun)
        reached, saves = max(reached, done), saves + (saved > 0)
        try:
            got = SavedRun.read(path).history.steps
        except ValueError:  # no reading yet
            got = np.zeros(0, np.int64)
        newest = int(got[-1]) if len(got) else 0
        if not np.array_equal(got, np.arange(1, len(got) + 1)):
            wrong.append(f"kill {i}: {got[:3]} to {got[-3:]} is not a prefix without gaps")
        if newest < max(begun, saved):
            wrong.append(f"kill {i}: {newest} on file, checkpoint of {max(begun, saved)}")
        lost.append(max(0, done - newest))
    return [
        f"- {times} kills, {saves} of them after a checkpoint of that process; step {reached} reached",
        f"- readings lost at a kill: median {np.median(lost):.0f}, at most {max(lost)} (allowed: 64)",
        f"- no prefix, a step twice, or less than the last checkpoint: {len(wrong)}",
        *(f"  - {what}" for what in wrong),
    ]
