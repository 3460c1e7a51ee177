"""The scheduler against torch's own to the last bit, its sense of time, and a controller on top of it."""

import copy
import gc
import io
import json
import math
import pickle

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, SequentialLR

from tests.support.lion import Lion
from tests.support.small_net import assert_same_bits, model, train
from thermoopt import ThermoAdamW, autotune
from thermoopt.account import pending
from thermoopt.controllers import Controller, Cooling, Scales, Thermostat
from thermoopt.controllers.cooling import cooling_factor
from thermoopt.observer import source as source_module
from thermoopt.observer.observer import Observer
from thermoopt.scheduler.scheduler import ThermoScheduler

# a finished schedule stays
pytestmark = pytest.mark.filterwarnings("ignore:step .* was taken after the end of the schedule")

BASE = 0.0371
RATE = 0.07


def optimizer(lr=BASE, **kwargs):
    return torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=lr, **kwargs)


def run(scheduler, steps):
    """Lrs of so many steps, one ``step()`` after each optimizer step."""
    out = []
    for _ in range(steps):
        out.append(copy.deepcopy(scheduler.optimizer.param_groups[0]["lr"]))
        scheduler.optimizer.step()
        scheduler.step()
    return out


def torchs(opt, shape, total, warmup, eta_min):
    floor, length = eta_min / float(opt.param_groups[0]["lr"]), total - warmup

    def factor(epoch):
        return cooling_factor(
            epoch + 1, total_steps=length, shape=shape, warmup_steps=0, floor=floor, rate=RATE
        )

    if shape == "linear":
        main = LinearLR(opt, start_factor=1.0, end_factor=floor, total_iters=length)
    elif shape == "cosine":
        main = CosineAnnealingLR(opt, length, eta_min=eta_min)
    else:
        main = LambdaLR(opt, factor)
    if not warmup:
        return main
    rise = LinearLR(opt, start_factor=1 / warmup, end_factor=1.0, total_iters=warmup - 1)
    return SequentialLR(opt, [rise, main], milestones=[warmup])


def torch_takes(lr):
    """Whether torch's own schedules take such an lr.

    Those of torch 2.6 fail on tensors of one dimension, and SequentialLR lets a tensor lr be its own base.
    """
    opt = optimizer(copy.deepcopy(lr))
    try:
        SequentialLR(opt, [LinearLR(opt), LinearLR(opt)], milestones=[1])
    except RuntimeError:
        return False
    group = opt.param_groups[0]
    return not isinstance(lr, torch.Tensor) or group["lr"] is not group["initial_lr"]


def options(shape):
    return {"shape": shape, "rate": RATE if shape == "inverse_time" else None}


RATES = (BASE, torch.tensor(BASE), torch.tensor([0.0123], dtype=torch.float64))
FLOORS = (0.0, 0.0017, 0.0023)  # of the last, eta_min + (lr - eta_min) is not lr
LENGTHS = ((37, 0), (1, 0), (2, 1), (100, 1), (101, 13), (500, 50))
SCHEDULES = [
    (*length, RATES[(i + j) % 3], FLOORS[j]) for i, length in enumerate(LENGTHS) for j in range(len(FLOORS))
]
"""Lengths, rates and floors, each with each of the others."""


@pytest.mark.filterwarnings("ignore:The epoch parameter")  # SequentialLR of torch 2.6 warns of its own call
@pytest.mark.parametrize("shape", ["constant", "linear", "cosine", "trapezoid", "wsd", "inverse_time"])
@pytest.mark.parametrize(("total", "warmup", "lr", "eta_min"), SCHEDULES)
def test_without_a_controller_it_is_torchs_schedule_to_the_last_bit(shape, total, warmup, eta_min, lr):
    if not torch_takes(lr):
        pytest.skip("torch's own schedules do not take this lr")
    ours, theirs = optimizer(copy.deepcopy(lr)), optimizer(copy.deepcopy(lr))
    mine = ThermoScheduler(ours, total, warmup, eta_min=eta_min, **options(shape))
    expected = run(torchs(theirs, shape, total, warmup, eta_min), total)
    assert run(mine, total) == expected
    assert mine.get_last_lr() == [theirs.param_groups[0]["lr"]]
    end = mine.get_last_lr()
    run(mine, 7)  # a finished schedule stays
    assert mine.get_last_lr() == end


def test_shapes_are_the_shapes():
    """Closed forms, so that a slip shared with torch's recursion would show."""
    cosine = run(ThermoScheduler(optimizer(), 40, eta_min=0.01), 41)
    for n in (0, 10, 20, 40):
        assert cosine[n] == pytest.approx(0.01 + (BASE - 0.01) * (1 + math.cos(math.pi * n / 40)) / 2)
    linear = run(ThermoScheduler(optimizer(), 44, 4, "linear"), 45)
    assert linear[:5] == pytest.approx([BASE / 4, BASE / 2, BASE * 3 / 4, BASE, BASE])
    assert linear[24] == pytest.approx(BASE / 2)
    assert linear[44] == 0.0
    inverse = run(ThermoScheduler(optimizer(), None, shape="inverse_time", rate=0.5), 5)
    assert inverse == pytest.approx([BASE / (1 + 0.5 * t) for t in range(5)])
    assert run(ThermoScheduler(optimizer(), None, shape="constant"), 3) == [BASE] * 3
    assert run(ThermoScheduler(optimizer(), 5, 5), 8)[4:] == [BASE] * 4  # all warm-up


