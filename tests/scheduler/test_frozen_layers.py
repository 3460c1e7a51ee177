"""A controller in a ThermoScheduler, and layers that do not move: they have no say in their group's rate."""

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


def with_an_unused_twin(optimizer_class, held, resume_at=None):
    """Learning rates of a run whose optimizer may hold a twin of the network that forward() never uses."""
    torch.manual_seed(0)
    model, twin = (nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1)) for _ in range(2))

    def made():
        params = [*model.parameters(), *(twin.parameters() if held else ())]
        optimizer = optimizer_class(params, lr=1e-3)
        return optimizer, ThermoScheduler(optimizer, STEPS, shape="constant", controller=autotune(STEPS))

    optimizer, scheduler = made()
    x = torch.randn(32, 8)
    out, losses = [], []
    for step in range(STEPS):
        if step == resume_at:
            states = optimizer.state_dict(), scheduler.state_dict()
            optimizer, scheduler = made()
            optimizer.load_state_dict(states[0])
            scheduler.load_state_dict(states[1])
            assert optimizer.param_groups[0]["lr"] == out[-1]
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), x[:, :1] * x[:, 1:2])
        loss.backward()
        optimizer.step()
        scheduler.step()
        out.append(optimizer.param_groups[0]["lr"])
        losses.append(loss.item())
    return out, losses


@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, torch.optim.SGD])
def test_layers_that_never_get_a_gradient_have_no_say(optimizer_class):
    """Only their units count, as those of layers that may still join: a twin's are nearly the same."""
    (held, worse), (alone, loss) = (with_an_unused_twin(optimizer_class, h) for h in (True, False))
    assert held[5:50] == pytest.approx(alone[5:50], rel=0.25)
    assert worse[-1] < 2 * loss[-1]


def test_a_resumed_run_knows_which_layers_are_waiting():
    plain, resumed = (with_an_unused_twin(torch.optim.AdamW, True, at) for at in (None, 60))
    assert resumed == plain
