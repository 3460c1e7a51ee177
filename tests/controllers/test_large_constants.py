"""Decay on parameters that are no weights: a constant of thousands is moved by its gradient, not by decay."""

import copy

import pytest
import torch

from thermoopt import Observer, ThermoAdamW, ThermoScheduler, autotune, diagnose
from thermoopt.controllers import Barostat
from thermoopt.physics import bearable

T = 300


@pytest.mark.parametrize(
    ("decay", "lr", "unit", "share"),
    [
        (0.01, 1e-3, 0.05, 1.0),
        (0.1, 3.0, 1.0, 1.0),  # strong, but weights keep their sign
        (0.01, 0.0, 5000.0, 1 / 5000),
        (0.01, 200.0, 1.0, 0.5),
        (0.01, 200.0, 10.0, 0.1),
        (0.0, 200.0, 5000.0, 1.0),
    ],
)
def test_what_decay_weights_bear(decay, lr, unit, share):
    assert bearable(decay, lr, unit) == pytest.approx(share)


class Spring(torch.nn.Module):
    """Swings with a stiffness that is to be found; it is off by a factor of 4."""

    def __init__(self, stiffness=5e3):
        super().__init__()
        self.stiffness = torch.nn.Parameter(torch.tensor(float(stiffness)))

    def forward(self, time):
        return torch.cos((self.stiffness / 2.0).sqrt() * time)


def fit(model, opt, steps=T, *, scheduler=None, observer=None):
    time = torch.linspace(0, 0.02, 64)
    target = Spring(2e4)(time).detach()
    rng = torch.Generator().manual_seed(0)
    for _ in range(steps):
        opt.zero_grad()
        loss = (model(time) - target - 0.05 * torch.randn(64, generator=rng)).square().mean()
        loss.backward()
        opt.step()
        if scheduler is not None:
            scheduler.step()
        if observer is not None:
            observer.step(loss=loss)
    return float(model.stiffness.detach())


def adamw(model):
    return ThermoAdamW(model.named_parameters(), controller=autotune(T)), None


def scheduled(model):
    opt = torch.optim.AdamW(model.parameters(), lr=1.0)
    return opt, ThermoScheduler(opt, T, shape="constant", controller=autotune(T))


@pytest.mark.parametrize("make", [adamw, scheduled])
def test_a_stiffness_is_found_in_spite_of_decay(make):
    model = Spring()
    opt, scheduler = make(model)
    assert opt.defaults["weight_decay"] == 0.01  # torch's own
    assert fit(model, opt, scheduler=scheduler) == pytest.approx(2e4, rel=0.05)


def test_the_log_says_that_decay_is_lowered_and_by_how_much():
    model = Spring()
    opt, _ = adamw(model)
    fit(model, opt, 20)
    (action,) = [action for action in opt.controller.log if action.kind == "wd"]
    assert action.new == pytest.approx(1 / 5e3)
    assert opt.reading.total.wd_eff == pytest.approx(0.01 / 5e3)


class Springs(Spring):
    """Swings as a Spring, beside a constant that is at rest and a tensor without elements."""

    def __init__(self):
        super().__init__()
        self.rest = torch.nn.Parameter(torch.tensor(3e3))
        self.none = torch.nn.Parameter(torch.zeros(0))

    def forward(self, time):
        return super().forward(time) + 0 * self.rest + self.none.sum()


@pytest.mark.parametrize("still", ["lr 0", "frozen"])
def test_a_group_that_does_not_move_is_not_in_the_log(still):
    model = Springs()
    model.rest.requires_grad_(still != "frozen")
    groups = [
        {"params": [model.stiffness, model.none], "name": "moves"},
        {"params": [model.rest], "name": "rests", "lr": 0.0 if still == "lr 0" else 10.0},
    ]
    opt = ThermoAdamW(groups, lr=10.0, controller=Barostat(T), measure_every=1)
    fit(model, opt, 20)
    (action,) = opt.controller.log
    assert action.group == "moves"
    assert action.evidence["lr"][0] == pytest.approx(10.0)


def test_a_checkpoint_keeps_what_they_bear():
    model = Spring()
    opt, _ = adamw(model)
    fit(model, opt, 20)
    other = Spring()
    again, _ = adamw(other)
    other.load_state_dict(model.state_dict())
    again.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert fit(other, again, 30) == fit(model, opt, 30)


def test_no_decay_stays_none():
    barostat = Barostat(T)
    model = Spring()
    opt = ThermoAdamW(model.parameters(), lr=100.0, weight_decay=0.0, controller=barostat)
    fit(model, opt, 20)
    assert not barostat.log
    assert opt.reading.total.wd_eff == 0.0


@pytest.mark.parametrize(("decay", "found"), [(0.01, True), (1e-6, False)])
def test_decay_that_erases_a_scalar_is_found(decay, found):
    """At a rate of 10 torch's own decay makes weights forget within 10 steps."""
    model = Spring()
    opt = torch.optim.AdamW(model.parameters(), lr=10.0, weight_decay=decay)
    observer = Observer(model, opt)
    end = fit(model, opt, 600, observer=observer)
    kinds = {f.kind for f in diagnose(observer).findings if f.confidence == "HIGH"}
    assert ("weight_decay_collapse" in kinds) is found
    assert (end < 500) is found
