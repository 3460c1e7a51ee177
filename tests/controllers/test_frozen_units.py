"""Frozen matrices change nothing in autotune's run of the others; adapters beside them count as new."""

import copy
import math

import pytest
import torch

from thermoopt import ThermoAdamW, autotune

X = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
Y = torch.sin(X[:, :1])


class LoRA(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.base = torch.nn.Linear(16, 32)
        self.head = torch.nn.Linear(32, 1)
        self.A = torch.nn.Parameter(torch.randn(4, 16) / 4)
        self.B = torch.nn.Parameter(torch.zeros(32, 4))
        with torch.no_grad():
            self.base.weight *= 6
        for p in self.base.parameters():
            p.requires_grad_(False)

    def forward(self, x):
        return self.head(torch.tanh(self.base(x) + (x @ self.A.T) @ self.B.T))


def train(net, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        (net(X) - Y).square().mean().backward()
        optimizer.step()


def optimizer_of(net, held, preset="default"):
    named = [(name, p) for name, p in net.named_parameters() if held or p.requires_grad]
    return ThermoAdamW(named, controller=autotune(100, preset), backend="torch", foreach=False)


def test_the_run_is_the_same_with_and_without_the_frozen_matrices():
    runs = []
    for held in (False, True):
        net = LoRA()
        optimizer = optimizer_of(net, held)
        train(net, optimizer, 40)
        runs.append((net, {name: q.lr_eff for name, q in optimizer.reading.layers.items()}))
    (a, rates), (b, held_rates) = runs
    assert {name: held_rates[name] for name in rates} == rates
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q)


def test_an_unfrozen_layer_changes_no_units_when_a_run_resumes():
    net = LoRA()
    optimizer = optimizer_of(net, held=True)
    train(net, optimizer, 20)
    for p in net.base.parameters():
        p.requires_grad_(True)
    train(net, optimizer, 20)
    saved, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(net.state_dict())
    train(net, optimizer, 10)
    again = LoRA()
    again.load_state_dict(weights)
    for p in again.base.parameters():
        p.requires_grad_(True)
    resumed = optimizer_of(again, held=True)
    resumed.load_state_dict(saved)
    train(again, resumed, 10)
    for p, q in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


def rate(optimizer):
    return optimizer.controller.controllers[0].state_dict()["cohorts"]["all"]["lever"]["value"]


@pytest.mark.parametrize("frozen_too", [True, False])
def test_finetune_starts_adapters_like_a_new_network_and_pretrained_weights_low(frozen_too):
    net = LoRA()
    adapters = optimizer_of(net, frozen_too, "finetune")
    train(net, adapters, 1)
    assert rate(adapters) == pytest.approx(math.sqrt(3 / 100))
    trained = LoRA()
    trained.B.data.normal_(generator=torch.Generator().manual_seed(0))  # as if it had been trained before
    low = optimizer_of(trained, frozen_too, "finetune")
    train(trained, low, 1)
    assert rate(low) == pytest.approx(0.05 * math.sqrt(3 / 100))
    head = torch.nn.Sequential(*(torch.nn.Linear(16, 16) for _ in range(4)), torch.nn.Linear(16, 1))
    torch.nn.init.zeros_(head[-1].weight)  # one new layer on a network that is fine-tuned in full
    full = optimizer_of(head, frozen_too, "finetune")
    train(head, full, 1)
    assert rate(full) == pytest.approx(0.05 * math.sqrt(3 / 100))


def test_finetune_starts_a_head_alone_like_a_new_network_and_the_body_that_joins_low():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(16, 128), torch.nn.Tanh(), torch.nn.Linear(128, 1, bias=False))
    net[0].requires_grad_(False)
    net.table = torch.nn.Parameter(torch.randn(200, 64), requires_grad=False)  # makes the head a small part
    optimizer = optimizer_of(net, True, "finetune")
    train(net, optimizer, 1)
    assert rate(optimizer) == pytest.approx(math.sqrt(3 / 100))
    train(net, optimizer, 19)
    net[0].requires_grad_(True)
    train(net, optimizer, 12)
    joined = optimizer.controller.controllers[0].state_dict()["cohorts"]
    (late,) = (saved["lever"]["value"] for name, saved in joined.items() if name != "all")
    assert late < 0.1 * math.sqrt(3 / 100) < rate(optimizer)


def test_adapters_go_on_as_adapters_after_a_resume_and_after_a_reset():
    net = LoRA()
    optimizer = optimizer_of(net, True, "finetune")
    train(net, optimizer, 20)
    saved, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(net.state_dict())
    train(net, optimizer, 60)
    again = LoRA()
    again.load_state_dict(weights)
    resumed = optimizer_of(again, True, "finetune")  # B is not 0 any more
    resumed.load_state_dict(saved)
    train(again, resumed, 60)
    for p, q in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)
    thermostat = optimizer.controller.controllers[0]
    assert rate(optimizer) >= math.sqrt(3 / 100)
    thermostat.reset()
    assert rate(optimizer) == pytest.approx(math.sqrt(3 / 100))
