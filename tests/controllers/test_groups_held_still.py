"""Groups that nothing moves: frozen ones at lr 0, and empty ones, as code that sorts parameters makes."""

import warnings

import pytest
import torch

from thermoopt import ThermoAdamW, ThermoScheduler, autotune

T = 40


def nets(frozen=True):
    torch.manual_seed(0)
    body, head = torch.nn.Linear(4, 8), torch.nn.Linear(8, 1)
    for p in body.parameters():
        p.requires_grad_(not frozen)
    return body, head


def make(groups, preset, scheduled):
    controller = autotune(T, preset)
    if not scheduled:
        return ThermoAdamW(groups, controller=controller), None
    opt = torch.optim.AdamW(groups)
    return opt, ThermoScheduler(opt, T, shape="constant", controller=controller)


def train(body, head, opt, scheduler, steps, start=0):
    for step in range(start, start + steps):
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        opt.zero_grad()
        (head(torch.tanh(body(x))) - x[:, :1]).square().mean().backward()
        opt.step()
        if scheduler is not None:
            scheduler.step()


@pytest.mark.parametrize("scheduled", [False, True], ids=["thermo", "scheduled"])
@pytest.mark.parametrize("preset", ["default", "respect_lr"])
@pytest.mark.parametrize("lr", [0.0, 1e-5])
@pytest.mark.parametrize("which", ["frozen", "empty"])
def test_the_others_train_as_without_them(which, lr, preset, scheduled):
    ends = []
    for with_it in (False, True):
        body, head = nets()
        still = list(body.parameters()) if which == "frozen" else []
        groups = [{"params": list(head.parameters()), "lr": 1e-3}]
        groups += [{"params": still, "lr": lr}] if with_it else []
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="groups differ in lr")
            opt, scheduler = make(groups, preset, scheduled)
            train(body, head, opt, scheduler, T)
        ends.append([p.detach().clone() for p in head.parameters()])
    for a, b in zip(*ends, strict=True):
        # what the law says of all layers together may differ in rounding by a layer that has no say
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_a_group_that_is_trained_must_have_an_lr():
    body, head = nets(frozen=False)
    groups = [{"params": list(body.parameters()), "lr": 0.0}, {"params": list(head.parameters()), "lr": 1e-3}]
    opt, _ = make(groups, "default", scheduled=False)
    with pytest.raises(ValueError, match="lr of group 'group0' must be > 0"):
        train(body, head, opt, None, 1)


@pytest.mark.parametrize("lr", [0.0, 1e-5])
@pytest.mark.parametrize("controlled", [False, True], ids=["plain", "controlled"])
def test_a_scheduler_trains_what_is_unfrozen_if_it_had_an_lr_and_says_so_if_not(lr, controlled):
    body, head = nets()
    opt = torch.optim.AdamW([{"params": body.parameters(), "lr": lr}, {"params": head.parameters()}])
    scheduler = ThermoScheduler(opt, T, shape="constant", controller=autotune(T) if controlled else None)
    train(body, head, opt, scheduler, 10)
    body.requires_grad_(True)
    if lr == 0:
        opt.param_groups[0]["lr"] = 1e-3
        with pytest.warns(UserWarning, match=r"lr of group 'group0' was set to 0.001 but is 0 again"):
            train(body, head, opt, scheduler, 1, start=10)
    before = body.weight.detach().clone()
    train(body, head, opt, scheduler, 10, start=11)
    assert bool((body.weight != before).any()) is (lr > 0)
    assert (opt.param_groups[0]["lr"] > 0) is (lr > 0)


def test_one_that_is_unfrozen_with_an_lr_gets_a_rate_of_its_own():
    """Which does not depend on that lr: a rate is absolute."""
    moved = []
    for lr in (1e-3, 1e-2):
        body, head = nets()
        groups = [
            {"params": list(body.parameters()), "lr": 0.0},
            {"params": list(head.parameters()), "lr": 1e-3},
        ]
        opt, _ = make(groups, "default", scheduled=False)
        train(body, head, opt, None, 10)
        for p in body.parameters():
            p.requires_grad_(True)
        opt.param_groups[0]["lr"] = lr
        before = body.weight.detach().clone()
        train(body, head, opt, None, 20, start=10)
        moved.append(body.weight.detach() - before)
    assert float(moved[0].norm()) > 1e-3
    torch.testing.assert_close(*moved, rtol=1e-3, atol=1e-5)
