"""Frozen matrices that the groups hold leave autotune's run of the others as it is without them."""

import copy

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


def optimizer_of(net, held):
    named = [(name, p) for name, p in net.named_parameters() if held or p.requires_grad]
    return ThermoAdamW(named, controller=autotune(100), backend="torch", foreach=False)


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
