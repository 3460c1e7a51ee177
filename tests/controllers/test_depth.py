"""Deep networks start lower: the rule, what it is worth, and what checkpoints keep of it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from thermoopt import ThermoAdamW, ThermoScheduler, autotune
from thermoopt.controllers import Barostat, Chain, Cooling, Thermostat
from thermoopt.controllers.base import Start
from thermoopt.controllers.presets import fresh_kappa


def start(ndim, trainable=(), rms=None):
    n = len(ndim)
    blank, ones = (0,) * n, rms or (1.0,) * n
    names = tuple(f"p{i}" for i in range(n))
    return Start(names, blank, ("g",), (64,) * n, ndim, ones, blank, (), (), (), (), trainable)


@pytest.mark.parametrize(
    ("matrices", "kappa"), [(0, 0.5), (1, 0.5), (8, 0.5), (10, 0.4), (16, 0.25), (20, 0.2), (99, 0.2)]
)
def test_half_up_to_eight_matrices_then_in_inverse_proportion_down_to_a_fifth(matrices, kappa):
    assert fresh_kappa(start((2, 1) * matrices)) == pytest.approx(kappa)


def test_convolutions_count_and_frozen_layers_do_not():
    assert fresh_kappa(start((4, 3) * 8)) == pytest.approx(0.25)
    assert fresh_kappa(start((2,) * 40, (True,) * 10 + (False,) * 30)) == pytest.approx(0.4)


def test_adapters_and_branches_that_start_at_0_do_not_add_up():
    assert fresh_kappa(start((2,) * 28, rms=(0.1, 0.0) * 14)) == pytest.approx(0.5)  # LoRA's A and B
    assert fresh_kappa(start((2,) * 28, rms=(0.1,) * 27 + (0.0,))) == pytest.approx(0.2)  # a read-out


def stack(layers, seed=0):
    torch.manual_seed(seed)
    modules = []
    for _ in range(layers - 1):
        modules += [nn.Linear(64 if not modules else 32, 32), nn.Tanh()]
    model = nn.Sequential(*modules, nn.Linear(32, 10))
    for m in model:
        if isinstance(m, nn.Linear):
            nn.init.xavier_normal_(m.weight, 5 / 3)
    return model


def train(model, optimizer, steps):
    """Mean loss of the last 50 steps on handwritten digits."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    inputs, targets = torch.tensor(data.data / 16).float(), torch.tensor(data.target)
    rng = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        batch = torch.randint(len(inputs), (32,), generator=rng)
        loss = F.cross_entropy(model(inputs[batch]), targets[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-50:]) / 50


def test_a_plain_stack_of_20_layers_learns_as_with_a_tuned_adamw():
    """From the start of shallow networks it ends at chance: ln 10 = 2.3."""
    steps = 400
    model = stack(20)
    auto = train(model, ThermoAdamW(model.named_parameters(), controller=autotune(steps)), steps)
    model = stack(20)
    shallow = Chain(Thermostat(total_steps=steps), Barostat(steps), Cooling(steps, "trapezoid", 0.1))
    broken = train(model, ThermoAdamW(model.named_parameters(), controller=shallow), steps)
    model = stack(20)
    adamw = torch.optim.AdamW(model.parameters(), 1e-3)
    tuned = train(model, adamw, steps)
    assert auto < tuned < broken / 2


def test_a_checkpoint_keeps_its_start_and_one_of_earlier_versions_too():
    model = stack(20)
    optimizer = ThermoAdamW(model.named_parameters(), controller=autotune(400))
    train(model, optimizer, 50)
    state = optimizer.controller.state_dict()
    assert state["members"][0]["state"]["kappa"] == pytest.approx(0.2)
    older = copy.deepcopy(state)
    del older["members"][0]["state"]["kappa"]  # written before depth counted
    for saved, kappa in ((state, 0.2), (older, 0.5)):
        controller = autotune(400)
        controller.load_state_dict(saved)
        kept = controller.state_dict()["members"][0]["state"]
        assert kept["kappa"] == pytest.approx(kappa)
        assert kept["cohorts"] == state["members"][0]["state"]["cohorts"]  # the rate held stays


