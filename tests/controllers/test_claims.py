"""One controller serves one optimizer; a second run needs a reset."""

import copy

import pytest
import torch

from thermoopt import ThermoAdamW, ThermoScheduler, autotune
from thermoopt.account import as_leaf, from_leaf
from thermoopt.controllers import Chain, Cooling, Recorder, Thermostat


def run(net, steps, controller, via="adamw"):
    """Return an optimizer that has taken so many steps."""
    if via == "adamw":
        opt, schedule = ThermoAdamW(net.parameters(), controller=controller, backend="torch"), None
    else:
        opt = torch.optim.SGD(net.parameters(), lr=0.1)
        schedule = ThermoScheduler(opt, 60, shape="constant", controller=controller)
    step(net, opt, steps, schedule)
    return opt


def step(net, opt, steps, schedule=None):
    for _ in range(steps):
        opt.zero_grad()
        net(torch.ones(4, 3)).square().mean().backward()
        opt.step()
        if schedule is not None:
            schedule.step()


@pytest.mark.parametrize("via", ["adamw", "scheduler"])
@pytest.mark.parametrize("make", [lambda: autotune(60), lambda: Recorder(autotune(60))])
def test_a_second_run_is_refused_until_reset(via, make):
    controller = make()
    first = run(torch.nn.Linear(3, 2), 5, controller, via)
    with pytest.raises(ValueError, match=r"another optimizer's run.*reset\(\)"):
        run(torch.nn.Linear(3, 2), 5, controller, via)
    del first  # its run is still in the controller
    with pytest.raises(ValueError, match=r"another optimizer's run.*reset\(\)"):
        run(torch.nn.Linear(3, 2), 5, controller, via)
    controller.reset()
    torch.manual_seed(0)
    again = run(torch.nn.Linear(3, 2), 5, controller, via)
    torch.manual_seed(0)
    fresh = run(torch.nn.Linear(3, 2), 5, make(), via)
    for a, b in zip(again.param_groups[0]["params"], fresh.param_groups[0]["params"], strict=True):
        assert torch.equal(a, b)


def test_two_live_optimizers_do_not_share():
    controller = autotune(60)
    nets = [torch.nn.Linear(3, 2) for _ in range(2)]
    first, second = (ThermoAdamW(net.parameters(), controller=controller) for net in nets)
    with pytest.raises(ValueError, match="given to another optimizer"):
        step(nets[0], first, 1)
    step(nets[1], second, 3)


def test_a_part_of_two_chains_is_seen():
    part = Thermostat(total_steps=60)
    run(torch.nn.Linear(3, 2), 3, Chain(part, Cooling(60)))
    with pytest.raises(ValueError, match="Thermostat holds another"):
        run(torch.nn.Linear(3, 2), 3, Chain(part, Cooling(60)))


def test_copies_and_resumed_optimizers_go_on():
    net = torch.nn.Linear(3, 2)
    opt = run(net, 5, autotune(60))
    twin_net, twin = copy.deepcopy((net, opt))
    step(twin_net, twin, 3)
    step(net, opt, 3)
    for a, b in zip(net.parameters(), twin_net.parameters(), strict=True):
        assert torch.equal(a, b)
    other = torch.nn.Linear(3, 2)
    resumed = ThermoAdamW(other.parameters(), controller=autotune(60), backend="torch")
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    other.load_state_dict(net.state_dict())
    step(net, opt, 2)
    step(other, resumed, 2)
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("total", "error"), [("100", TypeError), (torch.tensor(5), TypeError), (2.5, ValueError), (0, ValueError)]
)
@pytest.mark.parametrize("make", [autotune, Cooling, lambda total: Thermostat(total_steps=total)])
def test_what_is_no_length_is_named(make, total, error):
    with pytest.raises(error, match=r"total_steps must be None or an integer >= 1, got"):
        make(total)


def test_a_state_of_another_version_is_refused_in_words_and_can_be_left_out():
    saved = run(torch.nn.Linear(3, 2), 5, autotune(60)).state_dict()
    thermo = saved["param_groups"][0]["thermo"]
    controller = from_leaf(thermo["controller"])
    del controller["members"][0]["state"]["cohorts"]["all"]["gear"]
    thermo["controller"] = as_leaf(controller)
    opt = ThermoAdamW(torch.nn.Linear(3, 2).parameters(), controller=autotune(60), backend="torch")
    with pytest.raises(ValueError, match=r"another kind of controller or .*version.*delete 'controller'"):
        opt.load_state_dict(saved)
    assert not opt.controller.begun
    del thermo["controller"]
    opt.load_state_dict(saved)
    assert opt.steps == 5


def test_steps_beyond_the_end_are_warned_of_once():
    """By the cooling alone, where a constant schedule and a controller are made with the same length."""
    net, controller = torch.nn.Linear(3, 2), autotune(20)
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    schedule = ThermoScheduler(opt, 20, shape="constant", controller=controller)
    with pytest.warns(UserWarning, match="total_steps = 20") as told:
        step(net, opt, 40, schedule)
    assert len(told) == 1
