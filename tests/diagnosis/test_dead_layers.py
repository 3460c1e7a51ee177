"""dead_layer: gradients that are exactly zero from some step on, told from those that fade."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from thermoopt import Observer, ThermoAdamW, diagnose

OPTIMIZERS = {
    "ThermoAdamW": lambda model: ThermoAdamW(model.named_parameters(), lr=1e-2),
    "ThermoAdamW foreach": lambda model: ThermoAdamW(model.named_parameters(), lr=1e-2, foreach=True),
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2),
    "SGD": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
}


def dead_layers(observer):
    return [f for f in diagnose(observer).findings if f.kind == "dead_layer"]


class Branches(nn.Module):
    """Two linear branches that are added; the second can be blocked."""

    def __init__(self, width=8):
        super().__init__()
        self.one, self.two = nn.Linear(width, 1), nn.Linear(width, 1)
        self.blocked = False

    def forward(self, x):
        return self.one(x[0]) + self.two(x[1]) * (0.0 if self.blocked else 1.0)


def train(make, steps, blocked_from, noise=0.0, reports=True):
    torch.manual_seed(0)
    model = Branches()
    optimizer = make(model)
    observer = Observer(model, optimizer)
    data = torch.randn(2, 64, 8)
    target = data.sum((0, 2))[:, None] / 4
    for step in range(steps):
        model.blocked = step >= blocked_from
        optimizer.zero_grad()
        loss = F.mse_loss(model(data), target + noise * torch.randn_like(target))
        loss.backward()
        optimizer.step()
        observer.step(loss=loss if reports else None)
    return model, observer


@pytest.mark.parametrize("reports", [True, False], ids=["with losses", "without"])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_run_that_fits_its_data_to_the_end_has_no_dead_layer(make, reports):
    for steps in (250, 400, 600):
        model, observer = train(make, steps, blocked_from=steps, reports=reports)
        assert all(p.grad.abs().min() > 0 for p in model.parameters())  # fades, and is there
        found = dead_layers(observer)
        assert not [f for f in found if f.confidence == "HIGH"]
        assert not found or not reports


@pytest.mark.parametrize(
    ("name", "steps"), [*((name, 350) for name in OPTIMIZERS if name != "SGD"), ("SGD", 800)]
)
def test_a_layer_that_dies_in_mid_run_is_found_with_the_step(name, steps):
    model, observer = train(OPTIMIZERS[name], steps, blocked_from=200, noise=0.1)
    assert not model.two.weight.grad.any()
    (dead,) = dead_layers(observer)
    assert dead.confidence == "HIGH"
    assert dead.layers == ("two.weight", "two.bias")
    step = int(dead.message.partition("since step ")[2].split()[0])
    assert 189 <= step <= 201  # the last reading whose average holds a gradient, of every 10th or 11th step
    later = observer.history.layer_steps > step
    assert f"({later.sum()} readings)" in dead.message


def test_all_layers_vanish_only_where_the_loss_says_so_without_a_word():
    """A margin that all examples keep: every gradient is exactly zero, and nothing is wrong."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = ThermoAdamW(model.named_parameters(), lr=5e-2)
    told, untold = Observer(model, optimizer), Observer(model, optimizer)
    x = torch.randn(64, 4)
    y = x[:, :1].sign() * 1.0
    x[:, :1] += y
    for _ in range(400):
        optimizer.zero_grad()
        loss = F.relu(1 - y * model(x)).mean()
        loss.backward()
        optimizer.step()
        told.step(loss=loss)
    assert not model.weight.grad.any()
    assert not dead_layers(told)
    (dead,) = dead_layers(untold)
    assert dead.confidence == "MEDIUM"
    assert "loss is 0" in dead.advice


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_parameters_without_elements_are_neither_dead_nor_warned_of(make):
    torch.manual_seed(0)
    model = Branches()
    model.empty = nn.Parameter(torch.empty(0, 3))
    optimizer = make(model)
    observer = Observer(model, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(120):
            optimizer.zero_grad()
            x = torch.randn(2, 16, 8)
            (F.mse_loss(model(x), x.sum((0, 2))[:, None]) + model.empty.sum()).backward()
            optimizer.step()
        assert not dead_layers(observer)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_bias_that_cancels_in_differences_of_outputs_is_no_dead_layer(make):
    """Pairs are ranked by the difference of their outputs, in which the last bias cancels."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = make(model)
    observer = Observer(model, optimizer)
    for step in range(900):
        a, b = torch.randn(2, 32, 4)
        sign = (a[:, :1] - b[:, :1]).sign()
        loss = F.softplus(-sign * (model(a) - model(b))).mean()
        optimizer.zero_grad()
        loss.backward()
        model[2].bias.grad.zero_()  # sums of plus and minus the same numbers, but for rounding
        if step >= 300:
            model[0].bias.grad.zero_()
        optimizer.step()
        observer.step(loss=loss)
        if step == 299:
            (shift,) = dead_layers(observer)
            assert shift.confidence == "LOW"
            assert shift.layers == ("2.bias",)
    (dead,) = dead_layers(observer)
    assert dead.confidence == "HIGH"  # one that dies later is
    assert dead.layers == ("0.bias",)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_shift_of_an_energy_is_no_dead_layer(make):
    """A Hamiltonian enters its loss by derivatives: autograd gives its last bias no gradient at all."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = make(model)
    observer = Observer(model, optimizer)
    for _ in range(200):
        x = torch.randn(64, 2, requires_grad=True)
        (force,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        optimizer.zero_grad()
        loss = F.mse_loss(force, x.detach())
        loss.backward()
        optimizer.step()
        observer.step(loss=loss)
    assert model[2].bias.grad is None
    (finding,) = dead_layers(observer)
    assert (finding.layers, finding.confidence) == (("2.bias",), "LOW")


def test_a_whole_layer_without_a_gradient_is_still_found():
    torch.manual_seed(0)
    model = nn.ModuleDict({"used": nn.Linear(4, 1), "unused": nn.Linear(4, 1)})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    observer = Observer(model, optimizer)
    for _ in range(200):
        optimizer.zero_grad()
        loss = model["used"](torch.randn(32, 4)).square().mean()
        loss.backward()
        optimizer.step()
        observer.step(loss=loss)
    (finding,) = dead_layers(observer)
    assert (finding.layers, finding.confidence) == (("unused.weight", "unused.bias"), "MEDIUM")
