"""The distance from the start of any optimizer against a loop, and where its start is after a checkpoint."""

import copy
import warnings

import numpy as np
import pytest
import torch

from tests.support.lion import Lion
from tests.support.samples import logical, sampled
from tests.support.small_net import model, train
from tests.support.strides import measured
from thermoopt import Observer, ThermoAdamW, ThermoScheduler
from thermoopt.controllers import Controller, Scales
from thermoopt.observer.carried_start import KEY, CarriedTravel
from thermoopt.tensors.sampling import STRIDE, WHOLE

OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.04, momentum=0.9),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01),
    "lion": lambda params: Lion(params, lr=0.01),
    "thermoadamw": lambda params: ThermoAdamW(params, lr=0.01, measure_every=2, backend="torch"),
}


class Far(Controller):
    """Keeps the distances it is handed: ``{step: distance2}``."""

    needs = frozenset({"distance"})
    every = None

    def __init__(self, every=None):
        self.every, self.seen = every, {}

    def update(self, reading, step):
        if reading is not None:
            self.seen[reading.step] = None if reading.travel is None else reading.travel.distance2.tolist()
        return Scales()

    def state_dict(self):
        return {}

    def load_state_dict(self, state): ...

    def reset(self): ...


def distance2(params, start):
    return [float(((logical(p) - x0) ** 2).sum()) for p, x0 in zip(params, start, strict=True)]


def build(make, net, every=None, measure_every=2):
    opt = make(net.parameters())
    observer = Observer(None, opt, log_every=measure_every, ema_steps=5)
    far = Far(every)
    return opt, ThermoScheduler(observer, opt, None, shape="constant", controller=far), far


@pytest.mark.parametrize("closures", [False, True])
@pytest.mark.parametrize("every", [None, 5])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_reading_brings_the_distance_before_its_step(make, every, closures):
    net = model(torch.float64)
    opt, scheduler, far = build(make, net, every)
    params = list(net.parameters())
    with torch.no_grad():
        params[0].mul_(3.0)  # weights that come after construction: the start is before the first step
    start, expected = [logical(p) for p in params], {}
    for step in range(1, 21):
        expected[step] = distance2(params, start)
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64)

        def closure(x=x):
            opt.zero_grad()
            loss = net(x).square().mean()
            loss.backward()
            return loss

        if closures:
            opt.step(closure)
        else:
            closure()
            opt.step()
        scheduler.step()
    wanted = {None: measured(2, 20), 5: [2, 7, 12, 18]}[every]
    assert list(far.seen) == wanted
    for step in wanted:
        assert far.seen[step] == pytest.approx(expected[step], rel=1e-12), step
    assert sum(far.seen[18]) > 0


def test_calls_too_few_still_find_the_distance():
    """Readings pile up between two calls: the newest comes with its own distance."""
    net = model(torch.float64)
    opt, scheduler, far = build(OPTIMIZERS["sgd"], net, measure_every=1)
    start, expected = [logical(p) for p in net.parameters()], {}
    for step in range(1, 42):
        expected[step] = distance2(net.parameters(), start)
        train(net, opt, 1, start=step)
        if step in (1, 7, 8, 40, 41):
            scheduler.step()
    assert list(far.seen) == [1, 7, 8, 40, 41]
    for step, seen in far.seen.items():
        assert seen == pytest.approx(expected[step], rel=1e-12)


def test_a_group_holds_a_sample_and_no_more():
    net = torch.nn.Sequential(torch.nn.Linear(400, 200), torch.nn.Linear(200, 30))
    params = list(net.parameters())
    opt = torch.optim.SGD([{"params": params[:2]}, {"params": params[2:]}], lr=0.1)
    carried = CarriedTravel(opt, {"distance"})
    total = sum(p.numel() for p in params)
    assert total > WHOLE
    held = [group[KEY]["travel_start"] for group in opt.param_groups]
    assert total / STRIDE * 0.9 < sum(x.numel() for x in held) <= total / STRIDE
    carried.follow()
    expected = [logical(p)[sampled(p, large=True)] for p in params[:2]]
    assert opt.param_groups[0][KEY]["travel_start"].double().numpy() == pytest.approx(
        np.concatenate(expected)
    )
    for p in params:
        p.data += 0.5
    carried.measure(3)
    assert carried.take(3).distance2 == pytest.approx([p.numel() / 4 for p in params], rel=1e-5)
    assert carried.take(3) is None