def test_groups_have_their_own_floor_and_small_ones_keep_their_lr():
    params = [torch.nn.Parameter(torch.ones(1)) for _ in range(4)]
    lrs = [1.0, 0.5, 0.01, 0.0]
    for shape in ("linear", "cosine", "trapezoid", "wsd"):
        opt = torch.optim.SGD([{"params": [p], "lr": lr} for p, lr in zip(params, lrs, strict=True)])
        scheduler = ThermoScheduler(opt, 10, shape=shape, eta_min=0.1)
        run(scheduler, 10)
        assert scheduler.get_last_lr() == pytest.approx([0.1, 0.1, 0.01, 0.0])


def test_a_tensor_lr_stays_the_same_tensor():
    lr = torch.tensor(0.5)
    opt = optimizer(lr)
    scheduler = ThermoScheduler(opt, 4, shape="linear")
    run(scheduler, 2)
    assert opt.param_groups[0]["lr"] is lr
    assert float(lr) == 0.25
    assert scheduler.base_lrs == [0.5]
    scheduler.get_last_lr()[0].fill_(9.0)
    assert float(lr) == 0.25


def test_groups_that_share_a_tensor_lr_get_rates_of_their_own():
    def rates(lr):
        net = model()
        opt = torch.optim.SGD([{"params": net[i].parameters()} for i in (0, 2)], lr=lr)
        first = opt.param_groups[0]["lr"]
        train(net, opt, 10, scheduler=ThermoScheduler(opt, 20, shape="constant", controller=autotune(20)))
        assert not isinstance(lr, torch.Tensor) or opt.param_groups[0]["lr"] is first
        return [float(group["lr"]) for group in opt.param_groups]

    floats = rates(0.01)
    assert floats[0] / floats[1] > 1.3
    assert rates(torch.tensor(0.01)) == pytest.approx(floats, rel=1e-3)


# ---------------------------------------------------------------- time


def test_more_calls_than_steps_change_nothing():
    """Accelerate steps a scheduler num_processes times an optimizer step."""
    ours, theirs = optimizer(), optimizer()
    many, once = ThermoScheduler(ours, 20, 3), ThermoScheduler(theirs, 20, 3)
    for _ in range(25):
        for opt in (ours, theirs):
            opt.step()
        for _ in range(4):
            many.step()
        once.step()
        assert ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]


def test_fewer_calls_catch_up():
    ours, theirs = optimizer(), optimizer()
    few, each = ThermoScheduler(ours, 30, 4), ThermoScheduler(theirs, 30, 4)
    for step in range(1, 36):
        for opt in (ours, theirs):
            opt.step()
        each.step()
        if step % 5 == 0:
            few.step()
            assert ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]
    assert few.last_epoch == 35


def test_calls_before_the_first_optimizer_step_warn_and_do_nothing():
    opt = optimizer()
    scheduler = ThermoScheduler(opt, 10, 2)
    with pytest.warns(UserWarning, match=r"`lr_scheduler.step\(\)` before `optimizer.step\(\)`"):
        scheduler.step()
    assert opt.param_groups[0]["lr"] == BASE / 2
    opt.step()
    scheduler.step()
    assert opt.param_groups[0]["lr"] == BASE


def test_a_checkpoint_librarys_dry_step_is_no_step():
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    net = model()
    opt = torch.optim.AdamW(net.parameters(), lr=BASE)
    scheduler = ThermoScheduler(opt, 10)
    get_optimizer_state_dict(net, opt)
    train(net, opt, 1, scheduler=scheduler)
    assert scheduler.last_epoch == 1


def test_an_outside_write_lasts_until_the_next_step():
    ours, theirs = optimizer(), optimizer()
    a, b = ThermoScheduler(ours, 12), ThermoScheduler(theirs, 12)
    run(a, 3)
    run(b, 3)
    ours.param_groups[0]["lr"] = 7.0
    assert run(a, 9)[1:] == run(b, 9)[1:]


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
@pytest.mark.parametrize("kind", [torch.optim.AdamW, ThermoAdamW])
def test_the_optimizer_can_still_be_copied(kind, clone):
    net = model()
    opt = kind(net.parameters(), lr=BASE)
    scheduler = ThermoScheduler(opt, 10, controller=Fixed())
    train(net, opt, 3, scheduler=scheduler)
    other = clone(opt)
    assert other.param_groups[0]["lr"] == opt.param_groups[0]["lr"]
    other.step()
    assert scheduler.last_epoch == scheduler._taken == 3


