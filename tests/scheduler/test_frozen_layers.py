"""A controller in a ThermoScheduler, and frozen layers of the group: they have no say in its rate."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from thermoopt import ThermoScheduler, autotune

STEPS = 120


def rates(optimizer_class, held, unfreeze_at=None):
    """Learning rates of a run whose first layer is frozen; ``held`` says whether the optimizer has it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 32))
    model[0].requires_grad_(False)
    optimizer = optimizer_class(model.parameters() if held else model[2].parameters(), lr=1e-3)
    scheduler = ThermoScheduler(optimizer, STEPS, shape="constant", controller=autotune(STEPS))
    x, y, out = torch.randn(32, 64), torch.randn(32, 32), []
    for step in range(STEPS):
        if step == unfreeze_at:
            model[0].requires_grad_(True)
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
        scheduler.step()
        out.append(optimizer.param_groups[0]["lr"])
        assert scheduler.get_lr() == [out[-1]]
    return out


@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, torch.optim.SGD])
def test_rates_are_those_without_the_frozen_layers(optimizer_class):
    assert rates(optimizer_class, held=True) == pytest.approx(rates(optimizer_class, held=False), rel=1e-6)


def test_layers_that_are_unfrozen_have_a_say_from_then_on():
    frozen, thawed = rates(torch.optim.AdamW, True), rates(torch.optim.AdamW, True, unfreeze_at=60)
    assert thawed[:59] == frozen[:59]
    assert thawed[80:] != frozen[80:]
