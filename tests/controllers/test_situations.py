"""autotune where its law was not chosen: what once ran away, stood still or was handed another's rate."""

import math
import warnings
from itertools import pairwise

import pytest
import torch

from thermoopt import ThermoAdamW, ThermoScheduler, autotune
from thermoopt.controllers import Chain, Cooling, Thermostat


def mlp(*widths, act=torch.nn.GELU):
    layers = []
    for a, b in pairwise(widths[:-1]):
        layers += [torch.nn.Linear(a, b), act()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(widths[-2], widths[-1]))


def actions(opt):
    return [a for a in opt.controller.log if a.kind == "lr"]


def fit(net, opt, steps, x, y, *, batch=32, after=None, start=0, total=None, seed=1):
    """Train on mean squares; ``after`` is the batch of the second half. Returns the largest training loss."""
    rng, worst = torch.Generator().manual_seed(seed), 0.0
    for t in range(start, start + steps):
        n = after if after and t >= (total or steps) // 2 else batch
        i = torch.randint(0, len(x), (n,), generator=rng)
        opt.zero_grad()
        loss = (net(x[i]) - y[i]).square().mean()
        loss.backward()
        opt.step()
        worst = max(worst, loss.item())
    return worst


def product(n=1024, noise=0.0):
    rng = torch.Generator().manual_seed(5)
    x = torch.randn(n, 10, generator=rng)
    return x, x[:, :1] * x[:, 1:2] + noise * torch.randn(n, 1, generator=rng)


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_an_mlp_that_interpolates_does_not_run_away(decay):
    """Normal features, labels without noise: the loss once ended at 110 to 516."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(512, 16, generator=rng)
    y = (x @ torch.randn(16, 4, generator=rng)).argmax(1)
    torch.manual_seed(0)
    net = mlp(16, 32, 4, act=torch.nn.ReLU)
    opt = ThermoAdamW(net.named_parameters(), weight_decay=decay, controller=autotune(300))
    peak = 0.0
    for _ in range(300):
        i = torch.randint(0, 512, (32,), generator=rng)
        opt.zero_grad()
        torch.nn.functional.cross_entropy(net(x[i]), y[i]).backward()
        opt.step()
        peak = max(peak, opt.reading.total.lr_eff)
    assert torch.nn.functional.cross_entropy(net(x), y).item() < 0.03  # AdamW at 3e-2
    assert peak < 0.2


@pytest.mark.parametrize("std", [1e-4, 1e-6, 0.0])
@pytest.mark.parametrize("preset", ["default", "finetune", "respect_lr"])
def test_a_readout_that_starts_near_zero_learns(std, preset):
    torch.manual_seed(0)
    x, y = product(256)
    net = mlp(10, 32, 32, 1, act=torch.nn.Tanh)
    torch.nn.init.normal_(net[4].weight, std=std)
    opt = ThermoAdamW(net.named_parameters(), lr=3e-3, controller=autotune(150, preset=preset))
    worst = fit(net, opt, 150, x, y, batch=128)
    assert worst < 5
    assert (net(x) - y).square().mean().item() < 0.5


def test_a_smaller_batch_lowers_the_rate():
    torch.manual_seed(0)
    x, y = product(4096, noise=0.5)
    net = mlp(10, 64, 64, 1)
    opt = ThermoAdamW(net.named_parameters(), controller=autotune(300))
    fit(net, opt, 300, x, y, batch=256, after=8)
    lowered = [a for a in actions(opt) if a.new < a.old]
    assert any("noise leapt" in a.reason and 150 < a.step < 180 for a in lowered)
    assert (net(x) - y).square().mean().item() < 0.5
    calm = mlp(10, 64, 64, 1)
    opt = ThermoAdamW(calm.named_parameters(), controller=autotune(300))
    fit(calm, opt, 300, x, y, batch=256)
    assert not any("noise leapt" in a.reason for a in actions(opt))


@pytest.mark.parametrize("how", ["added", "unfrozen"])
def test_newcomers_start_by_themselves(how):
    """They once were handed the rate that others had earned: a body turned by a radian a step."""
    torch.manual_seed(0)
    total = 200
    body, head = torch.nn.Linear(10, 32), torch.nn.Linear(32, 1)
    x, y = product(512)
    net = torch.nn.Sequential(body, torch.nn.Tanh(), head)
    names = dict(net.named_parameters())
    late = ("0.weight", "0.bias")
    first = [(n, p) for n, p in names.items() if how == "unfrozen" or n not in late]
    opt = ThermoAdamW(first, controller=autotune(total))
    body.requires_grad_(False)
    fit(net, opt, 80, x, y)
    for cohort in opt.controller.controllers[0]._cohorts.values():  # as if the head had earned a great rate
        cohort.lever.value = cohort.lever.target = 5.0
    body.requires_grad_(True)
    if how == "added":
        opt.add_param_group({"params": [(n, names[n]) for n in late], "name": "body"})
    rates = []
    for t in range(80, 84):
        fit(net, opt, 1, x, y, start=t)
        rates.append(opt.reading.layers["0.weight"].lr_eff)
    start = math.sqrt(3 / total)
    unit = opt.controller.controllers[0].state_dict()["units"]["0.weight"][0]
    assert all(0 < rate <= 0.3 * start * unit for rate in rates)  # the first steps of 20 of its warm-up
    assert rates[-1] > 2 * rates[1]  # it warms up
    fit(net, opt, 80, x, y, start=84)
    assert {a.group for a in actions(opt)} <= {"all", "all@82", "all@83", "all@81"}
    assert all(torch.isfinite(p).all() for p in net.parameters())


def test_idle_rows_do_not_dilute_the_distance():
    """One row of a table trained: it travels as if it were alone."""
    rng = torch.Generator().manual_seed(0)
    a = torch.randn(32, 64, generator=rng) / 4
    target = torch.tanh((0.06 * torch.randn(32, generator=rng)) @ a)
    rows = torch.randn(400, 32, generator=rng) * 0.02
    found = {}
    for n in (1, 400):
        table = torch.nn.Parameter(rows[-n:].clone())
        opt = ThermoAdamW([("emb", table)], weight_decay=0.0, controller=autotune(150, preset="finetune"))
        for _ in range(150):
            opt.zero_grad()
            (torch.tanh(table[-1] @ a) - target).square().mean().backward()
            opt.step()
        found[n] = [a.new for a in actions(opt)]
    assert len(found[400]) > 2
    assert found[400][-1] == pytest.approx(found[1][-1], rel=0.3)


@pytest.mark.parametrize("schedule", [lambda t: 1 + t / 10, lambda t: 0.04 + min(t, 9) / 3, lambda t: 0.9**t])
def test_an_outside_schedule_beside_autotune_is_warned_of_once(schedule):
    torch.manual_seed(0)
    x, y = product()
    net = mlp(10, 32, 1)
    groups = [{"params": [p], "param_names": [n]} for n, p in net.named_parameters()]
    opt = ThermoAdamW(groups, controller=autotune(20))
    outside = torch.optim.lr_scheduler.LambdaLR(opt, schedule)
    for again in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for t in range(10):
                fit(net, opt, 1, x, y, start=t)
                outside.step()
        told = [str(w.message) for w in caught if "outside" in str(w.message)]
        assert len(told) == (0 if again else 1)


@pytest.mark.parametrize("top", [0.1, 10.0])
def test_an_outside_schedule_lowers_but_does_not_overheat(top):
    torch.manual_seed(0)
    x, y = product()
    net = mlp(10, 32, 1)
    opt = ThermoAdamW(
        net.named_parameters(), controller=Chain(Thermostat(total_steps=150), Cooling(150, "constant"))
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, top, total_steps=151)
    rates = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for t in range(150):
            fit(net, opt, 1, x, y, start=t)
            schedule.step()
            rates.append(opt.reading.total.lr_eff)
    assert sum("absolute rates" in str(w.message) for w in caught) == 1
    highest = max(a.new for a in actions(opt)) if actions(opt) else 0.0
    unit = opt.controller.controllers[0]._units.group[0]
    assert max(rates) <= 1.05 * max(highest, math.sqrt(3 / 150)) * unit
    assert rates[-1] < 0.01 * max(rates)
    assert all(torch.isfinite(p).all() for p in net.parameters())


def test_no_layer_turns_by_more_than_its_share():
    """Whoever sets the rate, here a law that overestimates 300-fold: the bound holds it and is in the log."""
    torch.manual_seed(0)
    x, y = product()
    net = mlp(10, 32, 1)
    thermostat = Thermostat("distance", total_steps=200, k=300.0)
    opt = ThermoAdamW(net.named_parameters(), controller=Chain(thermostat))
    shares = []
    for t in range(60):
        fit(net, opt, 1, x, y, start=t)
        q = opt.reading.layers["0.weight"]
        shares.append(q.lr_eff * q.update_norm / q.param_norm)
    assert any(a.reason.startswith("bound:") for a in actions(opt))
    assert all("turning_bound" in a.evidence for a in actions(opt) if a.reason.startswith("bound:"))
    assert max(shares) < 0.3


def test_cooling_alone_triggers_no_action():
    """Pure noise at a rate that falls: r rises, and nothing was learned."""
    p = torch.nn.Parameter(torch.randn(60, 60, generator=torch.Generator().manual_seed(0)) / 13)
    opt = ThermoAdamW([p], weight_decay=0.0, controller=autotune(300))
    rng = torch.Generator().manual_seed(1)
    for _ in range(300):
        p.grad = torch.randn(p.shape, generator=rng)
        opt.step()
    assert actions(opt) == []


def test_every_action_tells_the_rates_and_equilibrium():
    torch.manual_seed(0)
    x, y = product()
    net = mlp(10, 32, 1)
    opt = ThermoAdamW(net.named_parameters(), controller=autotune(150, preset="finetune"))
    fit(net, opt, 150, x, y)
    assert len(actions(opt)) > 1
    for action in actions(opt):
        e = {name: value for name, (value, _) in action.evidence.items()}
        assert e["rate_held"] == action.old
        assert e["phi"] > 0 < e["phi_star"]
    (standing,) = opt.controller.controllers[0].standing.values()
    assert standing.held > 0
    assert standing.phi / standing.phi_star == pytest.approx(opt.reading.total.r, rel=0.3)


def test_an_optimizer_that_finds_its_own_step_size_is_refused():
    class Own(torch.optim.SGD):
        """Holds its own estimate, as Prodigy and D-Adaptation do."""

        def __init__(self, params):
            super().__init__(params, lr=1.0)
            for group in self.param_groups:
                group["d"] = 1e-6

    opt = Own([torch.nn.Parameter(torch.ones(3))])
    with pytest.raises(ValueError, match="Own finds its own step size"):
        ThermoScheduler(opt, 10, shape="constant", controller=autotune(10))
    ThermoScheduler(opt, 10, shape="constant", controller=Thermostat("coherence", total_steps=10))


def test_a_checkpoint_of_another_law_is_refused_in_words():
    p = torch.nn.Parameter(torch.ones(3, 3))
    old = ThermoAdamW([p], controller=Thermostat("diffusion", total_steps=20))
    p.grad = torch.ones_like(p)
    old.step()
    new = ThermoAdamW([p], controller=Thermostat(total_steps=20))
    with pytest.raises(ValueError, match=r"Thermostat\('diffusion'\).*delete 'controller'"):
        new.load_state_dict(old.state_dict())
    before = {"begun": 3, "units": {}, "levers": {}, "spread": {}, "sizes": {}, "log": []}
    with pytest.raises(ValueError, match=r"Thermostat older than version 0\.2"):
        Thermostat(total_steps=20).load_state_dict(before)