def test_a_scheduler_that_is_gone_leaves_nothing_behind():
    net = model()
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    scheduler = ThermoScheduler(opt, 10, controller=Fixed())
    train(net, opt, 2, scheduler=scheduler)
    del scheduler
    gc.collect()
    assert not opt._optimizer_step_pre_hooks
    assert not opt._optimizer_step_post_hooks


def test_last_epoch_is_torchs():
    opt, other = optimizer(), optimizer()
    first = ThermoScheduler(opt, 20, 4)
    expected = run(first, 20)
    with pytest.raises(KeyError, match="initial_lr"):
        ThermoScheduler(other, 20, 4, last_epoch=6)
    resumed = ThermoScheduler(opt, 20, 4, last_epoch=6)
    assert run(resumed, 13) == expected[7:]


# ---------------------------------------------------------------- a controller


class Fixed(Controller):
    """Plays given scales by step, and remembers what it was told."""

    def __init__(self, script=None):
        self.script = script or {}
        self.scales, self.calls, self.starts = Scales(), [], []

    def attach(self, start):
        self.starts.append(start)

    def update(self, reading, step):
        self.calls.append((step, None if reading is None else reading.step))
        self.scales = self.script.get(step, self.scales)
        return self.scales

    def state_dict(self):
        return {"lr": self.scales.lr, "wd": self.scales.wd}

    def load_state_dict(self, state):
        self.scales = Scales(**state)

    def reset(self):
        self.scales = Scales()


class Far(Fixed):
    """Wants to know how far the parameters have come, and remembers it."""

    needs = frozenset({"distance"})

    def __init__(self):
        super().__init__()
        self.distances = []

    def update(self, reading, step):
        if reading is not None:
            self.distances.append(reading.travel.distance2.min())
        return super().update(reading, step)


OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.04, momentum=0.9, weight_decay=0.01),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.04, weight_decay=0.2),
    "lion": lambda params: Lion(params, lr=0.04, weight_decay=0.2),
    "thermoadamw": lambda params: ThermoAdamW(
        params, lr=0.04, weight_decay=0.2, measure_every=10, backend="torch"
    ),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_scales_are_factors_on_schedule_and_decay(make):
    net = model()
    opt = make(net.parameters())
    wd = opt.param_groups[0]["weight_decay"]
    plain = run(ThermoScheduler(optimizer(0.04), 30, 5), 30)
    controller = Fixed({3: Scales(lr=0.5), 8: Scales(lr=2.0, wd=0.25), 20: Scales()})
    scheduler = ThermoScheduler(opt, 30, 5, controller=controller)
    for n in range(30):
        scale = 1.0 if n + 1 < 3 or n + 1 >= 20 else 0.5 if n + 1 < 8 else 2.0
        assert opt.param_groups[0]["lr"] == plain[n] * scale
        assert opt.param_groups[0]["weight_decay"] == wd * (0.25 if 8 <= n + 1 < 20 else 1.0)
        assert scheduler.get_last_lr() == [opt.param_groups[0]["lr"]]
        train(net, opt, 1, start=n, scheduler=scheduler)
    # once an optimizer step, and each reading once
    assert [step for step, _ in controller.calls] == list(range(1, 32))
    seen = [(step, of) for step, of in controller.calls if of is not None]
    assert seen == [(11, 10), (21, 20)]
    assert len(controller.starts) == 1
    assert controller.starts[0].lr == (0.04,)
    assert scheduler.observer.reading.step == 20


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")  # SequentialLR's, torch 2.6
def test_a_neutral_controller_changes_not_one_bit():
    ours, theirs = model(), model()
    opt, ref = (OPTIMIZERS["sgd"](net.parameters()) for net in (ours, theirs))
    train(ours, opt, 15, scheduler=ThermoScheduler(opt, 15, 2, controller=Fixed()))
    train(theirs, ref, 15, scheduler=torchs(ref, "cosine", 15, 2, 0.0))
    assert_same_bits(ours, opt, theirs, ref)


def test_decay_is_left_alone_until_it_is_scaled():
    net = model()
    opt = OPTIMIZERS["adamw"](net.parameters())
    scheduler = ThermoScheduler(opt, 20, controller=Fixed({6: Scales(wd=0.5)}))
    opt.param_groups[0]["weight_decay"] = 0.7
    train(net, opt, 4, scheduler=scheduler)
    assert opt.param_groups[0]["weight_decay"] == 0.7
    train(net, opt, 4, scheduler=scheduler)
    assert opt.param_groups[0]["weight_decay"] == 0.1  # of the base, 0.2


def test_a_missed_call_is_made_up_for():
    net = model()
    opt = OPTIMIZERS["sgd"](net.parameters())
    controller = Fixed({2: Scales(layers={"group0.1": 3.0}), 3: Scales(layers={"group0.3": 5.0})})
    observer = Observer(None, opt, log_every=1)
    scheduler = ThermoScheduler(opt, 20, controller=controller, observer=observer, shape="constant")
    train(net, opt, 4)
    scheduler.step()
    scheduler.step()
    assert controller.calls == [(1, None), (2, None), (3, None), (4, None), (5, 4)]
    assert scheduler._layer_factors == {"group0.1": 3.0, "group0.3": 5.0}


