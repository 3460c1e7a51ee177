"""No preset and no lr leave a rate that moves a layer by more than a stated share of its size a step."""

import warnings

import pytest
import torch

from thermoopt import ThermoAdamW, ThermoScheduler, autotune
from thermoopt.controllers.gear import SHARE

T = 40
MORE = 1.25 * SHARE
"""Readings are averages and come a step late: what a layer turns by may be a little more."""


def largest_turns(controller, lr, *, lrs=None, sgd=False, steps=T):
    """Train; return the largest share of max(rms, typical rms) that any layer moved by, of each step."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(10, 32), torch.nn.GELU(), torch.nn.Linear(32, 1))
    x = torch.randn(256, 10)
    y = x[:, :1] * x[:, 1:2]
    typical = net[0].weight.detach().square().mean().sqrt().item()
    groups = [
        {"params": list(m.parameters()), "lr": r}
        for m, r in zip((net[0], net[2]), lrs or (lr, lr), strict=True)
    ]
    scheduler = None
    if sgd:
        opt = torch.optim.SGD(groups, lr=lr)
        scheduler = ThermoScheduler(opt, steps, shape="constant", controller=controller)
    else:
        opt = ThermoAdamW(groups, lr=lr, controller=controller)
    turns = []
    for t in range(steps):
        opt.zero_grad()
        i = torch.arange(32) + 32 * (t % 8)
        (net(x[i]) - y[i]).square().mean().backward()
        before = [p.detach().clone() for p in net.parameters()]
        opt.step()
        if scheduler is not None:
            scheduler.step()
        pairs = zip(before, net.parameters(), strict=True)
        turns.append(max(float(_rms(p - b) / max(_rms(b), typical)) for b, p in pairs))
    return turns


def _rms(tensor):
    return tensor.detach().square().mean().sqrt().item()


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: autotune(T, "respect_lr"), {"lr": 100.0}),
        (lambda: autotune(T, "respect_lr"), {"lr": 1e-3, "lrs": (1e-3, 10.0)}),
        (lambda: autotune(4), {"lr": 1e-3, "steps": 4}),
    ],
    ids=["lr 100", "groups 1e4 apart", "four steps"],
)
def test_a_rate_is_held_to_what_a_layer_can_bear_and_the_log_says_so(make, options):
    controller = make()
    assert max(largest_turns(controller, **options)) < MORE
    bounds = [a for a in controller.log if a.reason.startswith("bound: ")]
    assert bounds
    assert all(a.evidence["turning_bound"] == (SHARE, 0.0) for a in bounds)
    assert all(a.new < a.old for a in bounds if "lr_scale" in a.reason)


def test_of_an_optimizer_of_unknown_size_it_holds_from_the_first_reading_on():
    controller = autotune(T)
    turns = largest_turns(controller, 10.0, sgd=True)
    assert turns[0] > 1  # the lr given, of which nothing was known
    assert max(turns[2:]) < MORE
    assert any(a.reason.startswith("bound: ") for a in controller.log)


def test_a_bound_survives_a_checkpoint():
    controller, other = autotune(T, "respect_lr"), autotune(T, "respect_lr")
    largest_turns(controller, 100.0, steps=10)
    thermostat, fresh = controller.controllers[0], other.controllers[0]
    fresh.load_state_dict(thermostat.state_dict())
    assert fresh.state_dict() == thermostat.state_dict()
    assert fresh.state_dict()["least"]["group0"] < 1 / 4


def test_a_run_whose_lowest_lr_scale_gave_way_resumes_bit_for_bit():
    torch.manual_seed(0)
    start = torch.randn(6, 4)
    gradients = [torch.randn(6, 4) for _ in range(40)]

    def optimizer():
        p = torch.nn.Parameter(start.clone())
        return p, ThermoAdamW([p], lr=100.0, controller=autotune(40, "respect_lr"))

    def run(p, opt, steps):
        for t in steps:
            p.grad = gradients[t].clone()
            opt.step()

    p, opt = optimizer()
    run(p, opt, range(40))
    q, first = optimizer()
    run(q, first, range(20))
    r, again = optimizer()
    r.data.copy_(q.data)
    again.load_state_dict(first.state_dict())
    run(r, again, range(20, 40))
    assert torch.equal(p, r)
    assert [str(a) for a in opt.controller.log] == [str(a) for a in again.controller.log]


@pytest.mark.parametrize("scheduled", [False, True], ids=["ThermoAdamW", "ThermoScheduler"])
@pytest.mark.parametrize(
    ("preset", "lrs", "told"),
    [
        ("default", (1e-4, 1e-3), True),
        ("finetune", (1e-4, 1e-3), True),
        ("respect_lr", (1e-4, 1e-3), False),
        ("default", (1e-3, 1e-3), False),
    ],
)
def test_groups_that_differ_in_lr_are_told_once_where_that_has_no_effect(preset, lrs, told, scheduled):
    rates = []
    for given in (lrs, (lrs[1], lrs[1])):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        groups = [
            {"params": list(m.parameters()), "lr": lr} for m, lr in zip((net[0], net[2]), given, strict=True)
        ]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            controller, scheduler = autotune(T, preset), None
            if scheduled:
                opt = torch.optim.AdamW(groups)
                scheduler = ThermoScheduler(opt, T, shape="constant", controller=controller)
            else:
                opt = ThermoAdamW(groups, controller=controller)
            for _ in range(5):
                opt.zero_grad()
                net(torch.ones(2, 4)).square().mean().backward()
                opt.step()
                if scheduler is not None:
                    scheduler.step()
        said = [str(w.message) for w in caught if "groups differ in lr (group0 0.0001" in str(w.message)]
        assert len(said) == (told and given == lrs)
        rates.append([p.detach().clone() for p in net.parameters()])
    same = all(torch.equal(a, b) for a, b in zip(*rates, strict=True))
    assert same == (told or lrs[0] == lrs[1])
