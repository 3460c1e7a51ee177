"""Tables of the distributed benchmark, from its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from thermoopt.benchmarks.distributed.cost import NCCL, fit_ring, ring_seconds, tree_seconds

__all__ = ["report"]

FAR = 1024
NEAR = 64
"""Ranks of the model's table: of FSDP, and of a shard group of HSDP."""

READING = 10
"""Measured steps whose sums a reading sends, at the default ``ema_steps``."""

Rows = Sequence[dict[str, Any]]


def report(rows: Rows, layers: Sequence[int]) -> str:
    """Return all measurements and what follows from them, as Markdown.

    Args:
        rows: of one run, as ``distributed.jsonl`` holds them.
        layers: numbers of layers for the tables of the model.
    """
    (head,) = (row for row in rows if row["kind"] == "machine")
    loads = [row["load"] for row in rows]
    kernel = "used" if head["native"] else "not available"
    parts = [
        "# What measuring sharded layers costs",
        f"{head['date']}: torch {head['torch']}, {head['cores']} cores ({head['simd']}), one thread a rank; "
        f"native kernel {kernel}; gloo between processes of this machine. Load average {min(loads):.1f} to "
        f"{max(loads):.1f}, this benchmark's own processes among it. Where there are more than "
        f"{head['cores']} ranks, or the load is above their number, ranks wait for cores, and times are "
        "those of a crowded machine.",
    ]
    times = [row for row in rows if row["kind"] == "time"]
    for model in dict.fromkeys(row["model"] for row in times):
        parts += _model(model, [row for row in times if row["model"] == model])
    latencies = [row for row in rows if row["kind"] == "latency"]
    if latencies:
        parts += _gloo(latencies, layers, head["layer_bytes"])
    parts += _nccl(layers, head["layer_bytes"])
    return "\n\n".join(parts) + "\n"


def _spread(values: Sequence[float], digits: int) -> str:
    low, mid, high = np.quantile(values, (0.1, 0.5, 0.9))
    return f"{mid:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _model(name: str, rows: Rows) -> list[str]:
    elements, layers = rows[0]["elements"], rows[0]["layers"]
    most = max(row["bytes"] for row in rows)
    share = 2 * most / (3 * 4 * elements)
    parts = [
        f"## GPT of {name}: {elements / 1e6:.2f} M elements in {layers} layers",
        f"All-reducing {most:,.0f} bytes moves {share:.1g} times what FSDP2 itself moves in a training step "
        "(two all-gathers and one reduce-scatter of float32).",
    ]
    titles = {
        "steps": "Optimizer steps back to back, sums waited for at the end of 10:",
        "training": "Training steps, forward and backward among them:",
    }
    for what, title in titles.items():
        chosen = [row for row in rows if row["what"] == what]
        lines = [
            "| ranks | method | ms a step | x without measuring | added ms | rounds | all-reduces | bytes |",
            "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for row in chosen:
            compared = row["ratios"] is not None
            added = [ms - ms / ratio for ms, ratio in zip(row["ms"], row["ratios"] or (), strict=False)]
            lines.append(
                f"| {row['ranks']} | {row['method']} | {np.median(row['ms']):.3g} "
                f"| {_spread(row['ratios'], 2) if compared else '1'} "
                f"| {_spread(added, 2) if compared else ''} "
                f"| {len(row['ms'])} | {row['calls']:g} | {row['bytes']:,.0f} |"
            )
        parts += [f"{title} medians of rounds (10 to 90 %).", "\n".join(lines)]
    return parts


def _gloo(rows: Rows, layers: Sequence[int], layer_bytes: int) -> list[str]:
    """Latency and bandwidth of gloo here, how well they predict other numbers of ranks, and 1,024 ranks."""
    least = min(rows, key=lambda row: row["ranks"])
    links = fit_ring(least["ranks"], least["sizes"], least["seconds"])
    lines = [
        "| ranks | bytes | measured, µs | model, µs |",
        "| ---: | ---: | ---: | ---: |",
        *(
            f"| {row['ranks']} | {size:,} | {1e6 * seconds:.0f} "
            f"| {1e6 * ring_seconds(row['ranks'], size, links):.0f} |"
            for row in rows
            for size, seconds in zip(row["sizes"], row["seconds"], strict=True)
        ),
    ]
    far = ", ".join(f"{n:,} layers {1e3 * ring_seconds(FAR, n * layer_bytes, links):.0f} ms" for n in layers)
    return [
        "## gloo on this machine",
        f"T = 2(N − 1)α + 2(N − 1)/N · B/β, fitted to {least['ranks']} ranks alone: "
        f"α = {1e6 * links.net:.0f} µs, β = {links.bandwidth / 1e6:.0f} MB/s.",
        "\n".join(lines),
        f"Of {FAR:,} ranks, each on a core of its own and no further away than these, the ring would take: "
        f"{far}.",
    ]


def _nccl(layers: Sequence[int], layer_bytes: int) -> list[str]:
    lines = [
        "| layers, steps | bytes | " + " | ".join(f"{n:,} ranks, tree | ring" for n in (NEAR, FAR)) + " |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for n, steps in ((n, steps) for n in layers for steps in (1, READING)):
        size = n * layer_bytes * steps
        cells = [
            f"{1e6 * tree_seconds(ranks, size, NCCL['tree']):.0f} "
            f"| {1e6 * ring_seconds(ranks, size, NCCL['ring']):.0f}"
            for ranks in (NEAR, FAR)
        ]
        lines.append(f"| {n:,}, {steps} | {size:,} | " + " | ".join(cells) + " |")
    tree, ring = NCCL["tree"], NCCL["ring"]
    return [
        f"## A model of {FAR:,} ranks",
        "**Assumed constants, not measurements**: NCCL on nodes of 8 GPUs with NVLink, one 200 Gb/s "
        "InfiniBand port a GPU between them, protocol LL.",
        f"- tree: T = α₀ + 2 (7 α_node + log₂(N/8) α_net) + 2 B/β; α₀ {1e6 * tree.start:.1f}, "
        f"α_node {1e6 * tree.node:.2f}, α_net {1e6 * tree.net:.1f} µs, β {tree.bandwidth / 1e9:.1f} GB/s\n"
        "- ring: T = α₀ + 2 (N − N/8) α_node + 2 (N/8 − 1) α_net + 2 (N − 1)/N · B/β; "
        f"{1e6 * ring.start:.1f}, {1e6 * ring.node:.2f}, {1e6 * ring.net:.1f} µs, "
        f"{ring.bandwidth / 1e9:.1f} GB/s",
        "They are the constants by which NCCL itself chooses between the two (`src/graph/tuning.cc`, commit "
        "01afd20; `benchmarks/distributed/cost.py` has them). It takes the quicker one. Microseconds of the "
        "one all-reduce of the sums of a step, and of ten steps, which is what a reading sends by default:",
        "\n".join(lines),
        f"A layer is {layer_bytes} bytes a step whatever its size. Left out: ranks that come late (the "
        "all-reduce ends when the last has joined; FSDP2's all-gathers make all wait for that one anyway), "
        "and what the kernels of NCCL take from others on the GPU. Only a controller waits for the sums, "
        "before the next step.",
    ]