def test_layer_factors_with_one_layer_a_group_are_its_own():
    net = model()
    groups = [{"params": [(name, p)]} for name, p in net.named_parameters()]
    opt = torch.optim.SGD(groups, lr=0.04)
    script = {1: Scales(layers={"0.bias": 3.0, "2.weight": 0.0}), 2: Scales(lr=[1.0, 2.0, 1.0, 4.0])}
    scheduler = ThermoScheduler(opt, None, shape="constant", controller=Fixed(script))
    assert scheduler.get_last_lr() == [0.04, 0.04 * 3.0, 0.0, 0.04]
    train(net, opt, 1, scheduler=scheduler)
    assert scheduler.get_last_lr() == [0.04, 0.04 * 6.0, 0.0, 0.16]  # layers not named keep theirs


def test_layer_factors_within_a_group_are_their_geometric_mean():
    a, b = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(1))
    opt = torch.optim.SGD([{"params": [("a", a), ("b", b)]}], lr=0.5)
    script = {1: Scales(layers={"a": 16.0}), 2: Scales(layers={"b": 0.0}), 3: Scales(layers={"x": 1.0})}
    scheduler = ThermoScheduler(opt, None, shape="constant", controller=Fixed(script))
    assert scheduler.get_last_lr() == pytest.approx([0.5 * 16 ** (3 / 4)])
    run(scheduler, 1)
    assert scheduler.get_last_lr() == [0.0]
    with pytest.raises(KeyError, match="'x'"):
        run(scheduler, 1)


def test_layer_factors_of_a_thermoadamw_are_handed_on():
    ours, theirs = model(), model()
    opt = OPTIMIZERS["thermoadamw"](ours.named_parameters())
    factors = {"0.weight": 0.5, "2.bias": 3.0}
    scheduler = ThermoScheduler(
        opt, None, shape="constant", controller=Fixed({1: Scales(lr=0.5, layers=factors)})
    )
    ref = torch.optim.AdamW(
        [{"params": [p], "lr": 0.02 * factors.get(n, 1.0)} for n, p in theirs.named_parameters()],
        weight_decay=0.2,
    )
    train(ours, opt, 6, scheduler=scheduler)
    train(theirs, ref, 6)
    assert opt.param_groups[0]["lr"] == 0.02
    assert_same_bits(ours, opt, theirs, ref)


def test_layer_factors_are_handed_on_again_after_a_load():
    class Always(Fixed):
        def load_state_dict(self, state): ...

    net = model()
    opt = OPTIMIZERS["thermoadamw"](net.named_parameters())
    scheduler = ThermoScheduler(opt, 20, controller=Always({1: Scales(layers={"0.bias": 3.0})}))
    train(net, opt, 2, scheduler=scheduler)
    state = scheduler.state_dict()
    opt.set_layer_factors({"0.bias": 7.0})
    train(net, opt, 1, scheduler=scheduler)  # the same mapping again says nothing new
    assert opt.param_groups[0]["thermo"]["layer_factors"].tolist() == [1.0, 7.0, 1.0, 1.0]
    scheduler.load_state_dict(state)
    train(net, opt, 1, scheduler=scheduler)
    assert opt.param_groups[0]["thermo"]["layer_factors"].tolist() == [1.0, 3.0, 1.0, 1.0]


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_group_added_in_mid_run_follows(make):
    net, extra = model(), torch.nn.Parameter(torch.ones(4))
    opt = make(net.parameters())
    controller = Fixed({6: Scales(lr=[1.0, 0.5], wd=[1.0, 0.5])})
    scheduler = ThermoScheduler(opt, 20, shape="linear", controller=controller)
    train(net, opt, 4, scheduler=scheduler)
    opt.add_param_group({"params": [extra], "lr": 1.0, "weight_decay": 0.4, "name": "late"})
    assert opt.param_groups[1]["lr"] == 1.0
    train(net, opt, 1, scheduler=scheduler)
    assert opt.param_groups[1]["lr"] == pytest.approx(0.75 * 0.5)
    assert opt.param_groups[0]["lr"] == pytest.approx(0.75 * 0.04)
    assert opt.param_groups[1]["weight_decay"] == 0.2
    assert scheduler.base_lrs == [0.04, 1.0]
    assert controller.starts[-1].lr == (0.04, 1.0)
    assert controller.starts[-1].group_names == ("group0", "late")
    train(net, opt, 15, scheduler=scheduler)
    assert scheduler.get_last_lr() == pytest.approx([0.0, 0.0])


