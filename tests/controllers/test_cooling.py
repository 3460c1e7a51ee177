"""Shapes against torch's schedulers and closed forms, and the controller inside the optimizer."""

import copy
import math
from itertools import pairwise

import pytest
import torch

from tests.support.small_net import assert_same_bits, model, train
from thermoopt import ThermoAdamW, autotune
from thermoopt.controllers import Cooling


def factors(controller, steps):
    return [controller.update(None, step).lr for step in range(1, steps + 1)]


def torch_factors(make, steps):
    p = torch.nn.Parameter(torch.ones(1))
    opt = torch.optim.SGD([p], lr=1.0)
    scheduler = make(opt)
    out = []
    for _ in range(steps):
        out.append(opt.param_groups[0]["lr"])
        opt.step()
        scheduler.step()
    return out


@pytest.mark.parametrize("total", [1, 7, 100])
def test_cosine_is_torchs(total):
    theirs = torch_factors(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, total), total)
    assert factors(Cooling(total, "cosine", 0), total) == pytest.approx(theirs, abs=1e-12)


def test_cosine_to_a_tenth_is_torchs():
    theirs = torch_factors(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 50, eta_min=0.1), 50)
    assert factors(Cooling(50, "cosine", 0, floor=0.1), 50) == pytest.approx(theirs, abs=1e-12)


def test_linear_to_zero_is_torchs():
    def make(opt):
        return torch.optim.lr_scheduler.LinearLR(opt, start_factor=1.0, end_factor=0.0, total_iters=40)

    assert factors(Cooling(40, "linear", 0), 40) == pytest.approx(torch_factors(make, 40), abs=1e-12)


def test_warmup_is_linear_and_meets_the_shape():
    values = factors(Cooling(100, "linear", 0.1), 100)
    assert values[:10] == pytest.approx([k / 10 for k in range(1, 11)])
    assert values[10] == 1.0
    assert values[55] == pytest.approx(0.5)
    assert values == pytest.approx(factors(Cooling(100, "linear", 10), 100))


def test_trapezoid_stays_for_half_of_the_run_and_falls_on_a_line():
    values = factors(Cooling(100, "trapezoid", 0), 101)
    assert set(values[:51]) == {1.0}
    assert values[51:] == pytest.approx([1 - k / 50 for k in range(1, 51)])


def test_presets_that_start_low_hold_and_the_one_that_respects_lr_is_linear():
    shapes = {
        name: factors(autotune(100, name).controllers[-1], 100)
        for name in ("default", "finetune", "respect_lr")
    }
    for name, values in shapes.items():
        shape = "linear" if name == "respect_lr" else "trapezoid"
        assert values == factors(Cooling(100, shape, 0.1), 100)
    assert factors(autotune(100, shape="linear").controllers[-1], 100) == shapes["respect_lr"]


def test_wsd_stays_and_falls_like_one_minus_root():
    values = factors(Cooling(100, "wsd", 0), 100)
    assert set(values[:81]) == {1.0}
    assert values[85] == pytest.approx(1 - math.sqrt(0.25))
    assert values[99] == pytest.approx(1 - math.sqrt(0.95))


def test_inverse_time_grows_its_inverse_by_the_curvature():
    eta0, a = 0.2, 0.3
    etas = [eta0 * f for f in factors(Cooling(None, "inverse_time", 0, rate=a * eta0), 50)]
    assert etas[0] == eta0
    assert [1 / y - 1 / x for x, y in pairwise(etas)] == pytest.approx([a] * 49)


def test_default_warmup_is_a_twentieth():
    assert factors(Cooling(100), 6) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert factors(Cooling(None), 3) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("shape", ["linear", "cosine", "trapezoid", "wsd"])
def test_a_finished_schedule_stays_at_its_end(shape):
    with pytest.warns(UserWarning, match="step 21 is beyond total_steps = 20") as warned:
        values = factors(Cooling(20, shape, 0, floor=0.25), 60)
    assert len(warned) == 1
    assert values[20:] == pytest.approx([0.25] * 40)


def test_anytime_is_constant_until_the_quench():
    cooling = Cooling(None, warmup=0)
    assert factors(cooling, 30) == [1.0] * 30
    cooling.cool_now(4)
    values = [cooling.update(None, step).lr for step in range(31, 38)]
    assert values == pytest.approx([1, 0.5, 1 - math.sqrt(0.5), 1 - math.sqrt(0.75), 0, 0, 0])
    with pytest.raises(ValueError, match="under way since step 31"):
        cooling.cool_now(3)


def test_what_a_shape_has_left_is_its_last_factor_without_the_warm_up():
    cooling = Cooling(20, "linear", 5)
    seen = []
    for step in range(1, 21):
        cooling.update(None, step)
        seen.append(cooling.left)
    assert seen == pytest.approx([1.0] * 5 + [1 - t / 15 for t in range(15)])
    open_end = Cooling(None)
    factors(open_end, 9)
    open_end.cool_now(4)
    assert open_end.left == 1.0
    open_end.update(None, 10)
    open_end.update(None, 11)
    assert open_end.left == pytest.approx(0.5)


def test_inside_the_optimizer_it_is_a_schedule():
    ours, theirs = model(), model()
    opt = ThermoAdamW(ours.parameters(), lr=1e-2, controller=Cooling(12, "cosine", 0), backend="torch")
    ref = torch.optim.AdamW(theirs.parameters(), lr=1e-2)
    train(ours, opt, 12)
    for step in range(12):
        ref.param_groups[0]["lr"] = 1e-2 * ((1 + math.cos(math.pi * step / 12)) / 2)
        train(theirs, ref, 1, start=step)
    assert_same_bits(ours, opt, theirs, ref)
    assert opt.param_groups[0]["lr"] == 1e-2


def test_a_quench_survives_a_checkpoint():
    def build(net):
        controller = Cooling(None, warmup=2)
        return ThermoAdamW(net.parameters(), lr=1e-2, controller=controller, backend="torch"), controller

    whole = model()
    opt, controller = build(whole)
    train(whole, opt, 5)
    controller.cool_now(6)
    train(whole, opt, 2, start=5)
    saved, weights = copy.deepcopy(opt.state_dict()), copy.deepcopy(whole.state_dict())
    train(whole, opt, 4, start=7)
    other = model(seed=4)
    other.load_state_dict(weights)
    resumed, _ = build(other)
    resumed.load_state_dict(saved)
    train(other, resumed, 4, start=7)
    assert_same_bits(whole, opt, other, resumed)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"total_steps": 0}, ["total_steps", "0"]),
        ({"total_steps": 10, "shape": "cosin"}, ["shape", "'cosin'", "'cosine'"]),
        ({"total_steps": None, "warmup": 0.1}, ["warmup", "0.1"]),
        ({"total_steps": 10, "warmup": 20}, ["warmup", "20", "10"]),
        ({"total_steps": 10, "warmup": 2.5}, ["warmup", "2.5"]),
        ({"total_steps": 10, "floor": 1.5}, ["floor", "1.5"]),
        ({"total_steps": 10, "rate": 0.1}, ["rate", "0.1"]),
        ({"total_steps": None, "shape": "inverse_time", "warmup": 0}, ["rate", "None"]),
    ],
)
def test_bad_input(kwargs, words):
    with pytest.raises(ValueError, match=words[0]) as caught:
        Cooling(**kwargs)
    for word in words:
        assert word in str(caught.value)
