"""Bad input: a clear error that names the argument, its value and what is allowed, before anything moves."""

import copy

import pytest
import torch

from tests.support.small_net import model, train
from thermoopt import Observer, ThermoAdamW, autotune
from thermoopt.adamw.state import GroupState
from thermoopt.controllers import Cooling, Scales


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        ({"measure_every": 0}, ValueError, ["measure_every", "0", ">= 1"]),
        ({"measure_every": -3}, ValueError, ["measure_every", "-3"]),
        ({"measure_every": 1.5}, TypeError, ["measure_every", "1.5"]),
        ({"measure_every": True}, ValueError, ["measure_every", "True"]),
        ({"ema_steps": 0.5}, ValueError, ["ema_steps", "0.5", ">= 1"]),
        ({"ema_steps": float("nan")}, ValueError, ["ema_steps", "nan"]),
        ({"ema_steps": "50"}, TypeError, ["ema_steps", "'50'"]),
        ({"backend": "cuda"}, ValueError, ["backend", "'cuda'", "'auto'", "'torch'"]),
        ({"backend": None}, ValueError, ["backend", "None"]),
        ({"controller": "autotune"}, TypeError, ["controller", "'autotune'", "Controller"]),
        ({"sinks": [3]}, TypeError, ["sinks", "3", "write"]),
    ],
)
def test_new_arguments(kwargs, error, words):
    with pytest.raises(error) as caught:
        ThermoAdamW(model().parameters(), **kwargs)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "kwargs", [{"lr": -1.0}, {"eps": -1e-8}, {"betas": (1.0, 0.9)}, {"weight_decay": -1.0}]
)
def test_torchs_own_errors_come_first(kwargs):
    with pytest.raises(ValueError, match="Invalid") as theirs:
        torch.optim.AdamW(model().parameters(), **kwargs)
    with pytest.raises(ValueError, match="Invalid") as ours:
        ThermoAdamW(model().parameters(), measure_every=0, **kwargs)
    assert str(ours.value) == str(theirs.value)


def test_two_networks_may_use_the_same_names():
    """torch's AdamW takes them; readings tell them apart by the group, within a group by position."""
    first, second, third = model(seed=0), model(seed=1), model(seed=2)
    groups = [
        {"params": first.named_parameters()},
        {"params": second.named_parameters(), "name": "critic"},
        {"params": [*third[0].named_parameters(), *third[2].named_parameters()]},
    ]
    theirs = torch.optim.AdamW([{**group, "params": list(group["params"])} for group in groups])
    own = [list(group["params"]) for group in theirs.param_groups]
    named = [
        dict(g, params=list(zip(g["param_names"], g["params"], strict=True))) for g in theirs.param_groups
    ]
    ours = ThermoAdamW(named)
    assert [group["params"] for group in ours.param_groups] == own
    for group in own:
        for p in group:
            p.grad = torch.ones_like(p)
    ours.step()
    names = ["0.weight", "0.bias", "2.weight", "2.bias"]
    by_group = [f"critic.{name}" for name in names]
    assert list(ours.reading.names) == [*names, *by_group, "weight", "bias", "group2.2", "group2.3"]
    ours.set_layer_factors({"critic.2.weight": 0.5})
    assert GroupState(ours.param_groups[1]).factors.tolist() == [1, 1, 0.5, 1]
    assert list(Observer(None, theirs).layer_types) == list(ours.reading.names)
    ours.load_state_dict(ours.state_dict())
    copy.deepcopy(ours).step()


def test_a_group_that_is_added_may_use_names_that_are_taken():
    a, b = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    opt = ThermoAdamW([("w", a)], controller=autotune(20))
    for step in range(20):
        if step == 10:
            opt.add_param_group({"params": [("w", b)], "name": "late"})
        a.grad = b.grad = torch.ones(1)
        opt.step()
    assert list(opt.reading.names) == ["w", "late.w"]
    again = ThermoAdamW(
        [{"params": [("w", a)]}, {"params": [("w", b)], "name": "late"}], controller=autotune(20)
    )
    again.load_state_dict(opt.state_dict())
    assert list(again.reading.names) == ["w", "late.w"]


def test_half_named_groups_are_torchs_error():
    a, b = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="with/without names"):
        ThermoAdamW([{"params": [("w", a)]}, {"params": [b]}])


def test_layer_factors():
    net = model()
    opt = ThermoAdamW(net.named_parameters())
    with pytest.raises(KeyError, match=r"'0\.wait'"):
        opt.set_layer_factors({"0.weight": 2.0, "0.wait": 0.5})
    with pytest.raises(ValueError, match="-1"):
        opt.set_layer_factors({"0.weight": 2.0, "0.bias": -1.0})
    assert opt.param_groups[0]["thermo"]["layer_factors"].tolist() == [1, 1, 1, 1]
    opt.set_layer_factors({"2.weight": 2.0})
    assert opt.param_groups[0]["thermo"]["layer_factors"].tolist() == [1, 1, 2, 1]


def test_layer_factors_find_their_group():
    net = model()
    opt = ThermoAdamW(
        [{"params": list(net[0].named_parameters("a"))}, {"params": list(net[2].named_parameters("b"))}]
    )
    opt.set_layer_factors({"b.bias": 3.0})
    assert opt.param_groups[0]["thermo"]["layer_factors"].tolist() == [1, 1]
    assert opt.param_groups[1]["thermo"]["layer_factors"].tolist() == [1, 3]


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["lr", "wd"])
def test_scales(bad, where):
    fields = {"lr": [1.0], "wd": [1.0]}
    fields[where] = [bad]
    with pytest.raises(ValueError, match=where):
        Scales(**fields)


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf")])
def test_layer_factors_of_scales_are_checked_where_they_are_set(bad):
    class Bad(Cooling):
        def update(self, reading, step):
            return Scales(layers={"0.bias": bad})

    net = model()
    opt = ThermoAdamW(net.named_parameters(), controller=Bad(10))
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(ValueError, match=r"layer factor of '0\.bias'"):
        train(net, opt, 1)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))


def test_names():
    net = model()
    unnamed = ThermoAdamW([{"params": net[0].parameters()}, {"params": net[2].parameters()}], measure_every=1)
    train(net, unnamed, 1)
    assert list(unnamed.reading.layers) == ["group0.0", "group0.1", "group1.0", "group1.1"]
    twins = ThermoAdamW(
        [{"params": net[0].parameters(), "name": "x"}, {"params": net[2].parameters(), "name": "x"}],
        measure_every=1,
    )
    train(net, twins, 1)
    assert twins.reading.group_names == ("x", "x.1")