def test_a_group_added_starts_late_and_the_others_keep_their_start():
    net, extra = model(), torch.nn.Parameter(torch.ones(4))
    opt, scheduler, far = build(OPTIMIZERS["sgd"], net, measure_every=1)
    train(net, opt, 3, scheduler=scheduler)
    opt.add_param_group({"params": [extra]})
    extra.data += 1.0
    start = [x.clone() for x in opt.param_groups[0][KEY].values()]
    train(net, opt, 1, scheduler=scheduler)
    extra.data += 2.0
    train(net, opt, 1, scheduler=scheduler)
    assert far.seen[4][4] == 0.0
    assert far.seen[5][4] == pytest.approx(16.0)
    assert min(far.seen[5][:4]) > 0
    assert all(torch.equal(a, b) for a, b in zip(start, opt.param_groups[0][KEY].values(), strict=True))
    assert opt.param_groups[1][KEY]["travel_start"].tolist() == [2.0] * 4


def test_a_group_that_makes_the_model_large_thins_the_others_start():
    net = model(torch.float64)
    params, start = list(net.parameters()), [logical(p) for p in net.parameters()]
    opt, scheduler, far = build(OPTIMIZERS["sgd"], net, measure_every=1)
    train(net, opt, 3, scheduler=scheduler)
    opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(2 * WHOLE, dtype=torch.float64))]})
    expected = []
    for p, x0 in zip(params, start, strict=True):
        where = sampled(p, large=True)
        moved = ((logical(p) - x0)[where] ** 2).sum()
        expected.append(0.0 if len(where) == 0 else float(moved) * p.numel() / len(where))
    train(net, opt, 1, scheduler=scheduler)
    assert far.seen[4] == pytest.approx([*expected, 0.0], rel=1e-9)
    assert max(expected) > 0


def test_a_dry_step_is_no_start():
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    net = model(torch.float64)
    opt, scheduler, far = build(OPTIMIZERS["adamw"], net, measure_every=1)
    get_optimizer_state_dict(net, opt)
    with torch.no_grad():
        net[0].weight.zero_()
    start = [logical(p) for p in net.parameters()]
    train(net, opt, 1, scheduler=scheduler)
    expected = distance2(net.parameters(), start)
    train(net, opt, 1, scheduler=scheduler)
    assert far.seen[2] == pytest.approx(expected)


# ---------------------------------------------------------------- checkpoints


def trained(make, steps=7):
    net = model(torch.float64)
    start = [logical(p) for p in net.parameters()]
    opt, scheduler, far = build(make, net, measure_every=1)
    train(net, opt, steps, scheduler=scheduler)
    return start, net, opt, scheduler, far


@pytest.mark.parametrize("order", ["optimizer first", "scheduler first", "optimizer before construction"])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_either_order_finds_the_start(make, order):
    start, net, opt, scheduler, _ = trained(make)
    other = model(torch.float64, seed=5)
    other.load_state_dict(net.state_dict())
    new = make(other.parameters())
    if order == "optimizer before construction":
        new.load_state_dict(opt.state_dict())
    far = Far()
    observer = Observer(None, new, log_every=1, ema_steps=5)
    late = ThermoScheduler(observer, new, None, shape="constant", controller=far)
    if order == "optimizer first":
        new.load_state_dict(opt.state_dict())
    late.load_state_dict(scheduler.state_dict())
    if order == "scheduler first":
        new.load_state_dict(opt.state_dict())
    expected = {}
    for step in range(8, 11):
        expected[step] = distance2(other.parameters(), start)
        train(other, new, 1, start=step, scheduler=late)
    last = max(far.seen)
    assert far.seen[last] == pytest.approx(expected[last], rel=1e-12)
    assert min(far.seen[last]) > 0


def test_going_back_in_one_process():
    _, net, opt, scheduler, far = trained(OPTIMIZERS["adamw"])
    saved = copy.deepcopy((net.state_dict(), opt.state_dict(), scheduler.state_dict()))
    train(net, opt, 5, start=7, scheduler=scheduler)
    first = dict(far.seen)
    for thing, state in zip((net, opt, scheduler), saved, strict=True):
        thing.load_state_dict(state)
    train(net, opt, 5, start=7, scheduler=scheduler)
    assert far.seen == first


