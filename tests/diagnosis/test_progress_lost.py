"""progress_lost: what was learned is gone and no gradient is left to learn it again."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from thermoopt import Observer, ThermoAdamW, diagnose

OPTIMIZERS = {
    "ThermoAdamW": lambda model: ThermoAdamW(model.named_parameters(), lr=1e-2),
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2),
    "SGD": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
}
STEPS, AT = 400, 200


def found(make, change=lambda model, target: None, noise=0.05, reports=True):
    """Train a perceptron on its own task; at half of the run something happens to it, or to the task."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = make(model)
    observer = Observer(model, optimizer)
    x = torch.randn(256, 8)
    target = x[:, :1] * x[:, 1:2] + x[:, 2:3]
    target -= target.mean()
    for step in range(STEPS):
        if step == AT:
            with torch.no_grad():
                change(model, target)
        rows = torch.randint(256, (64,))
        optimizer.zero_grad()
        loss = F.mse_loss(model(x[rows]), target[rows] + noise * torch.randn(64, 1))
        loss.backward()
        optimizer.step()
        observer.step(loss=loss if reports else None)
    return [f for f in diagnose(observer).findings if f.kind == "progress_lost"]


def kill(model, target):
    """Let no unit fire any more: the network gives a constant, and only its last bias has a gradient."""
    model[0].bias.fill_(-100.0)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_network_that_died_has_lost_what_it_had_learned(make):
    (finding,) = found(make, kill)
    assert finding.confidence == "HIGH"
    assert finding.effect == pytest.approx(1, abs=0.2)  # a constant is as good as the untrained network
    step = int(re.search(r"by step (\d+)", finding.message)[1])
    assert AT - 60 <= step <= AT + 5


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_another_task_is_no_loss_of_progress_while_forces_are_there(make):
    """Targets that are turned round raise the loss above its first value, and the force with it."""
    assert not found(make, lambda model, target: target.neg_())


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_run_that_fits_its_data_has_lost_nothing(make):
    assert not found(make, noise=0.0)


def test_noisy_labels_from_half_of_the_run_on_are_no_loss_of_progress():
    assert not found(OPTIMIZERS["AdamW"], lambda model, target: target.copy_(torch.randn_like(target)))


def test_nothing_is_said_without_losses():
    assert not found(OPTIMIZERS["AdamW"], kill, reports=False)
