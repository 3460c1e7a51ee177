"""A small optimizer in two groups that feeds sinks at every step."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import Parameter

from thermoopt import Reading, ThermoAdamW

GROUPS = ("body", "head")


def make_optimizer(*sinks: Any, **kwargs: Any) -> ThermoAdamW:
    generator = torch.Generator().manual_seed(5)
    a, b = (Parameter(torch.randn(4, 3, generator=generator)) for _ in range(2))
    groups = [
        {"params": [("a", a)], "name": "body"},
        {"params": [("b", b)], "name": "head", "weight_decay": 0.0},
    ]
    return ThermoAdamW(groups, measure_every=1, ema_steps=1, backend="torch", sinks=sinks, **kwargs)


def train(optimizer: ThermoAdamW, steps: int, first: int = 0) -> list[Reading]:
    readings = []
    for t in range(first, first + steps):
        generator = torch.Generator().manual_seed(100 + t)
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.randn(p.shape, generator=generator) + 0.5
        optimizer.step()
        readings.append(optimizer.reading)
    return readings
