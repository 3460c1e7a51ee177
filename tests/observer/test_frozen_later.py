"""A layer that gets no more gradients leaves readings, totals and diagnosis, and may come back."""

import numpy as np
import pytest
import torch

from thermoopt import Observer, ThermoAdamW, autotune, diagnose

EMA = 20


def net():
    torch.manual_seed(0)
    return torch.nn.ModuleDict({name: torch.nn.Linear(6, 6) for name in ("a", "b", "c")})


def make(kind, model):
    if kind == "thermo":
        return ThermoAdamW(model.named_parameters(), lr=1e-3, ema_steps=EMA, measure_every=1)
    if kind == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=1e-3)
    return torch.optim.SGD(model.parameters(), lr=1e-2)


def step(model, optimizer, layers, observer=None):
    optimizer.zero_grad()
    x = torch.randn(8, 6)
    loss = sum((model[name](x) - x.flip(1)).square().mean() for name in layers)
    loss.backward()
    optimizer.step()
    if observer is not None:
        observer.step(loss=loss)


@pytest.mark.parametrize("kind", ["thermo", "adamw", "sgd"])
def test_totals_are_of_the_layers_that_move(kind):
    model = net()
    optimizer = make(kind, model)
    observer = Observer(model, optimizer, log_every=1, ema_steps=EMA)
    for _ in range(40):
        step(model, optimizer, "abc", observer)
    before = observer.reading
    for _ in range(EMA):
        step(model, optimizer, "bc", observer)
    assert "a.weight" in observer.reading.layers  # as long as the average still remembers it
    step(model, optimizer, "bc", observer)
    reading = observer.reading
    assert set(reading.layers) == {"b.weight", "b.bias", "c.weight", "c.bias"}
    assert reading.total.numel == 2 * 42
    for name in ("sigma", "phi"):
        moving = sum(getattr(q, name) for q in reading.layers.values())
        assert getattr(reading.total, name) == pytest.approx(moving, rel=1e-12)
        assert getattr(reading.groups[0], name) == pytest.approx(moving, rel=1e-12)
    assert np.isnan(reading.layer_array("sigma")[:2]).all()
    assert before.total.numel == 3 * 42
    step(model, optimizer, "abc", observer)
    assert observer.reading.total.numel == 3 * 42


def test_its_absence_is_a_finding_unless_it_is_frozen():
    for frozen in (False, True):
        model = net()
        optimizer = make("thermo", model)
        observer = Observer(model, optimizer)
        for t in range(200):
            if frozen and t == 60:
                model["a"].requires_grad_(False)
            step(model, optimizer, "abc" if t < 60 else "bc", observer)
        dead = [f for f in diagnose(observer).findings if f.kind == "dead_layer"]
        assert bool(dead) == (not frozen)
        if dead:
            assert dead[0].layers == ("a.weight", "a.bias")
            since = int(dead[0].message.split("since step ")[1].split()[0])
            assert 60 <= since <= 60 + EMA + 4  # a reading every fourth step
            assert dead[0].confidence == "MEDIUM"


@pytest.mark.parametrize("kind", ["thermo", "adamw", "sgd"])
def test_a_gradient_that_turned_to_zero_is_found(kind):
    model = net()
    optimizer = make(kind, model)
    observer = Observer(model, optimizer, log_every=1, ema_steps=EMA)
    for t in range(200):
        optimizer.zero_grad()
        x = torch.randn(8, 6)
        loss = sum((model[k](x) * (t < 100 or k != "a") - x.flip(1)).square().mean() for k in "abc")
        loss.backward()
        optimizer.step()
        observer.step(loss=loss)
    (dead,) = [f for f in diagnose(observer).findings if f.kind == "dead_layer"]
    assert dead.layers == ("a.weight", "a.bias")
    assert dead.confidence == "HIGH"
    assert 96 <= int(dead.message.split("since step ")[1].split()[0]) <= 108


def test_a_controller_decides_on_what_moves():
    seen = []

    model = net()
    controller = autotune(200)
    update = controller.update
    controller.update = lambda reading, step: seen.append(reading) or update(reading, step)
    optimizer = ThermoAdamW(model.named_parameters(), controller=controller)
    for t in range(120):
        step(model, optimizer, "abc" if t < 40 else "bc")
    assert [r for r in seen if r is not None][-1].total.numel == 2 * 42
