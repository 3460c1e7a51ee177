"""Which learning rates a controlled optimizer shows its controller, and what a law makes of them."""

import warnings

import pytest
import torch

from tests.support.controllers import Stateless
from thermoopt import ThermoAdamW
from thermoopt.controllers import Scales, Thermostat


class Watches(Stateless):
    """Remembers what it is shown."""

    def __init__(self):
        self.seen, self.steps = [], 0

    @property
    def begun(self):
        return self.steps > 0

    def see_lr(self, lr):
        self.seen.append(list(lr))

    def update(self, reading, step):
        self.steps = step
        return Scales()

    def reset(self):
        self.steps = 0


def step_at(optimizer, lr):
    optimizer.param_groups[0]["lr"] = lr
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    optimizer.step()


def test_a_rate_is_shown_when_it_has_changed_and_again_after_a_reset():
    watcher = Watches()
    optimizer = ThermoAdamW([torch.nn.Parameter(torch.ones(3))], 0.1, controller=watcher)
    for lr in (0.1, 0.1, 0.2, 0.2, 0.0, 0.2, 0.1):
        step_at(optimizer, lr)
    assert watcher.seen == [[0.1], [0.2], [0.1]]  # not the dry step's
    watcher.reset()
    step_at(optimizer, 0.1)
    step_at(optimizer, 0.1)
    assert watcher.seen[3:] == [[0.1]]
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "lr": 0.3})
    step_at(optimizer, 0.1)
    assert watcher.seen[4:] == [[0.1, 0.3]]
    optimizer.load_state_dict(optimizer.state_dict())
    step_at(optimizer, 0.1)
    assert watcher.seen[5:] == [[0.1, 0.3]]


def test_a_law_answers_an_outside_schedule_in_the_same_step():
    """A doubled lr halves its scale at once."""
    law = Thermostat("diffusion", total_steps=10_000, reverse=False)
    optimizer = ThermoAdamW([("w", torch.nn.Parameter(torch.ones(3, 3)))], 0.01, controller=law)
    for _ in range(4):
        step_at(optimizer, 0.01)
    before = optimizer.param_groups[0]["thermo"]["lr_scale"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step_at(optimizer, 0.02)
    after = optimizer.param_groups[0]["thermo"]["lr_scale"]
    assert after == pytest.approx(before / 2)
