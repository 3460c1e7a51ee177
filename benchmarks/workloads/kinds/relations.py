"""Relations: attention on a graph, words that occur together, a matrix of low rank."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thermoopt.benchmarks.workloads.quantiles import Dropout
from thermoopt.benchmarks.workloads.task import Task, Workload, data_hash, seeded_task

__all__ = ["COMPLETION", "GRAPH_ATTENTION", "TOPICS", "Attention", "Tables", "excess", "together"]

# --- a graph

NODES, BLOCKS, FEATURES = 160, 4, 16
WITHIN, BETWEEN = 0.10, 0.02  # probability of a pair's edge, each way
SIGNAL = 0.4  # size of the blocks' means; 1 is the noise around them
LABELLED = 64
DROPPED = 0.4, 0.3  # features, attention


@cache
def _graph() -> tuple[Tensor, Tensor, Tensor]:
    """Edges and loops ``[NODES, NODES]``, features ``[NODES, FEATURES]``, the block of each node."""
    rng = torch.Generator().manual_seed(31)
    blocks = torch.arange(NODES) % BLOCKS
    chance = torch.where(blocks[:, None] == blocks, WITHIN, BETWEEN)
    one_way = torch.rand(NODES, NODES, generator=rng) < chance
    edges = one_way | one_way.T | torch.eye(NODES, dtype=torch.bool)
    means = SIGNAL * torch.randn(BLOCKS, FEATURES, generator=rng)
    return edges, means[blocks] + torch.randn(NODES, FEATURES, generator=rng), blocks


class Attention(nn.Module):
    """A node's mean over its neighbours, weighted by what both ends look like.

    References:
        Veličković et al., "Graph attention networks", arXiv 1710.10903, equation 3.
    """

    def __init__(self, inputs: int, outputs: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.values = nn.Linear(inputs, heads * outputs, bias=False)
        self.ends = nn.Parameter(0.3 * torch.randn(2, heads, outputs))
        self.drop = Dropout(DROPPED[1])

    def weights(self, values: Tensor, edges: Tensor) -> Tensor:
        """Return the weights ``[nodes, nodes, heads]`` of neighbours, which sum to 1 over the second axis."""
        to, of = (values * self.ends[0]).sum(dim=2), (values * self.ends[1]).sum(dim=2)
        logits = F.leaky_relu(to[:, None] + of, 0.2)
        return logits.masked_fill(~edges[..., None], float("-inf")).softmax(dim=1)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Features ``[nodes, heads · outputs]`` of features ``[nodes, inputs]``."""
        values = self.values(x).view(len(x), self.heads, -1)
        weights = self.drop(self.weights(values, edges))
        return torch.einsum("ijh,jho->iho", weights, values).flatten(1)


class GraphAttention(nn.Module):
    """Two layers of attention, dropout before either."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Attention(FEATURES, 8, 4), Attention(32, BLOCKS, 1)
        self.drop = Dropout(DROPPED[0])

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Logits ``[nodes, BLOCKS]``."""
        return self.second(self.drop(F.elu(self.first(self.drop(x), edges))), edges)


def _graph_attention(seed: int, batch: float = 1.0) -> Task:
    edges, x, y = _graph()
    order = torch.randperm(NODES, generator=torch.Generator().manual_seed(0))
    train, judged = order[:LABELLED], order[LABELLED:]

    def error(model: nn.Module, nodes: Tensor) -> Tensor:
        return F.cross_entropy(model(x, edges)[nodes], y[nodes])

    def loss(model: nn.Module, rng: torch.Generator) -> Tensor:
        passes = [error(model, train) for _ in range(max(1, round(batch)))]  # noise is dropout's alone
        return torch.stack(passes).mean()

    return seeded_task(GraphAttention, loss, lambda model: error(model, judged), seed)


GRAPH_ATTENTION = Workload(
    "graph-attention",
    f"stochastic block model, generated, {NODES} nodes in {BLOCKS} blocks, {FEATURES} noisy features, "
    f"{LABELLED} labelled nodes, all in every batch, the rest for evaluation; two attention layers with "
    "dropout; cross-entropy",
    (300, 1200),
    _graph_attention,
    lambda: data_hash(*(part.numpy() for part in _graph())),
    family="graphs",
)

# --- words

WORDS, SUBJECTS, NEGATIVES = 400, 20, 5
PAIRS = 30_000
OUTSIDE = 0.03  # frequency of a word outside its subject, of that within


@cache
def together() -> tuple[Tensor, Tensor]:
    """Return the probability ``[WORDS, WORDS]`` of a pair, and that of a negative, ``[WORDS]``, float64.

    A pair is two words drawn from one of SUBJECTS subjects. A word has one subject, and a frequency by Zipf's
    law; negatives are drawn by the frequency to the power of 0.75.
    """
    subject = torch.randint(SUBJECTS, (WORDS,), generator=torch.Generator().manual_seed(41))
    frequency = 1 / (1 + torch.arange(WORDS, dtype=torch.float64))
    own = subject == torch.arange(SUBJECTS)[:, None]
    by_subject = frequency * torch.where(own, 1.0, OUTSIDE)
    by_subject = by_subject / by_subject.sum(dim=1, keepdim=True)
    negative = frequency**0.75
    return by_subject.T @ by_subject / SUBJECTS, negative / negative.sum()


