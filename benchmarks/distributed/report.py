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
    kernel = "with" if head["native"] else "without"
    parts = [
        "# What measuring sharded layers costs",
        f"Measured on {head['date']} with torch {head['torch']} on {head['cores']} cores ({head['simd']}), "
        f"one thread per rank, {kernel} the native kernel, and gloo between processes of this machine. Load "
        f"average {min(loads):.1f} to {max(loads):.1f}, which includes this benchmark's own processes. With "
        f"more than {head['cores']} ranks, or at a load above the number of cores, ranks wait for cores, and "
        "times are those of a crowded machine. `make bench-distributed` makes this page.",
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
        f"## GPT {name}: {elements / 1e6:.2f} M elements in {layers} layers",
        f"All-reducing {most:,.0f} bytes moves {share:.1g} times as much as FSDP2 itself moves in a training "
        "step (two all-gathers and one reduce-scatter of float32).",
    ]
    titles = {
        "steps": "Optimizer steps back to back in blocks of 10, each of which ends when its sums have "
        "arrived.",
        "training": "Training steps, including forward and backward.",
    }
    for what, title in titles.items():
        chosen = [row for row in rows if row["what"] == what]
        lines = [
            "| ranks | method | ms per step | x without measuring | added ms | rounds | all-reduces | bytes "
            "|",
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
        parts += [f"{title} Medians over rounds, with the 10 to 90 % range in brackets.", "\n".join(lines)]
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
    far = ", ".join(
        f"{1e3 * ring_seconds(FAR, n * layer_bytes, links):.0f} ms for {n:,} layers" for n in layers
    )
    return [
        "## gloo on this machine",
        f"T = 2(N − 1)α + 2(N − 1)/N · B/β, fitted to {least['ranks']} ranks only: "
        f"α = {1e6 * links.net:.0f} µs, β = {links.bandwidth / 1e6:.0f} MB/s.",
        "\n".join(lines),
        f"With {FAR:,} ranks, each on a core of its own and no further apart than these, the ring would take "
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
        f"## The modelled cost on {FAR:,} ranks",
        "**The constants here are assumed, not measured.** They are for NCCL on nodes of 8 GPUs with NVLink, "
        "one 200 Gb/s InfiniBand port per GPU between nodes, and protocol LL.",
        f"- tree: T = α₀ + 2 (7 α_node + log₂(N/8) α_net) + 2 B/β; α₀ {1e6 * tree.start:.1f}, "
        f"α_node {1e6 * tree.node:.2f}, α_net {1e6 * tree.net:.1f} µs, β {tree.bandwidth / 1e9:.1f} GB/s\n"
        "- ring: T = α₀ + 2 (N − N/8) α_node + 2 (N/8 − 1) α_net + 2 (N − 1)/N · B/β; "
        f"{1e6 * ring.start:.1f}, {1e6 * ring.node:.2f}, {1e6 * ring.net:.1f} µs, "
        f"{ring.bandwidth / 1e9:.1f} GB/s",
        "NCCL itself uses these constants to choose between the two, and takes the faster one "
        "(`src/graph/tuning.cc`, commit 01afd20; they are in `benchmarks/distributed/cost.py`). The table "
        "shows microseconds for the one all-reduce that sends the sums of one step, or of ten steps, which "
        "is what a reading sends by default.",
        "\n".join(lines),
        f"A layer takes {layer_bytes} bytes per step, whatever its size. The model leaves out ranks that "
        "come late (the all-reduce ends when the last one has joined, but FSDP2's all-gathers make all ranks "
        "wait for that one anyway), and what NCCL's kernels take from others on the GPU. Only a controller "
        "waits for the sums, before the next step.",
    ]