def test_cooling_may_be_the_shape():
    net = model()
    opt = OPTIMIZERS["adamw"](net.parameters())
    expected = [0.04 * f for f in (0.5, 1.0, 1.0, 2 / 3, 1 / 3)]
    scheduler = ThermoScheduler(opt, 5, shape="constant", controller=Cooling(5, "linear", 2))
    for lr in expected:
        assert opt.param_groups[0]["lr"] == pytest.approx(lr)
        train(net, opt, 1, scheduler=scheduler)


# ---------------------------------------------------------------- absolute rates


def noisy_loss(net, step, samples=16):
    """A regression with noise of variance 0.09 in its targets, another batch a step."""
    rng = torch.Generator().manual_seed(1000 + step)
    dtype = next(net.parameters()).dtype
    x, noise = (torch.randn(samples, n, generator=rng, dtype=torch.float64) for n in (6, 3))
    y = torch.stack([x[:, 0] - x[:, 1], x[:, 2] * 2, x[:, 3]], dim=1) + 0.3 * noise
    return (net(x.to(dtype)) - y.to(dtype)).square().mean()


def learn(net, opt, steps, scheduler=None, start=0):
    """Train on it; return the rates of every step."""
    rates = []
    for step in range(start, start + steps):
        rates.append([float(group["lr"]) for group in opt.param_groups])
        opt.zero_grad()
        noisy_loss(net, step).backward()
        opt.step()
        if scheduler is not None:
            scheduler.step()
    return torch.tensor(rates, dtype=torch.float64)


FOREIGN = {
    "adamw": lambda params, lr: torch.optim.AdamW(params, lr=lr, weight_decay=0.1),
    "thermoadamw": lambda params, lr: ThermoAdamW(params, lr=lr, weight_decay=0.1, measure_every=1),
    "sgd": lambda params, lr: torch.optim.SGD(params, lr=lr, momentum=0.9),
    "lion": lambda params, lr: Lion(params, lr=lr, weight_decay=0.1),
}


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
def test_autotune_needs_no_lr_with_any_optimizer(make, request):
    """From 1e-5 and 10,000 times that. Where the update's size is known the rates are the same."""
    total = 600 if "lion" in request.node.name else 150  # signs rattle until the rate is small
    ends, rates = [], []
    for lr in (1e-5, 1e-1):
        net = model(torch.float64)
        opt = make(net.parameters(), lr)
        before = float(noisy_loss(net, -1, 4096).detach())
        scheduler = ThermoScheduler(opt, total, shape="constant", controller=autotune(total))
        rates.append(learn(net, opt, total, scheduler))
        ends.append(float(noisy_loss(net, -1, 4096).detach()))
        assert ends[-1] < before / 10
        assert len(scheduler.controller.log) > 1  # the loop was closed
    if any(name in request.node.name for name in ("sgd", "lion")):  # their first step is taken as given
        assert ends[1] == pytest.approx(ends[0], rel=0.1)
        return
    torch.testing.assert_close(rates[1], rates[0], rtol=1e-8, atol=0.0)
    assert ends[1] == pytest.approx(ends[0], rel=1e-8)


