"""The models for paths of update energy: a transformer, a recurrent language model, a regression."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thermoopt.benchmarks.workloads.linear import LINEAR
from thermoopt.benchmarks.workloads.task import Task
from thermoopt.benchmarks.workloads.text import byte_task
from thermoopt.demo import GPT, GPTConfig

__all__ = ["ABOUT", "BUILD", "LR"]

SYMBOLS, LENGTH, BATCH = 16, 8, 16
JUDGED = 512

LR = {"transformer": 1e-3, "gru": 2e-3, "linear": 1e-1}
"""Peak learning rates: usual ones for the first two; the regression's weights have far to go."""

ABOUT = {
    "transformer": f"causal transformer with 2 layers, d_model 128 and 4 heads that sorts {LENGTH} symbols "
    f"out of {SYMBOLS}; {BATCH} new sequences per batch; nats per sorted symbol",
    "gru": "GRU language model with 2 layers of width 256 on the bytes of Python's standard library; 8 "
    "windows of 16 bytes per batch; nats per byte",
    "linear": LINEAR.about,
}


class GRU(nn.Module):
    """Embedding, two recurrent layers, head."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, width)
        self.rnn = nn.GRU(width, width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, 256)

    def forward(self, idx: Tensor) -> Tensor:
        """Logits ``[batch, length, 256]`` of the next byte."""
        return self.head(self.rnn(self.bytes(idx))[0])


def _sorting(seed: int) -> Task:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT(GPTConfig(depth=2, width=128, heads=4, context=2 * LENGTH))
    rng = torch.Generator().manual_seed(seed)
    judged = torch.Generator().manual_seed(1_000_003)

    def nats(n: int, generator: torch.Generator) -> Tensor:
        given = torch.randint(SYMBOLS, (n, LENGTH), generator=generator)
        goal = given.sort(dim=1).values
        mark = torch.full((n, 1), SYMBOLS)
        logits = model(torch.cat([given, mark, goal[:, :-1]], dim=1))[:, LENGTH:]
        return F.cross_entropy(logits.flatten(0, 1), goal.flatten())

    @torch.no_grad()
    def evaluate() -> float:
        judged.manual_seed(1_000_003)
        return nats(JUDGED, judged).item()

    return Task(model, lambda: nats(BATCH, rng), evaluate)


BUILD = {
    "transformer": _sorting,
    "gru": lambda seed: byte_task(GRU, 8, 16, seed, 1.0),
    "linear": LINEAR.build,
}
"""Task of a seed, by name."""