@cache
def _pairs() -> Tensor:
    drawn = torch.multinomial(
        together()[0].flatten(), PAIRS, True, generator=torch.Generator().manual_seed(9)
    )
    return torch.stack([drawn // WORDS, drawn % WORDS], dim=1)


class Tables(nn.Module):
    """Two tables of vectors of 24 numbers, for a word and for one near it."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.inputs, self.outputs = nn.Embedding(WORDS, width), nn.Embedding(WORDS, width)
        for table in (self.inputs, self.outputs):
            nn.init.normal_(table.weight, std=0.2)

    def scores(self) -> Tensor:
        """Return u·v of all pairs, ``[WORDS, WORDS]``."""
        return self.inputs.weight @ self.outputs.weight.T

    def forward(self, pairs: Tensor, negatives: Tensor) -> Tensor:
        """Mean of −ln σ(u·v) − Σ ln σ(−u·n) over pairs ``[n, 2]``; negatives ``[n, NEGATIVES]``."""
        word = self.inputs(pairs[:, 0])
        near = (word * self.outputs(pairs[:, 1])).sum(dim=1)
        far = (self.outputs(negatives) @ word[:, :, None])[:, :, 0]
        return (F.softplus(-near) + F.softplus(far).sum(dim=1)).mean()


def excess(scores: Tensor) -> Tensor:
    """Return the expected loss of scores u·v, ``[WORDS, WORDS]``, less that of the best ones, nats a pair.

    With a the probability of a pair and b that of a word and its negatives, a softplus(−s) + b softplus(s) is
    lowest at s = ln(a/b).

    References:
        Levy and Goldberg, "Neural word embedding as implicit matrix factorization", 2014, section 3.1.
    """
    pair, negative = together()
    drawn = NEGATIVES * pair.sum(dim=1, keepdim=True) * negative

    def expected(s: Tensor) -> Tensor:
        return (pair * F.softplus(-s) + drawn * F.softplus(s)).sum()

    return expected(scores.double()) - expected((pair / drawn).log())


def _topics(seed: int, batch: float = 1.0) -> Task:
    pairs, negative = _pairs(), together()[1]

    def loss(model: nn.Module, rng: torch.Generator) -> Tensor:
        chosen = pairs[torch.randint(PAIRS, (round(128 * batch),), generator=rng)]
        drawn = torch.multinomial(negative, NEGATIVES * len(chosen), True, generator=rng)
        return model(chosen, drawn.view(-1, NEGATIVES))

    return seeded_task(Tables, loss, lambda model: excess(model.scores()), seed)


TOPICS = Workload(
    "topics",
    f"pairs of {WORDS} words drawn from {SUBJECTS} topics, generated, {PAIRS:,} pairs, 5 negative samples, "
    "batch 128; skip-gram model of width 24; expected loss over all pairs minus its minimum",
    (500, 2000),
    _topics,
    lambda: data_hash(_pairs().numpy()),
    metric="excess nats per pair",
    family="embeddings",
)

# --- a matrix

ROWS, COLUMNS, TRUE_RANK, RANK = 100, 80, 4, 8
KNOWN = 3000  # of the 8,000 entries
NOISE = 0.1


@cache
def _matrix() -> tuple[Tensor, Tensor, Tensor]:
    """The matrix ``[ROWS · COLUMNS]``, what is seen of it, and an order: the first KNOWN are to train on."""
    rng = torch.Generator().manual_seed(71)
    true = torch.randn(ROWS, TRUE_RANK, generator=rng) @ torch.randn(TRUE_RANK, COLUMNS, generator=rng) / 2
    order = torch.randperm(ROWS * COLUMNS, generator=rng)
    return true.flatten(), true.flatten() + NOISE * torch.randn(len(order), generator=rng), order


class Factors(nn.Module):
    """A vector for each row and for each column."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(0.1 * torch.randn(ROWS, RANK))
        self.columns = nn.Parameter(0.1 * torch.randn(COLUMNS, RANK))

    def forward(self, entries: Tensor) -> Tensor:
        """Values ``[n]`` of entries by number, row by row."""
        return (self.rows[entries // COLUMNS] * self.columns[entries % COLUMNS]).sum(dim=1)


def _completion(seed: int, batch: float = 1.0) -> Task:
    true, seen, order = _matrix()
    train, judged = order[:KNOWN], order[KNOWN:]

    def loss(model: nn.Module, rng: torch.Generator) -> Tensor:
        entries = train[torch.randint(KNOWN, (round(128 * batch),), generator=rng)]
        return F.mse_loss(model(entries), seen[entries])

    return seeded_task(Factors, loss, lambda model: F.mse_loss(model(judged), true[judged]), seed)


COMPLETION = Workload(
    "completion",
    f"a matrix of {ROWS} by {COLUMNS} of rank {TRUE_RANK}, {KNOWN:,} noisy entries for training, batch 128; "
    f"factors of rank {RANK}; mean squared error of the other entries, without noise",
    (500, 2000),
    _completion,
    lambda: data_hash(*(part.numpy() for part in _matrix())),
    metric="mean squared error",
    family="embeddings",
)
