"""Names of layers: without wrappers' prefixes, from a model where there is one; state in torch's order."""

import copy

import pytest
import torch

from tests.support import small_net
from tests.support.controllers import Stateless
from thermoopt import Observer, ThermoAdamW, ThermoScheduler, autotune
from thermoopt.account import plain_name, with_plain_names
from thermoopt.controllers import Scales

PLAIN = ["0.weight", "0.bias", "2.weight", "2.bias"]
X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def model(scales=(1.0, 1.0)):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    with torch.no_grad():
        net[0].weight *= scales[0]
        net[2].weight *= scales[1]
    return net


def step(net, optimizer, times=1):
    for _ in range(times):
        optimizer.zero_grad()
        net(X).square().mean().backward()
        optimizer.step()


class Wrapped(torch.nn.Module):
    """What DDP looks like to ``named_parameters``."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


def wrapped(how):
    net = model()
    if how in ("compiled", "both"):
        net = torch.compile(net, backend="eager")
    if how == "inside":
        from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

        net[0] = checkpoint_wrapper(torch.compile(net[0], backend="eager"))
    return Wrapped(net) if how in ("ddp", "both") else net


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("module.a.weight", "a.weight"),
        ("_module.a.weight", "a.weight"),  # Opacus
        ("module._orig_mod.module.a", "a"),
        ("a._orig_mod.b._checkpoint_wrapped_module.weight", "a.b.weight"),
        ("_fsdp_wrapped_module.a._fsdp_wrapped_module.weight", "a.weight"),
        ("a.module.weight", "a.module.weight"),  # a model's own word
        ("module", "module"),
        ("_orig_mod", "_orig_mod"),
        ("modules.a", "modules.a"),
    ],
)
def test_plain_names(name, plain):
    assert plain_name(name) == plain


def test_saved_names():
    saved = {
        "module.a": [1.0, "module.b"],
        "both": ["module.c", "c"],
        "x": {"module.d": 1, "d": 2},
        "n": None,
    }
    assert with_plain_names(saved) == {
        "a": [1.0, "b"],
        "both": ["module.c", "c"],
        "x": {"module.d": 1, "d": 2},
        "n": None,
    }


@pytest.mark.parametrize("how", ["ddp", "compiled", "both", "inside"])
def test_wrappers_add_nothing_to_the_names(how):
    net = wrapped(how)
    raw = [name for name, _ in net.named_parameters()]
    assert raw != PLAIN
    optimizer = ThermoAdamW(net.named_parameters(), measure_every=1)
    adamw = torch.optim.AdamW(net.named_parameters())
    unnamed = torch.optim.AdamW(net.parameters())
    observers = [Observer(None, adamw, 1), Observer(net, unnamed, 1)]
    for each in (optimizer, adamw, unnamed):
        step(net, each)
    assert list(optimizer.reading.names) == PLAIN
    assert optimizer.param_groups[0]["param_names"] == raw  # torch's own, as given
    for observer in observers:
        assert (
            list(observer.reading.names) == list(observer.layer_types) == list(observer.start_norms) == PLAIN
        )


def test_names_that_differ_only_by_a_prefix_stay_apart():
    net = Wrapped(model())
    net.register_module("0", torch.nn.Linear(4, 3))
    net.a = torch.nn.Linear(1, 1)
    names = [name for name, _ in net.named_parameters()]
    expected = ["module.0.weight", "module.0.bias", "2.weight", "2.bias", "0.weight", "0.bias"]
    named = [(name, p) for name, p in net.named_parameters() if not name.startswith("a.")]
    optimizer = ThermoAdamW(named)
    assert len(names) == 8
    assert list(Observer(None, optimizer).layer_types) == expected
    # one group after another: names are never shared
    apart = ThermoAdamW([{"params": named[:4]}, {"params": named[4:]}])
    assert list(Observer(None, apart).layer_types) == [*PLAIN, "group1.0.weight", "group1.0.bias"]
    same = ThermoAdamW([{"params": [("a", net.a.weight)]}, {"params": [("a", net.a.bias)]}])
    assert list(Observer(None, same).layer_types) == ["a", "group1.a"]


def test_groups_and_layer_factors():
    net = Wrapped(model())
    inner = net.module
    groups = [
        {"params": [("module.0.weight", inner[0].weight)], "name": "module.0"},
        {"params": [("module.2.weight", inner[2].weight)], "name": "module.2"},
    ]
    optimizer = ThermoAdamW(groups, lr=1.0, measure_every=1)
    optimizer.set_layer_factors({"module.0.weight": 0.5, "2.weight": 0.25})
    step(net, optimizer)
    assert optimizer.reading.group_names == ("0", "2")
    assert {name: q.lr_eff for name, q in optimizer.reading.layers.items()} == {
        "0.weight": 0.5,
        "2.weight": 0.25,
    }
    with pytest.raises(KeyError, match=r"1\.weight"):
        optimizer.set_layer_factors({"1.weight": 1.0})


def test_a_checkpoint_saved_with_prefixes_goes_on_as_it_would_have():
    """As versions wrote it that took names as they came: the controller's state held them."""
    net = Wrapped(model(scales=(1.0, 2.0)))
    optimizer = ThermoAdamW(net.named_parameters(), controller=autotune(200))
    step(net, optimizer, 20)
    saved, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(net.state_dict())
    held = saved["param_groups"][0]["thermo"]["controller"]
    text = held if isinstance(held, str) else repr(held)
    assert "module." not in text
    for name in PLAIN:
        text = text.replace(f'"{name}"', f'"module.{name}"')
    assert "module.0.weight" in text
    saved["param_groups"][0]["thermo"]["controller"] = text
    step(net, optimizer, 20)
    again = model()
    again.load_state_dict({plain_name(name): x for name, x in weights.items()})
    resumed = ThermoAdamW(again.named_parameters(), controller=autotune(200))
    resumed.load_state_dict(saved)
    step(again, resumed, 20)
    for a, b in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert resumed.controller.state_dict() == optimizer.controller.state_dict()


