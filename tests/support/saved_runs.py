"""Small runs on file, for what reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from thermoopt import JSONLSink, ThermoAdamW


class Net(torch.nn.Module):
    """Layers of four types, a bias among them."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = torch.nn.Embedding(11, 6)
        self.norm = torch.nn.LayerNorm(6)
        self.mlp = torch.nn.Linear(6, 6)
        self.head = torch.nn.Linear(6, 11, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.mlp(self.norm(self.wte(x)))))


def record(
    path: Path,
    steps: int,
    *,
    layers: bool = True,
    each: Callable[[int, ThermoAdamW], None] = lambda step, optimizer: None,
    state: dict | None = None,
    **options,
) -> ThermoAdamW:
    """Train a Net on noise, with every step measured into ``path`` as it is, from a state dict on."""
    torch.manual_seed(0)
    net = Net()
    decayed = [(n, p) for n, p in net.named_parameters() if p.ndim > 1]
    plain = [(n, p) for n, p in net.named_parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "name": "decay"}, {"params": plain, "name": "plain", "weight_decay": 0.0}]
    settings = {"lr": 1e-2, "weight_decay": 0.1, "measure_every": 1, "ema_steps": 1, **options}
    optimizer = ThermoAdamW(groups, sinks=[JSONLSink(path, layers=layers)], **settings)
    if state is not None:
        optimizer.load_state_dict(state)
    for step in range(1, steps + 1):
        x = torch.randint(11, (8,))
        torch.nn.functional.cross_entropy(net(x), (x + 1) % 11).backward()
        optimizer.step()
        optimizer.zero_grad()
        each(step, optimizer)
    optimizer.sinks.flush()
    return optimizer
