"""nothing_learned: a loss that is where it began, told from losses that fell, that jump or that are few."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from thermoopt import Observer, ThermoAdamW, diagnose

OPTIMIZERS = {
    "ThermoAdamW": lambda model: ThermoAdamW(model.named_parameters(), lr=1e-2),
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2),
    "SGD": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
}


def train(make, belong, steps=300, also=lambda step: 0.0):
    """Tell four classes of points apart; labels that do not belong to their points cannot be learned."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))
    nn.init.zeros_(model[2].bias)
    model[2].weight.data *= 0.1  # starts at chance
    optimizer = make(model)
    observer = Observer(model, optimizer)
    for step in range(steps):
        x = torch.randn(256, 8)
        y = 2 * (x[:, 0] > 0) + (x[:, 1] > 0).long()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y if belong else y[torch.randperm(256)])
        loss.backward()
        optimizer.step()
        observer.step(loss=loss + also(step))
    return {f.kind: f for f in diagnose(observer).findings}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_labels_of_other_inputs_teach_nothing(make):
    finding = train(make, belong=False)["nothing_learned"]
    assert finding.confidence == "LOW"
    assert finding.effect == pytest.approx(1, abs=0.04)
    assert f"{math.log(4):.2g} at first" in finding.message


def test_losses_that_fell_that_jump_or_that_are_few_say_something_else():
    make = OPTIMIZERS["AdamW"]
    assert "nothing_learned" not in train(make, belong=True)
    assert "nothing_learned" not in train(make, belong=False, steps=290)  # too young
    jumps = iter(torch.randn(300, generator=torch.Generator().manual_seed(1)).tolist())
    assert "nothing_learned" not in train(make, belong=False, also=lambda step: 0.2 * next(jumps))
    assert "nothing_learned" not in train(make, belong=False, also=lambda step: 2.0 if step > 150 else 0.0)
    assert "nothing_learned" not in train(make, belong=False, also=lambda step: -0.5 * (100 < step < 150))


def test_a_first_step_that_throws_the_loss_up_is_not_taken_for_the_start():
    make = OPTIMIZERS["AdamW"]
    assert "nothing_learned" in train(make, belong=False, also=lambda step: 9.0 * (step in (1, 2)))