NAMED = {"named": lambda net: net.named_parameters(), "nameless": lambda net: net.parameters()}


@pytest.mark.parametrize("optimizer_first", [True, False])
@pytest.mark.parametrize("scheduled", [False, True], ids=["ThermoAdamW", "ThermoScheduler"])
@pytest.mark.parametrize(("before", "after"), [("named", "nameless"), ("nameless", "named")])
def test_a_run_goes_on_with_names_that_it_was_saved_without(before, after, scheduled, optimizer_first):
    """And without those that it had: a name decides nothing, so the bits are those of the whole run."""

    def build(net, names):
        if not scheduled:
            return ThermoAdamW(NAMED[names](net), controller=autotune(200)), None
        adamw = torch.optim.AdamW(NAMED[names](net))
        return adamw, ThermoScheduler(adamw, 200, shape="constant", controller=autotune(200))

    net = small_net.model()
    optimizer, scheduler = build(net, before)
    small_net.train(net, optimizer, 40, scheduler=scheduler)
    weights, state = copy.deepcopy(net.state_dict()), copy.deepcopy(optimizer.state_dict())
    plan = None if scheduler is None else copy.deepcopy(scheduler.state_dict())
    small_net.train(net, optimizer, 40, scheduler=scheduler, start=40)

    again = small_net.model(seed=1)
    resumed, follower = build(again, after)
    if follower is not None and not optimizer_first:
        follower.load_state_dict(plan)
    resumed.load_state_dict(state)
    if follower is not None and optimizer_first:
        follower.load_state_dict(plan)
    again.load_state_dict(weights)
    small_net.train(again, resumed, 40, scheduler=follower, start=40)
    for a, b in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    states = [(s or o).controller.state_dict() for o, s in ((optimizer, scheduler), (resumed, follower))]
    held = [state["members"][0]["state"]["cohorts"] for state in states]
    assert held[0] == held[1]


@pytest.mark.parametrize("track", [(), ("distance",)])
def test_a_model_names_the_layers_of_a_thermoadamw_without_names(track):
    net, plain = model(), model()
    optimizer, alone = (ThermoAdamW(n.parameters(), measure_every=1, ema_steps=5) for n in (net, plain))
    observer = Observer(net, optimizer, track=track)
    step(net, optimizer, 10)
    step(plain, alone, 10)
    for a, b in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
    assert list(observer.reading.names) == list(observer.layer_types) == list(observer.start_norms) == PLAIN
    assert list(observer.start().names) == PLAIN
    assert observer.history.layer_names == PLAIN
    assert list(observer.step(torch.tensor(1.0)).names) == PLAIN
    own = optimizer.history
    assert own.layer_names == [f"group0.{i}" for i in range(4)]
    assert (observer.history.layers("sigma") == own.layers("sigma")).all()
    assert observer.reading.layers["2.bias"].sigma == optimizer.reading.layers["group0.3"].sigma
    observer.load_state_dict(
        {**observer.state_dict(), "start_norms": {"group0.1": 7.0, "module.2.bias": 3.0}}
    )
    assert list(observer.start_norms) == PLAIN
    assert (observer.start_norms["0.bias"], observer.start_norms["2.bias"]) == (7.0, 3.0)


class Factors(Stateless):
    """Gives one layer a factor, by the name that it was told."""

    def attach(self, start):
        self.names = start.names

    def update(self, reading, step):
        return Scales(layers={self.names[2]: 0.5})


def test_a_scheduler_finds_the_layers_that_a_model_named():
    net = model()
    optimizer = ThermoAdamW(net.parameters(), measure_every=1)
    controller = Factors()
    scheduler = ThermoScheduler(Observer(net, optimizer), optimizer, controller=controller, total_steps=10)
    step(net, optimizer)
    scheduler.step()
    assert list(controller.names) == PLAIN
    assert optimizer.param_groups[0]["thermo"]["layer_factors"].tolist() == [1.0, 1.0, 0.5, 1.0]


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_state_is_in_the_order_of_the_groups_whatever_the_factors(backend):
    nets = [model(), model()]
    optimizers = [
        ThermoAdamW(nets[0].parameters(), backend=backend),
        torch.optim.AdamW(nets[1].parameters(), foreach=True),
    ]
    optimizers[0].set_layer_factors({f"group0.{i}": x for i, x in enumerate((1.0, 2.0, 1.0, 2.0))})
    for net, optimizer in zip(nets, optimizers, strict=True):
        net[0].bias.requires_grad_(False)
        step(net, optimizer)
        assert list(optimizer.state_dict()["state"]) == [0, 2, 3]
        net[0].bias.requires_grad_(True)
        step(net, optimizer)
    ours, torchs = (optimizer.state_dict()["state"] for optimizer in optimizers)
    assert list(ours) == list(torchs) == [0, 2, 3, 1]  # as torch: by group, newcomers last
    assert [list(s) for s in ours.values()] == [list(s) for s in torchs.values()]