@pytest.mark.parametrize(("total", "steps"), [(60, 60), (300, 150), (2600, 300)])
def test_autotune_on_adamw_gives_the_rates_of_thermoadamw(total, steps):
    """With one layer a group, so that the group's lr is the layer's; averages and intervals are alike."""
    nets = ours, theirs = model(torch.float64), model(torch.float64)
    mine, ref = ([{"params": [pair]} for pair in net.named_parameters()] for net in nets)
    opt = torch.optim.AdamW(mine, lr=1e-3, weight_decay=0.1)
    every = min(10, max(1, total // 200))
    thermo = ThermoAdamW(
        ref, lr=0.2, weight_decay=0.1, controller=autotune(total), measure_every=every, backend="torch"
    )
    scheduler = ThermoScheduler(opt, total, shape="constant", controller=autotune(total))
    for step in range(steps):
        rates = [(group["lr"], group["weight_decay"]) for group in opt.param_groups]
        learn(ours, opt, 1, scheduler, start=step)
        learn(theirs, thermo, 1, start=step)
        for (lr, wd), group in zip(rates, thermo.param_groups, strict=True):
            assert lr == pytest.approx(group["lr"] * group["thermo"]["lr_scale"], rel=1e-9)
            assert wd == pytest.approx(group["weight_decay"] * group["thermo"]["wd_scale"], rel=1e-9)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)
    logs = [[(a.step, a.group, a.kind) for a in c.log] for c in (scheduler.controller, thermo.controller)]
    assert logs[0] == logs[1]
    assert len(logs[0]) > 1


def test_a_group_of_many_layers_has_one_rate():
    """D times the geometric mean of its layers' units, weighted by elements."""
    a, b = torch.nn.Parameter(torch.full((30, 10), 0.2)), torch.nn.Parameter(torch.full((10, 10), 0.3))
    opt = torch.optim.AdamW([{"params": [a, b]}], lr=0.7)
    ThermoScheduler(opt, 300, shape="constant", controller=Thermostat("angular", total_steps=300, kappa=1.2))
    assert opt.param_groups[0]["lr"] == pytest.approx(
        1.2 * math.sqrt(3 / 300) * 0.2 ** (3 / 4) * 0.3 ** (1 / 4), rel=2 ** (1 / 16) - 1
    )


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_angular_moves_sgd_as_far_as_adam_in_noise(momentum):
    """kappa sqrt(3/T) of the weights' rms, times the 0.23 that Adam's update has in pure noise.

    The size of the update is an average over 7.5 steps of 4,000 coordinates, in noise that changes sign
    but not strength: 2 % without momentum; with it the size grows for 1/(1 - 0.9) steps first.
    """
    total, kappa = 300, 1.2
    for lr in (1e-3, 1.0):
        p = torch.nn.Parameter(0.15 * torch.randn(80, 50, generator=torch.Generator().manual_seed(0)))
        rms = float(p.detach().square().mean().sqrt())
        opt = torch.optim.SGD([p], lr=lr, momentum=momentum)
        thermostat = Thermostat("angular", total_steps=total, kappa=kappa)
        scheduler = ThermoScheduler(opt, total, shape="constant", controller=thermostat)
        rng, moved = torch.Generator().manual_seed(1), []
        for _ in range(100):
            before = p.detach().clone()
            p.grad = 7.0 * torch.randn(p.shape, generator=rng)
            opt.step()
            scheduler.step()
            moved.append(float((p.detach() - before).square().mean().sqrt()))
        wanted = kappa * math.sqrt(3 / total) * rms * math.sqrt(0.1 / 1.9)
        settled = moved[2:] if momentum == 0 else moved[50:]
        assert settled == pytest.approx([wanted] * len(settled), rel=0.1 if momentum else 0.05)
        assert sum(settled) / len(settled) == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize("make", ["sgd", "lion", "thermoadamw"])
def test_readings_come_as_often_as_the_controller_wants(make):
    class Rarely(Fixed):
        every = 7

    net = model()
    opt = FOREIGN[make](net.parameters(), 1e-3)
    controller = Rarely()
    train(net, opt, 30, scheduler=ThermoScheduler(opt, 30, controller=controller))
    expected = [1, 8, 15, 22, 29] if make == "thermoadamw" else [7, 14, 22, 30]
    assert [of for _, of in controller.calls if of is not None] == expected


@pytest.mark.parametrize("make", ["sgd", "adamw", "thermoadamw"])
def test_sums_of_a_device_are_waited_for_one_step_late(make, monkeypatch):
    """Then all ranks get the same reading in the same step; those that come late bring their own distance."""
    net = model()
    opt = FOREIGN[make](net.parameters(), 1e-3)
    controller = Far()
    observer = Observer(None, opt) if make == "thermoadamw" else Observer(None, opt, 1, ema_steps=5)
    scheduler = ThermoScheduler(opt, 200, shape="constant", controller=controller, observer=observer)
    monkeypatch.setattr(source_module, "reading_lag", lambda *_: 1)
    if make != "thermoadamw":
        observer._source._ledger.lag = 1
    init, numpy, made_in, step = pending.Fetch.__init__, pending.Fetch.numpy, {}, 0

    def made(self, tensor):
        made_in[id(self)] = step
        init(self, tensor)

    def waited(self):
        assert made_in[id(self)] < step, "sums of the step just taken were waited for"
        return numpy(self)

    monkeypatch.setattr(pending.Fetch, "__init__", made)
    monkeypatch.setattr(pending.Fetch, "numpy", waited)
    monkeypatch.setattr(pending.Fetch, "ready", lambda self: False)
    for step in range(1, 15):  # noqa: B007 - the patches read it
        learn(net, opt, 1, scheduler)
    monkeypatch.setattr(pending.Fetch, "numpy", numpy)
    shown = [(coming - 1, of) for coming, of in controller.calls if of is not None]
    assert len(shown) >= 2
    assert all(taken == of + 1 for taken, of in shown)
    assert len(controller.distances) == len(shown)
    assert all(distance > 0 for distance in controller.distances[1:])
    assert observer.reading.step == 14  # which is what waits


# ---------------------------------------------------------------- losses


def test_losses_go_to_the_observer():
    net = model()
    opt = OPTIMIZERS["sgd"](net.parameters())
    observer = Observer(net, opt, log_every=2)
    scheduler = ThermoScheduler(observer, opt, total_steps=10)
    for loss in (0.75, torch.tensor(0.5), torch.tensor([0.25]), math.nan, torch.tensor(math.inf), None):
        train(net, opt, 1)
        scheduler.step(loss)
    train(net, opt, 1)
    scheduler.step(loss=0.125)
    assert (observer.loss, observer.bad_losses) == (0.125, 2)
    assert observer.fresh_reading().loss == 0.125
    train(net, opt, 1)
    scheduler.step(observer.step())  # the snapshot, as thermoclaw has it
    assert observer.loss == 0.125
    assert scheduler.last_epoch == 8


@pytest.mark.parametrize(
    ("loss", "error"), [(3, TypeError), (True, TypeError), ("low", TypeError), (torch.ones(2), ValueError)]
)
def test_what_is_no_loss_is_an_error_before_anything_moves(loss, error):
    opt = optimizer()
    scheduler = ThermoScheduler(opt, 10, controller=Fixed())
    opt.step()
    before = copy.deepcopy(scheduler.state_dict())
    with pytest.raises(error, match="loss must"):
        scheduler.step(loss)
    after = scheduler.state_dict()
    assert {k: v for k, v in after.items() if k != "observer"} == {
        k: v for k, v in before.items() if k != "observer"
    }
    assert opt.param_groups[0]["lr"] == BASE


# ---------------------------------------------------------------- state


class Feedback(Fixed):
    """Scales by what it reads, so that a lost or repeated reading shows in every later step."""

    def update(self, reading, step):
        super().update(reading, step)
        if reading is not None:
            lr = self.scales.lr * (1 + math.tanh(reading.total.sigma))
            self.scales = Scales(lr=lr, wd=1 / lr, layers={"group0.0": 0.9 + 0.01 * step})
        return Scales(lr=self.scales.lr, wd=self.scales.wd, layers=self.scales.layers)


@pytest.mark.parametrize("lr", [None, torch.tensor(0.04)], ids=["float", "tensor"])
@pytest.mark.parametrize("scheduler_first", [False, True])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_resume_is_bit_for_bit(make, scheduler_first, lr):
    def build(net):
        opt = make(net.parameters())
        if lr is not None:
            opt.param_groups[0]["lr"] = lr.clone()
        observer = Observer(None, opt, log_every=3, ema_steps=5)
        return opt, ThermoScheduler(observer, opt, 40, 5, controller=Feedback())

    whole = model()
    opt, scheduler = build(whole)
    train(whole, opt, 16, scheduler=scheduler)
    train(whole, opt, 1, start=16)  # saved between optimizer.step() and scheduler.step()
    buffer = io.BytesIO()
    torch.save([whole.state_dict(), opt.state_dict(), scheduler.state_dict()], buffer)
    scheduler.step()
    train(whole, opt, 20, start=17, scheduler=scheduler)

    buffer.seek(0)
    weights, opt_state, scheduler_state = torch.load(buffer, weights_only=True)
    other = model(seed=5)
    other.load_state_dict(weights)
    resumed_opt, resumed = build(other)
    for load in (resumed, resumed_opt) if scheduler_first else (resumed_opt, resumed):
        load.load_state_dict(scheduler_state if load is resumed else opt_state)
    resumed.step()
    train(other, resumed_opt, 20, start=17, scheduler=resumed)
    assert resumed.get_last_lr() == scheduler.get_last_lr()
    assert resumed_opt.param_groups[0]["weight_decay"] == opt.param_groups[0]["weight_decay"] != 0.2
    assert_same_bits(whole, opt, other, resumed_opt)


@pytest.mark.parametrize("order", ["optimizer first", "scheduler first", "weights last"])
@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
def test_autotune_resumes_bit_for_bit(make, order):
    """Units, start and a distance not handed over yet included: nothing of the new process shows."""

    def build(net):
        opt = make(net.parameters(), 1e-3)
        return opt, ThermoScheduler(opt, 200, shape="constant", controller=autotune(200))

    whole = model()
    opt, scheduler = build(whole)
    learn(whole, opt, 12, scheduler)
    learn(whole, opt, 1, start=12)  # saved between optimizer.step() and scheduler.step()
    buffer = io.BytesIO()
    torch.save({"net": whole.state_dict(), "opt": opt.state_dict(), "s": scheduler.state_dict()}, buffer)
    scheduler.step()
    rates = learn(whole, opt, 60, scheduler, start=13)

    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    other = model(seed=5)
    other[0].weight.data *= 9.0
    if order != "weights last":
        other.load_state_dict(saved["net"])
    resumed_opt, resumed = build(other)
    if order == "scheduler first":
        resumed.load_state_dict(saved["s"])
    resumed_opt.load_state_dict(saved["opt"])
    if order != "scheduler first":
        resumed.load_state_dict(saved["s"])
    other.load_state_dict(saved["net"])
    assert json.dumps(resumed.state_dict()) == json.dumps(saved["s"])
    resumed.step()
    assert torch.equal(learn(other, resumed_opt, 60, resumed, start=13), rates)
    assert_same_bits(whole, opt, other, resumed_opt)
    assert json.dumps(resumed.state_dict()) == json.dumps(scheduler.state_dict())
    assert any(action.step > 13 for action in resumed.controller.log)  # the loop went on


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_state_is_plain(make):
    net = model()
    opt = make(net.parameters())
    opt.param_groups[0]["lr"] = torch.tensor(0.04)
    scheduler = ThermoScheduler(opt, 40, shape="constant", controller=autotune(40))
    train(net, opt, 12, scheduler=scheduler)

    def leaves(x):
        if isinstance(x, dict):
            return [leaf for value in x.values() for leaf in leaves(value)]
        return [leaf for value in x for leaf in leaves(value)] if isinstance(x, list) else [x]

    found = leaves(scheduler.state_dict())
    assert {type(leaf) for leaf in found} <= {int, float, bool, str, type(None)}


def test_a_run_made_longer_follows_the_new_plan():
    ours, theirs = optimizer(), optimizer()
    short = ThermoScheduler(ours, 10, 2)
    run(short, 6)
    long = ThermoScheduler(theirs, 30, 2)
    expected = run(long, 30)
    longer = ThermoScheduler(ours, 30, 2)
    longer.load_state_dict(short.state_dict())
    assert run(longer, 24) == expected[6:]


def test_state_with_other_groups():
    def two():
        return torch.optim.SGD(
            [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr} for lr in (1.0, 3.0)]
        )

    opt = optimizer(0.5)
    scheduler = ThermoScheduler(opt, 10, shape="linear")
    run(scheduler, 5)
    larger = ThermoScheduler(two(), 10, shape="linear")
    larger.load_state_dict(scheduler.state_dict())
    assert larger.get_last_lr() == pytest.approx([0.25, 1.5])
    before = scheduler.state_dict()
    with pytest.raises(ValueError, match="2 groups"):
        scheduler.load_state_dict(larger.state_dict())
    assert scheduler.state_dict() == before