@pytest.mark.parametrize("what", ["saved without", "not loaded", "another layout"])
def test_a_start_that_is_missing_is_said_and_the_distance_counts_from_now(what):
    _, net, opt, scheduler, _ = trained(OPTIMIZERS["adamw"])
    other = model(torch.float64, seed=5)
    other.load_state_dict(net.state_dict())
    new, late, far = build(OPTIMIZERS["adamw"], other, measure_every=1)
    state = copy.deepcopy(opt.state_dict())
    if what == "saved without":
        del state["param_groups"][0][KEY]
    elif what == "another layout":
        state["param_groups"][0][KEY] = {"travel_start": torch.zeros(3)}
    if what != "not loaded":
        new.load_state_dict(state)
    late.load_state_dict(scheduler.state_dict())
    start = [logical(p) for p in other.parameters()]
    with pytest.warns(RuntimeWarning, match=r"param_groups \[0\] hold no fitting 'thermo_travel'"):
        train(other, new, 1, start=8, scheduler=late)
    expected = distance2(other.parameters(), start)
    train(other, new, 1, start=9, scheduler=late)  # said once
    assert far.seen[9] == pytest.approx(expected)


def test_a_new_scheduler_on_a_trained_optimizer_starts_anew():
    _, net, opt, scheduler, _ = trained(OPTIMIZERS["sgd"])
    scheduler.observer.close()
    far = Far()
    observer = Observer(None, opt, log_every=1, ema_steps=5)
    late = ThermoScheduler(observer, opt, None, shape="constant", controller=far)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(net, opt, 1, start=8, scheduler=late)
    assert far.seen == {1: [0.0] * 4}


def test_a_state_saved_before_the_first_step_starts_at_it():
    net = model(torch.float64)
    opt, scheduler, _ = build(OPTIMIZERS["sgd"], net, measure_every=1)
    other = model(torch.float64, seed=5)
    new, late, far = build(OPTIMIZERS["sgd"], other, measure_every=1)
    new.load_state_dict(opt.state_dict())
    late.load_state_dict(scheduler.state_dict())
    train(other, new, 1, scheduler=late)
    assert far.seen == {1: [0.0] * 4}


@pytest.mark.parametrize("flat", [False, True])
def test_checkpoint_libraries_carry_the_start(flat, tmp_path):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    _, net, opt, scheduler, _ = trained(OPTIMIZERS["adamw"])
    weights, state = get_state_dict(net, opt, options=options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of a process without a group
        dcp.save({"net": weights, "opt": state, "scheduler": scheduler.state_dict()}, checkpoint_id=tmp_path)
        other = model(torch.float64, seed=5)
        new, late, _ = build(OPTIMIZERS["adamw"], other, measure_every=1)
        weights, state = get_state_dict(other, new, options=options)
        target = {"net": weights, "opt": state, "scheduler": late.state_dict()}
        dcp.load(target, checkpoint_id=tmp_path)
        set_state_dict(
            other, new, model_state_dict=target["net"], optim_state_dict=target["opt"], options=options
        )
    late.load_state_dict(scheduler.state_dict())
    train(other, new, 1, start=8, scheduler=late)
    for a, b in zip(opt.param_groups, new.param_groups, strict=True):
        assert torch.equal(a[KEY]["travel_start"], b[KEY]["travel_start"])
    assert new.param_groups[0][KEY]["travel_start"].numel() == sum(p.numel() for p in net.parameters())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
def test_a_compiled_step_is_measured():
    net = model(torch.float64)
    opt, scheduler, far = build(OPTIMIZERS["adamw"], net, measure_every=1)
    start = [logical(p) for p in net.parameters()]
    step = torch.compile(opt.step, backend="eager")
    for n in range(3):
        expected = distance2(net.parameters(), start)
        opt.zero_grad()
        net(torch.full((2, 6), 0.1 * n, dtype=torch.float64)).square().mean().backward()
        step()
        scheduler.step()
    assert far.seen[3] == pytest.approx(expected)


def test_serving_another_controller_ends_the_first():
    net = model()
    opt = OPTIMIZERS["sgd"](net.parameters())
    observer = Observer(None, opt, log_every=1)
    observer.serve(Far())
    observer.serve(Far())
    train(net, opt, 1)
    assert observer.fresh_reading().travel.distance2.tolist() == [0.0] * 4
    observer.close()
    assert not opt._optimizer_step_pre_hooks
