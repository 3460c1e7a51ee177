"""A small byte-level GPT."""

from __future__ import annotations

from thermoopt.benchmarks.workloads.task import Workload
from thermoopt.benchmarks.workloads.text import ABOUT, byte_task, corpus
from thermoopt.demo import GPT, GPTConfig

__all__ = ["GPT_TEXT"]

GPT_TEXT = Workload(
    "gpt",
    f"{ABOUT}; GPT with 2 blocks, width 64, context 64",
    (400, 1600),
    lambda seed, batch=1.0: byte_task(
        lambda: GPT(GPTConfig(depth=2, width=64, heads=4, context=64)), 8, 64, seed, batch
    ),
    lambda: corpus().sha256,
    family="language transformers",
    metric="nats per byte",
)
