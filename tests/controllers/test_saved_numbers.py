"""A saved state in which something else stands in place of a number is refused, before anything changes."""

import copy
import json
import math

import pytest
import torch

from tests.support.small_net import model, train
from thermoopt import ThermoAdamW, ThermoScheduler, autotune
from thermoopt.controllers import Chain, Controller, Cooling, DryRun, Recorder, Scales, Thermostat

T = 60
TOLD = ("log", "standing")
"""What is only told: evidence may be unknown there."""


def places(state, at=()):
    """Yield the path of every number in nested plain data, of one of each list and of each dict of layers."""
    if isinstance(state, dict):
        layers = [key for key in state if key.rpartition(".")[2] in ("weight", "bias")]
        for key, value in state.items():
            if key not in TOLD and key not in layers[1:]:
                yield from places(value, (*at, key))
    elif isinstance(state, (list, tuple)):
        for i, value in enumerate(state[:3]):
            yield from places(value, (*at, i))
    elif isinstance(state, (int, float)) and not isinstance(state, bool):
        yield at


def put(state, at, value):
    """A copy of nested data with another value in one place."""
    state = copy.deepcopy(state)
    inner = state
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    return state


def run(make, steps):
    net = model()
    held = make(net)
    opt, scheduler = held if isinstance(held, tuple) else (held, None)
    train(net, opt, steps, scheduler=scheduler)
    return scheduler or opt


def adamw(net):
    return ThermoAdamW(net.named_parameters(), controller=Recorder(autotune(T)))


def scheduled(net):
    opt = torch.optim.AdamW(net.parameters(), lr=1e-2)
    return opt, ThermoScheduler(opt, T, shape="constant", controller=autotune(T))


def dry(net):
    opt = torch.optim.SGD(net.parameters(), lr=1e-2)
    return opt, ThermoScheduler(opt, T, shape="constant", controller=DryRun(autotune(T)))


def controller_of(state):
    """The string that a checkpoint keeps a controller in, and a function that puts another in its place."""
    if "param_groups" in state:
        at = ("param_groups", 0, "thermo", "controller")
        return state["param_groups"][0]["thermo"]["controller"], lambda x: put(state, at, x)
    return state["controller"], lambda x: put(state, ("controller",), x)


def seen(state):
    """Plain data of a state dict, to compare."""
    return json.dumps(state, default=lambda x: x.tolist())


@pytest.mark.parametrize("make", [adamw, scheduled, dry])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, "0.5", True])
def test_a_controller_whose_saved_number_is_none_is_refused(make, wrong):
    state = run(make, 20).state_dict()
    fresh = run(make, 5)
    before = seen(fresh.state_dict())
    leaf, replaced = controller_of(state)
    plain = json.loads(leaf)
    found = list(places(plain))
    assert len(found) > 30
    for at in found:
        damaged = replaced(json.dumps(put(plain, at, wrong)))
        with pytest.raises(ValueError, match=r"must be a finite number, got") as error:
            fresh.load_state_dict(damaged)
        assert f"[{at[-1]!r}] must be a finite number, got {wrong!r}" in str(error.value), at
        assert seen(fresh.state_dict()) == before, at
    fresh.load_state_dict(state)
    assert seen(fresh.state_dict()) != before


@pytest.mark.parametrize("wrong", [math.nan, -math.inf, "1", None])
def test_a_group_whose_saved_number_is_none_is_refused(wrong):
    state = run(adamw, 20).state_dict()
    fresh = run(adamw, 5)
    before = seen(fresh.state_dict())
    thermo = state["param_groups"][0]["thermo"]
    for key, value in thermo.items():
        for_layers = key in ("layer_factors", "start_rms")
        if not for_layers and not isinstance(value, (int, float)):
            continue
        if key.startswith("loss_") and wrong is None:
            continue
        if for_layers and not isinstance(wrong, float):
            continue
        new = torch.full_like(value, wrong) if for_layers else wrong
        with pytest.raises(ValueError, match=rf"\['{key}'\].* must be a finite number, got"):
            fresh.load_state_dict(put(state, ("param_groups", 0, "thermo", key), new))
        assert seen(fresh.state_dict()) == before, key


@pytest.mark.parametrize("wrong", [math.nan, "1", None])
def test_a_scheduler_whose_saved_number_is_none_is_refused(wrong):
    state = run(scheduled, 20).state_dict()
    fresh = run(scheduled, 5)
    before = seen(fresh.state_dict())
    own = {key: state[key] for key in ("last_epoch", "taken", "step_count", "groups", "rms")}
    found = list(places(own))
    assert len(found) > 8
    for at in found:
        with pytest.raises(ValueError, match=rf"{at[-1]}'\] must be a finite number, got"):
            fresh.load_state_dict(put(state, at, wrong))
        assert seen(fresh.state_dict()) == before, at


@pytest.mark.parametrize("make", [adamw, dry])
@pytest.mark.parametrize("other", [Thermostat(), Cooling(T)], ids=["thermostat", "cooling"])
def test_the_state_of_another_kind_of_controller_is_refused(make, other):
    fresh = run(make, 5)
    before = seen(fresh.state_dict())
    _, replaced = controller_of(fresh.state_dict())
    damaged = replaced(json.dumps(other.state_dict()))
    with pytest.raises(ValueError, match="written by another kind of controller"):
        fresh.load_state_dict(damaged)
    assert seen(fresh.state_dict()) == before


class Best(Controller):
    """Someone's own, which starts from an infinite loss."""

    def __init__(self):
        self.best = math.inf

    def update(self, reading, step):
        return Scales()

    def state_dict(self):
        return {"best": self.best}

    def load_state_dict(self, state):
        self.best = state["best"]

    def reset(self):
        self.best = math.inf


def test_a_state_of_somebody_elses_is_theirs_to_judge():
    net = model()
    opt = ThermoAdamW(net.named_parameters(), controller=Chain(autotune(T), Best()))
    train(net, opt, 5)
    opt.load_state_dict(opt.state_dict())
    assert opt.controller.controllers[1].best == math.inf
