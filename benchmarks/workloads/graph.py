"""A graph convolution network on a generated block model, in which neighbours say most about a node."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thermoopt.benchmarks.workloads.task import Task, Workload, data_hash, seeded_task

__all__ = ["GCN", "GRAPH", "block_model", "normalised"]

NODES, BLOCKS, FEATURES = 800, 5, 32
WITHIN, BETWEEN = 0.04, 0.01  # probability of an edge
SIGNAL = 0.3  # standard deviation of the blocks' means; 1 is the noise around them
LABELLED = 200
BATCH = 64


def block_model(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a stochastic block model with Gaussian features.

    Returns:
        Adjacency ``[NODES, NODES]``, symmetric, 0 or 1, no loops; features ``[NODES, FEATURES]``; the
        block of each node.
    """
    blocks = rng.integers(BLOCKS, size=NODES)
    chance = np.where(blocks[:, None] == blocks, WITHIN, BETWEEN)
    upper = np.triu(rng.uniform(size=(NODES, NODES)) < chance, 1)
    means = SIGNAL * rng.normal(size=(BLOCKS, FEATURES))
    return (upper | upper.T).astype(float), means[blocks] + rng.normal(size=(NODES, FEATURES)), blocks


def normalised(adjacency: np.ndarray) -> np.ndarray:
    """Return D^-1/2 (A + I) D^-1/2, D the row sums of A + I (arXiv 1609.02907, equation 2)."""
    looped = adjacency + np.eye(len(adjacency))
    root = 1 / np.sqrt(looped.sum(axis=1))
    return root[:, None] * looped * root


@cache
def _data() -> tuple[Tensor, Tensor, Tensor]:
    adjacency, features, blocks = block_model(np.random.default_rng(0))
    parts = torch.tensor(normalised(adjacency)), torch.tensor(features)
    return parts[0].float(), parts[1].float(), torch.tensor(blocks)


class GCN(nn.Module):
    """Two graph convolutions."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(FEATURES, width), nn.Linear(width, BLOCKS)

    def forward(self, graph: Tensor, x: Tensor) -> Tensor:
        """Logits ``[nodes, BLOCKS]`` from the normalised graph and the nodes' features."""
        return self.second(graph @ F.relu(self.first(graph @ x)))


def _task(seed: int, batch: float = 1.0) -> Task:
    graph, x, y = _data()

    def loss(model: nn.Module, rng: torch.Generator) -> Tensor:
        nodes = torch.randint(LABELLED, (round(BATCH * batch),), generator=rng)
        return F.cross_entropy(model(graph, x)[nodes], y[nodes])

    def judge(model: nn.Module) -> float:
        return F.cross_entropy(model(graph, x)[LABELLED:], y[LABELLED:]).item()

    return seeded_task(GCN, loss, judge, seed)


GRAPH = Workload(
    "graph",
    f"stochastic block model, generated, {NODES} nodes in {BLOCKS} blocks, edge probability {WITHIN} within "
    f"a block and {BETWEEN} between blocks, {FEATURES} noisy features, {LABELLED} labelled nodes, 64 of "
    "them per batch, the rest for evaluation; two graph convolutions of width 64; cross-entropy",
    (200, 800),
    _task,
    lambda: data_hash(*(part.numpy() for part in _data())),
    metric="nats",
    family="graphs",
)