@pytest.mark.parametrize("preset", ["default", "finetune"])
def test_after_a_reset_the_next_network_has_the_start_of_its_own(preset):
    """As of a fresh controller, whatever the first one was: shallow, or adapters."""

    def log(controller, model):
        optimizer = ThermoAdamW(model.named_parameters(), controller=controller, measure_every=1)
        for _ in range(20):
            optimizer.zero_grad()
            model(torch.ones(8, 64)).square().mean().backward()
            optimizer.step()
        return optimizer.controller.state_dict()["members"][0]["state"]

    first = stack(3)
    for m in first[:3:2]:
        nn.init.zeros_(m.weight)  # as adapters have
    controller = autotune(20, preset)
    log(controller, first)
    controller.reset()
    again, fresh = log(controller, stack(20)), log(autotune(20, preset), stack(20))
    assert again.get("kappa") == fresh.get("kappa")
    assert again["cohorts"] == fresh["cohorts"]


def test_a_resumed_run_goes_on_bit_for_bit():
    def run(model, optimizer, batches):
        for x in batches:
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

    batches = torch.randn(60, 8, 64, generator=torch.Generator().manual_seed(3))
    model = stack(20)
    optimizer = ThermoAdamW(model.named_parameters(), controller=autotune(60))
    run(model, optimizer, batches[:20])
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    run(model, optimizer, batches[20:])
    other = stack(20, seed=1)
    other.load_state_dict(weights)
    resumed = ThermoAdamW(other.named_parameters(), controller=autotune(60))
    resumed.load_state_dict(state)
    run(other, resumed, batches[20:])
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def scheduled(layers, given):
    """A scheduler over the first layers of a stack, to which the others are added; rates of each step."""
    model = stack(layers)
    parts = [list(m.parameters()) for m in model if isinstance(m, nn.Linear)]
    optimizer = torch.optim.AdamW([{"params": part} for part in parts[:given]])
    scheduler = ThermoScheduler(optimizer, 40, shape="constant", controller=autotune(40))
    for part in parts[given:]:
        optimizer.add_param_group({"params": part})
    rates = []
    for step in range(12):
        optimizer.zero_grad()
        rng = torch.Generator().manual_seed(step)
        F.cross_entropy(model(torch.randn(32, 64, generator=rng)), torch.arange(32) % 10).backward()
        if step == 0:  # at the same rates, which the scheduler had no occasion to write
            for group in optimizer.param_groups:
                group["lr"] = 1e-5
        optimizer.step()
        scheduler.step()
        rates.append([group["lr"] for group in optimizer.param_groups])
    return torch.tensor(rates), scheduler


def test_groups_that_a_scheduler_gets_before_the_first_step_count():
    whole, _ = scheduled(20, 20)
    grown, scheduler = scheduled(20, 4)
    assert grown == pytest.approx(whole, rel=1e-3)
    assert scheduler.controller.state_dict()["members"][0]["state"]["kappa"] == pytest.approx(0.2)


def test_a_controller_that_goes_on_with_a_run_does_not_begin_anew():
    _, scheduler = scheduled(4, 4)
    controller = copy.deepcopy(scheduler.controller)  # belongs to nobody yet
    model = stack(5)
    parts = [list(m.parameters()) for m in model if isinstance(m, nn.Linear)]
    optimizer = torch.optim.AdamW([{"params": part} for part in parts[:4]])
    again = ThermoScheduler(optimizer, 40, shape="constant", controller=controller)
    optimizer.add_param_group({"params": parts[4]})
    readings = controller.state_dict()["members"][0]["state"]["readings"]
    F.cross_entropy(model(torch.randn(32, 64)), torch.arange(32) % 10).backward()
    optimizer.step()
    again.step()
    assert controller.state_dict()["members"][0]["state"]["readings"] >= readings > 0
