"""Cost of reducing the sums over more ranks than there are here: latency and bandwidth of an all-reduce.

Time of an all-reduce of B bytes over N ranks, with latency α per message and bandwidth β, by the usual model
(Thakur, Rabenseifner, Gropp, "Optimization of collective communication operations in MPICH", 2005):

    ring    T = α₀ + 2(N − 1) α + 2 (N − 1)/N · B/β
    tree    T = α₀ + 2 Σ α + 2 B/β     up to a root and down again, over the depth of the tree

A ring goes round twice and passes on N-ths of the message; a tree passes on the whole message in pipelined
pieces, so that bandwidth counts twice and not once per level. On machines of M ranks in one
node a tree is a chain within each node and a binary tree over the nodes,

    Σ α = (M − 1) α_node + log₂(N/M) α_net,

and of a ring's 2(N − 1) messages 2(N/M − 1) go from node to node.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["NCCL", "Links", "fit_ring", "ring_seconds", "tree_seconds"]


@dataclass(frozen=True)
class Links:
    """What messages cost.

    Attributes:
        start: α₀, seconds before the first message.
        node, net: α within a node and between nodes, seconds per message.
        bandwidth: β, bytes per second.
        per_node: ranks in a node; 1 puts every message on the net.
    """

    start: float
    node: float
    net: float
    bandwidth: float
    per_node: int = 1


INFINIBAND = 25e9
"""Bytes per second: one 200 Gb/s port per GPU (HDR)."""

NCCL = {
    "ring": Links(3.6e-6, 1.8 * 0.47e-6, 2.7e-6, INFINIBAND / 4, 8),
    "tree": Links(4.4e-6, 1.8 * 0.52e-6, 5.0e-6, 0.9 * INFINIBAND / 3.8, 8),
}
"""ASSUMED, not measured in this project: NVLink within nodes of 8, InfiniBand between them, protocol LL,
which NCCL takes for small messages. Latencies and the shares of the bandwidth that LL reaches are the
constants by which NCCL itself chooses an algorithm (github.com/NVIDIA/nccl, src/graph/tuning.cc, commit
01afd20: ``baseLat``, ``hwLat``, latency within a node x 1.8 where there are several). For one node alone
they are too slow."""


def nodes_of(ranks: int, per_node: int) -> tuple[int, int]:
    """Ranks in a node and number of nodes.

    Raises:
        ValueError: if the nodes would not be full.
    """
    inside = min(ranks, per_node)
    if ranks < 1 or ranks % inside:
        raise ValueError(f"ranks must be a multiple of {per_node} or a number below it, got {ranks}")
    return inside, ranks // inside


def ring_seconds(ranks: int, size: float, links: Links) -> float:
    """Time of an all-reduce of ``size`` bytes round a ring."""
    if ranks == 1:
        return 0.0
    _, nodes = nodes_of(ranks, links.per_node)
    between = 2 * (nodes - 1)
    within = 2 * (ranks - 1) - between
    moved = 2 * (ranks - 1) / ranks * size
    return links.start + within * links.node + between * links.net + moved / links.bandwidth


def tree_seconds(ranks: int, size: float, links: Links) -> float:
    """Time of an all-reduce of ``size`` bytes up and down a tree."""
    if ranks == 1:
        return 0.0
    inside, nodes = nodes_of(ranks, links.per_node)
    depth = (inside - 1) * links.node + math.ceil(math.log2(nodes)) * links.net
    return links.start + 2 * depth + 2 * size / links.bandwidth


def fit_ring(ranks: int, sizes: Sequence[float], seconds: Sequence[float]) -> Links:
    """Fit latency and bandwidth to times of all-reduces around a ring.

    A straight line through them, by least squares of relative errors, so that small messages count as much
    as large ones. With a single number of ranks α₀ cannot be separated from α, and counts as part of it.

    Args:
        ranks: how many took part, 2 or more.
        sizes: bytes.
        seconds: of each.

    Raises:
        ValueError: if ranks is below 2, or the times do not grow with the size.
    """
    if ranks < 2:
        raise ValueError(f"ranks must be >= 2, got {ranks}")
    x, y = np.asarray(sizes, dtype=np.float64), np.asarray(seconds, dtype=np.float64)
    table = np.stack([np.ones_like(x), x], axis=1) / y[:, None]
    (at_zero, per_byte), *_ = np.linalg.lstsq(table, np.ones_like(y), rcond=None)
    if not (at_zero > 0 and per_byte > 0):
        raise ValueError(f"times {y.tolist()} of sizes {x.tolist()} make no latency and bandwidth")
    alpha = float(at_zero) / (2 * (ranks - 1))
    return Links(0.0, alpha, alpha, 2 * (ranks - 1) / ranks / float(per_byte))