# ---------------------------------------------------------------- bad input


class Parts(Fixed):
    """What a chain looks like from outside."""

    def __init__(self, *controllers):
        super().__init__()
        self.controllers = controllers


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        ({"total_steps": None}, ValueError, ["total_steps", "None", "'cosine'"]),
        ({"total_steps": None, "shape": "linear"}, ValueError, ["total_steps", "None", "'linear'"]),
        ({"total_steps": 0}, ValueError, ["total_steps", "0", ">= 1"]),
        ({"total_steps": 10.0}, TypeError, ["total_steps", "10.0"]),
        ({"shape": "cosin"}, ValueError, ["shape", "'cosin'", "'cosine'"]),
        ({"warmup_steps": 11}, ValueError, ["warmup_steps", "11", "10"]),
        ({"warmup_steps": -1}, ValueError, ["warmup_steps", "-1"]),
        ({"warmup_steps": 0.1}, TypeError, ["warmup_steps", "0.1"]),
        ({"eta_min": -1.0}, ValueError, ["eta_min", "-1.0"]),
        ({"eta_min": math.nan}, ValueError, ["eta_min", "nan"]),
        ({"eta_min": 0.1}, ValueError, ["eta_min", "0.1", str(BASE)]),
        ({"rate": 0.1}, ValueError, ["rate", "0.1", "inverse_time"]),
        ({"shape": "inverse_time"}, ValueError, ["rate", "None"]),
        ({"optimizer": "adam"}, TypeError, ["optimizer", "'adam'"]),
        ({"controller": 3}, TypeError, ["controller", "3"]),
        ({"controller": Cooling(10)}, ValueError, ["shape", "'cosine'", "controller", "'constant'"]),
        ({"controller": Parts(Fixed(), Parts(Cooling(10)))}, ValueError, ["shape", "controller"]),
        ({"observer": "me"}, TypeError, ["observer", "'me'"]),
    ],
)
def test_bad_arguments_change_nothing(kwargs, error, words):
    opt = optimizer()
    with pytest.raises(error) as caught:
        ThermoScheduler(**{"optimizer": opt, "total_steps": 10, **kwargs})
    for word in words:
        assert word in str(caught.value)
    assert "initial_lr" not in opt.param_groups[0]
    assert opt.param_groups[0]["lr"] == BASE
    assert not opt._optimizer_step_pre_hooks


def test_observers_and_controllers_must_fit_the_optimizer():
    opt = optimizer()
    with pytest.raises(ValueError, match="got one that observes another"):
        ThermoScheduler(Observer(None, optimizer()), opt, 10)
    with pytest.raises(TypeError, match="observer"):
        ThermoScheduler(Observer(None, opt), opt, 10, observer=Observer(None, opt))
    own = ThermoAdamW(model().parameters(), controller=Fixed())
    with pytest.raises(ValueError, match="a controller of its own"):
        ThermoScheduler(own, 10, controller=Fixed())
    ThermoScheduler(own, 10)  # the plain schedule goes with it


def test_call_forms():
    opt = optimizer()
    observer = Observer(None, opt)
    assert ThermoScheduler(opt, 10).observer is None
    assert ThermoScheduler(opt, total_steps=10).observer is None
    assert ThermoScheduler(observer, opt, 10).observer is observer
    assert ThermoScheduler(observer, opt, total_steps=10, warmup_steps=2, eta_min=1e-7).observer is observer
    assert isinstance(ThermoScheduler(opt, 10), torch.optim.lr_scheduler.LRScheduler)
    with pytest.raises(TypeError, match="total_steps"):
        ThermoScheduler(opt)
