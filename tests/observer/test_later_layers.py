"""Layers that the model gets after the observer was made: they carry the model's names."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from thermoopt import Observer, ThermoAdamW


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 4, bias=False)
        self.head = nn.Linear(4, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def make(kind: type[Optimizer]) -> tuple[Net, Optimizer, Observer]:
    torch.manual_seed(0)
    model = Net()
    optimizer = kind(model.parameters(), lr=1e-3)
    return model, optimizer, Observer(model, optimizer, log_every=1)


def step(model: Net, optimizer: Optimizer, observer: Observer) -> None:
    optimizer.zero_grad()
    loss = model(torch.ones(5, 3)).square().mean()
    loss.backward()
    optimizer.step()
    observer.step(loss=loss)


@pytest.mark.parametrize("kind", [AdamW, ThermoAdamW])
def test_a_head_that_grows_keeps_its_name(kind: type[Optimizer]) -> None:
    """As continual learning does it: a wider layer in the place of the last, its tensors in the group."""
    model, optimizer, observer = make(kind)
    step(model, optimizer, observer)
    old = model.head.weight
    model.head = nn.Linear(4, 3, bias=False)
    optimizer.param_groups[0]["params"] = list(model.parameters())
    optimizer.state.pop(old)
    own = "head.weight" if kind is AdamW else "group0.1"  # a ThermoAdamW speaks of its own names
    with pytest.warns(RuntimeWarning, match=f"whose shape changed, measured afresh: {own}$"):
        step(model, optimizer, observer)
    step(model, optimizer, observer)
    assert observer.reading.names == ("body.weight", "head.weight")
    assert set(observer.layer_types) == {"body.weight", "head.weight"}


@pytest.mark.parametrize("kind", [AdamW, ThermoAdamW])
def test_a_group_added_with_a_new_layer_is_named(kind: type[Optimizer]) -> None:
    model, optimizer, observer = make(kind)
    step(model, optimizer, observer)
    model.gate = nn.Parameter(torch.ones(()))
    stranger = nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [model.gate, stranger]})
    model.register_forward_hook(lambda _, __, out: out * model.gate + stranger.sum())
    step(model, optimizer, observer)
    assert observer.reading.names == ("body.weight", "head.weight", "gate", "group1.1")
