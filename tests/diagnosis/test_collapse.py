"""The collapse detector on noise in closed form, on nets sick and healthy, and the balance under it."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from thermoopt import CollapseDetector, Observer, ThermoAdamW, ThermoScheduler
from thermoopt.demo.gpt import GPT, GPTConfig
from thermoopt.diagnosis.collapse_detector import EVERY
from thermoopt.physics.norm_balance import NU, NormMotion, sgd_shrink, steps_until, swing_rest
from thermoopt.physics.terms import Term, norm_forecast

RMS = 0.07
LR = 3e-3
W = "group0.0"


# -------------------------------------------------------------------- the balance


@pytest.mark.parametrize(
    "kwargs",
    [
        {"lr": 0.1, "wd": 0.02, "momentum": 0.0},
        {"lr": 0.1, "wd": 0.01, "momentum": 0.9},
        {"lr": 0.1, "wd": 0.01, "momentum": 0.9, "nesterov": True},
        {"lr": 0.1, "wd": 0.05, "momentum": 0.9, "dampening": 0.5},
        {"lr": 0.01, "wd": 5.0, "momentum": 0.9},
        {"lr": 0.01, "wd": 5.0, "momentum": 0.9, "nesterov": True},
        {"lr": 1.0, "wd": 4.0, "momentum": 0.9},
    ],
)
def test_sgd_shrinks_a_norm_as_torch_does(kwargs):
    p = nn.Parameter(torch.ones(1, dtype=torch.float64))
    settings = {"weight_decay" if k == "wd" else k: v for k, v in kwargs.items()}
    opt = torch.optim.SGD([p], **settings)
    path = []
    for _ in range(240):
        p.grad = torch.zeros_like(p)
        opt.step()
        path.append(abs(p.item()))
    early, late = max(path[60:120]), max(path[180:240])  # the envelope, should it swing
    assert sgd_shrink(**kwargs) == pytest.approx((late / early) ** (1 / 120), rel=5e-3)


@pytest.mark.parametrize(
    ("norm2", "source", "alpha", "target2"),
    [(4.0, 0.001, 0.99, 1.0), (4.0, 0.0, 0.999, 0.5), (4.0, -0.01, 0.995, 3.0), (4.0, -0.01, 1.0, 1.0)],
)
def test_steps_until_is_the_forecast_solved_for_its_horizon(norm2, source, alpha, target2):
    steps = float(steps_until(norm2, source, alpha, target2))
    assert 1 < steps < 2000
    assert float(norm_forecast(norm2, source, alpha, steps)) == pytest.approx(target2, rel=1e-9)


def test_steps_until_never_and_at_once():
    never = steps_until([4.0, 4.0, 1.0], [0.1, 0.1, 0.1], [0.99, 1.0, 0.99], [1.0, 1.0, 2.0])
    assert never.tolist() == [math.inf] * 3  # rests above, grows for ever, is below and rises
    assert float(steps_until(1.0, 0.001, 0.99, 2.0)) == 0.0


def one_step(make, decay, size=8):
    """Gradient, parameter before and after one step, and the terms of its reading."""
    torch.manual_seed(1)
    p = nn.Parameter(torch.randn(size, size, dtype=torch.float64))
    opt = make([p])
    observer = Observer(None, opt, 1, ema_steps=1)
    before, g = p.detach().clone(), torch.randn(size, size, dtype=torch.float64)
    opt.param_groups[0]["weight_decay"] = decay
    p.grad = g.clone()
    opt.step()
    return g, before, p.detach().clone(), observer.reading.terms


def test_the_source_of_sgd_is_that_of_its_gradient_alone():
    lr, wd = 0.1, 0.5
    g, before, after, terms = one_step(lambda ps: torch.optim.SGD(ps, lr=lr), wd)
    alpha = 1 - lr * wd
    source = NormMotion.of(terms, lr * wd).source(lr, alpha)[0]
    assert source == pytest.approx(float(lr**2 * (g * g).sum() - 2 * alpha * lr * (g * before).sum()))
    assert alpha**2 * float((before**2).sum()) + source == pytest.approx(float((after**2).sum()))


def test_the_source_of_adamw_holds_at_another_decay():
    make = lambda ps: torch.optim.AdamW(ps, lr=0.1)  # noqa: E731
    _, _, _, terms = one_step(make, 0.5)
    _, before, after, _ = one_step(make, 2.0)  # the same gradient under four times the decay
    alpha = 1 - 0.1 * 2.0
    source = NormMotion.of(terms).source(0.1, alpha)[0]
    assert alpha**2 * float((before**2).sum()) + source == pytest.approx(float((after**2).sum()), rel=1e-6)


# -------------------------------------------------------------------- pure noise


def noise(make, steps, *, each=None, size=64, rms=RMS, seed=0, scale=1.0, **kwargs):
    """Random gradients on one matrix, ``each(step, detector, opt)`` after every step; shares of the norm."""
    torch.manual_seed(seed)
    p = nn.Parameter(torch.randn(size, size) * rms)
    opt = make([p])
    detector = CollapseDetector(None, opt, **kwargs)
    start = p.detach().norm().item()
    kept = []
    for step in range(1, steps + 1):
        p.grad = torch.randn(size, size) * scale
        opt.step()
        kept.append(p.detach().norm().item() / start)
        if each is not None:
            each(step, detector, opt)
    return detector, opt, kept


def adamw(wd, lr=LR):
    return lambda params: torch.optim.AdamW(params, lr=lr, weight_decay=wd)


def sgd(wd, lr, momentum=0.9, **kwargs):
    return lambda params: torch.optim.SGD(params, lr=lr, momentum=momentum, weight_decay=wd, **kwargs)


def test_forecast_of_noise_under_decay():
    detector, _, _ = noise(adamw(3.0), 60)
    forecast = detector.forecast(W)
    rest = math.sqrt(LR / (2 * 3.0)) / RMS  # rms of noise at rest, to first order in lr wd
    assert forecast.norm_forecast / forecast.norm_start == pytest.approx(rest, rel=0.1)
    assert forecast.low < rest * forecast.norm_start < forecast.high
    assert forecast.repaired_decay == pytest.approx(LR / (2 * (NU * RMS) ** 2), rel=0.2)
    assert forecast.free_fall == pytest.approx(1 - 1 / forecast.R_wd)
    assert (forecast.step, forecast.horizon, forecast.weight_decay) == (52, pytest.approx(1000), 3.0)
    assert detector.step() == {W: forecast.R_wd}


def test_forecast_and_steps_follow_weight_decay_and_lr_at_once():
    detector, opt, _ = noise(adamw(3.0), 60)
    before, in_steps = detector.forecast(W), detector.steps_to_collapse(W)
    assert 0 < in_steps < 200
    assert in_steps == detector.steps_to_collapse()
    opt.param_groups[0]["weight_decay"] = 0.1
    after = detector.forecast(W)
    assert after.R_wd == pytest.approx(before.R_wd * 0.1 / 3.0, rel=0.05)
    grown = RMS**2 * after.norm_now**2 / after.norm_start**2
    rest, shrink = LR / 0.2, (1 - LR * 0.1) ** 2000
    # closed form of noise: S = lr^2 a step and element
    assert after.norm_forecast / after.norm_start == pytest.approx(
        math.sqrt(rest + (grown - rest) * shrink) / RMS, rel=0.1
    )
    assert detector.steps_to_collapse(W) == math.inf
    opt.param_groups[0]["lr"] = LR / 10
    slow = detector.forecast(W)
    assert 0 < slow.norm_forecast - slow.norm_now < 0.2 * (after.norm_forecast - after.norm_now)


def test_the_interval_holds_the_norm_that_noise_comes_to():
    _, _, kept = noise(adamw(3.0), 1500, size=48)
    rest, hits = np.mean(kept[700:]), 0
    for seed in range(12):
        detector, _, _ = noise(adamw(3.0), 300, seed=seed, size=32, each=lambda step, d, opt: d.step())
        forecast = detector.forecast(W)
        assert forecast.high - forecast.low < 0.4 * forecast.norm_forecast
        hits += forecast.low < rest * forecast.norm_start < forecast.high
    assert hits >= 10  # 95 % wanted


def test_a_norm_that_comes_to_rest_near_the_limit_is_no_news():
    wd = LR / (2 * (1.01 * NU * RMS) ** 2)  # 0.98 of the limit: first order in lr wd
    detector, _, _ = noise(adamw(wd), 600, size=128, each=lambda step, d, opt: d.step())
    assert detector.alarms == []
    assert detector.forecast(W).norm_forecast < NU * detector.forecast(W).norm_start


def test_slow_turning_spares_a_norm_far_above_its_rest():
    detector, _, _ = noise(adamw(0.1, lr=1e-3), 100, rms=1.0, horizon=2e4, each=lambda step, d, opt: d.step())
    forecast = detector.forecast(W)
    assert forecast.norm_forecast < 0.2 * forecast.norm_start
    assert forecast.free_fall > 0.9
    assert detector.alarms == []
    assert detector.steps_to_collapse() == math.inf


def test_a_source_below_zero_is_not_trusted_for_long():
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(64, 64) * 0.2)
    opt = torch.optim.AdamW([p], lr=1e-2, weight_decay=0.1)
    detector, below = CollapseDetector(None, opt), 0
    for step in range(200):
        p.grad = torch.randn(64, 64) + 0.2 * p.detach()  # a little more inwards than the noise gives back
        opt.step()
        detector.step()
        if step % 10 == 9 and detector.forecast(W).R_wd == math.inf:
            below += 1
            assert detector.forecast(W).horizon == 50
    assert below > 3
    assert detector.alarms == []


def test_it_is_news_for_one_step_and_says_the_same_twice():
    seen = []

    def each(step, detector, opt):
        detector.step()
        seen.append((detector.is_collapsing, detector.is_collapsing))

    detector, _, kept = noise(adamw(3.0), 600, each=each)
    assert all(a == b for a, b in seen)
    (fired,) = [step for step, (a, _) in enumerate(seen, 1) if a]  # once, though it lies below half for long
    assert kept[fired - 1] > 0.7
    assert min(kept) < 0.4
    assert [alarm.step for alarm in detector.alarms] == [fired]
    assert detector.collapsing == [W]


@pytest.mark.parametrize("asked", [1, 7, 35])
def test_it_looks_by_itself_and_keeps_news_for_who_asks_late(asked):
    seen = []

    def each(step, detector, opt):
        if step % asked == 0:
            seen.append(detector.is_collapsing)

    noise(adamw(3.0), 210, each=each)
    assert sum(seen) == 1


def test_lower_decay_ends_the_alarm_at_once_and_only_what_still_collapses_fires_again():
    fires = []

    def each(step, detector, opt):
        if detector.is_collapsing:
            fires.append(step)
            for group in opt.param_groups:
                group["weight_decay"] *= 0.2
            assert not detector.is_collapsing
            assert detector.collapsing == []

    detector, opt, kept = noise(adamw(30.0, lr=1e-3), 400, each=each)
    # at rest at sqrt(lr / 2 wd): 0.13 of the start under 6, 0.29 under 1.2, 0.65 under 0.24
    assert len(fires) == 3
    assert min(np.diff(fires)) >= EVERY
    assert opt.param_groups[0]["weight_decay"] == pytest.approx(0.24)
    assert min(kept[-100:]) > 0.5
    recommendations = detector.get_recommendations()
    assert [r.split(" (")[0] for r in recommendations] == [
        f"[LOW] At step {step}, 1 {detector.observer.layer_types[W]} layer" for step in fires
    ]


def test_a_layer_back_above_half_is_news_again():
    fires = []

    def each(step, detector, opt):
        # the source goes, comes back and goes again; rest at 0.23, 1 and 0.23 of the start
        opt.param_groups[0]["lr"] = 0.02 if 400 < step <= 900 else 1e-3
        if detector.is_collapsing:
            fires.append(step)

    noise(adamw(2.0, lr=1e-3), 1500, each=each, size=32)
    assert len(fires) == 2
    assert fires[0] < 100
    assert fires[1] > 900


def test_the_decay_recommended_holds_half_of_the_norm():
    taken = []

    def each(step, detector, opt):
        if detector.is_collapsing:
            taken.append(detector.forecast(W).repaired_decay)
            opt.param_groups[0]["weight_decay"] = taken[-1]

    _, _, kept = noise(adamw(10.0), 1500, each=each)
    assert 1 <= len(taken) <= 4  # first from two readings, refined by more
    assert taken == sorted(taken, reverse=True)
    assert min(kept) > 0.9 * NU
    assert kept[-1] == pytest.approx(NU, rel=0.15)


def test_recommendations_name_the_factor_and_the_confidence():
    lines = {}

    def each(step, detector, opt):
        lines[step] = detector.get_recommendations()

    detector, _, _ = noise(adamw(10.0), 60, each=each)
    assert lines[9] == []
    (first,), (last,) = lines[20], lines[60]
    assert first.startswith("[MEDIUM] ")  # two readings have no scatter to speak of
    assert last.startswith("[HIGH] ")
    forecast = detector.forecast(W)
    match = re.search(r"by a factor of ([\d.]+) \(10 → ([\d.]+)\)", last)
    assert match is not None
    assert float(match[1]) == pytest.approx(10 / forecast.repaired_decay, rel=0.05)
    assert float(match[2]) == pytest.approx(forecast.repaired_decay, rel=0.05)
    assert "in 1000 steps" in last


@pytest.mark.parametrize("horizon", [None, 500])
@pytest.mark.parametrize("length", [200, 1000])
def test_no_forecast_extends_beyond_the_end_of_a_run(length, horizon):
    """The same decay, which leaves two thirds of a norm in 200 steps and a fifth in 1000."""
    schedulers = []

    def make(params):
        opt = adamw(0.7)(params)
        schedulers.append(ThermoScheduler(opt, length, shape="wsd"))
        return opt

    def each(step, detector, opt):
        schedulers[0].step()
        detector.step()
        if detector.observer.reading is not None:
            seen.append(detector.forecast(W))

    seen = []
    detector, _, kept = noise(make, length, rms=0.3, horizon=horizon, each=each)
    assert detector.observer.length == length
    assert all(f.horizon <= max(1, length - f.step) for f in seen)
    assert (kept[-1] < NU) is (length == 1000)
    assert bool(detector.alarms) is (length == 1000)


def test_a_shorter_horizon_is_forecast_and_warns_later():
    def each(step, detector, opt):
        detector.step()

    far, _, _ = noise(adamw(3.0), 250, each=each)
    near, _, _ = noise(adamw(3.0), 250, each=each, horizon=20)
    assert near.forecast(W).horizon == 20
    assert near.forecast(W).norm_forecast > far.forecast(W).norm_forecast
    (later,), (earlier,) = near.alarms, far.alarms
    assert later.step > earlier.step + 10


def test_one_look_at_the_end_is_enough():
    detector, _, kept = noise(adamw(2.0), 60)
    assert kept[-1] > 0.7
    assert detector.steps_to_collapse() > 2 * EVERY
    assert detector.is_collapsing
    assert len(detector.get_recommendations()) == 1
    detector, _, _ = noise(adamw(0.1), 250)
    assert not detector.is_collapsing


def test_an_observer_given_is_read_and_not_doubled():
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(64, 64) * RMS)
    opt = ThermoAdamW([("w", p)], lr=LR, weight_decay=3.0, backend="torch", measure_every=1)
    observer = Observer(None, opt)
    detector = CollapseDetector(None, opt, observer=observer)
    assert detector.observer is observer
    for _ in range(60):
        p.grad = torch.randn(64, 64)
        opt.step()
        detector.step()
    assert [alarm.layer for alarm in detector.alarms] == ["w"]
    opt.param_groups[0]["thermo"]["wd_scale"] = 0.5  # as a barostat would
    assert detector.forecast("w").weight_decay == 1.5
    assert detector.collapsing == []


# -------------------------------------------------------------------- decay inside of SGD's gradient


@pytest.mark.parametrize("kwargs", [{"momentum": 0.0}, {}, {"nesterov": True}], ids=str)
def test_sgd_at_rest_reads_one(kwargs):
    lr, wd = 0.02, 0.2 if kwargs.get("momentum") == 0 else 0.02
    ratios = []

    def each(step, detector, opt):
        if step > 1000 and step % 50 == 0:
            ratios.append(detector.step()[W])

    # starts where noise rests: var = lr s^2 / (2 wd), and 1 / (1 - momentum) of it
    rms = math.sqrt(lr / (2 * wd) / (1 - kwargs.get("momentum", 0.9)))
    _, _, kept = noise(sgd(wd, lr, **kwargs), 2500, each=each, size=32, rms=rms)
    assert kept[-1] == pytest.approx(1, abs=0.1)
    assert np.mean(ratios) == pytest.approx(1.0, rel=0.25)


@pytest.mark.parametrize(("lr", "wd"), [(0.01, 0.2), (0.003, 5.0), (0.01, 1.0)])
def test_the_decay_recommended_for_sgd_counts_its_momentum(lr, wd):
    detector, _, _ = noise(sgd(wd, lr), 400, each=lambda step, d, opt: d.step(), rms=1.0)
    # noise rests at var = lr / (2 wd (1 - momentum)): there at half of the start
    expected = lr / (2 * (1 - 0.9) * NU**2)
    assert detector.forecast(W).repaired_decay == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize(("lr", "wd"), [(0.01, 1.0), (0.03, 5.0)])
def test_sgd_keeps_the_rest_of_a_swinging_norm(lr, wd):
    _, _, kept = noise(sgd(wd, lr), 400, rms=1.0)
    assert np.mean(np.square(kept[100:])) == pytest.approx(swing_rest(lr, wd, 0.9), rel=0.05)


def test_sgd_whose_buffers_are_full_is_not_taken_for_a_start():
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(64, 64))
    opt = sgd(0.2, 0.01)([p])
    for step in range(115):
        if step == 100:
            detector = CollapseDetector(None, opt, observer=Observer(None, opt, 1))
        p.grad = torch.randn(64, 64) * 0.3 * p.detach().norm() / 64
        opt.step()
        if step >= 100:
            detector.step()
    assert [alarm.layer for alarm in detector.alarms] == [W]


@pytest.mark.parametrize("lr", [0.003, 0.006, 0.01, 0.02])
def test_a_swinging_norm_is_not_taken_for_a_source_or_a_gradients_doing(lr):
    # the first reading finds it on its way in, or out again
    detector, _, _ = noise(sgd(5.0, lr), 10, rms=3.0, each=lambda step, d, opt: d.step())
    assert [alarm.step for alarm in detector.alarms] == [10]


@pytest.mark.parametrize(("first", "then"), [(0.2, 0.02), (0.02, 0.2)])
def test_a_change_of_coupled_decay_is_not_taken_for_a_source(first, then):
    shares = []

    def each(step, detector, opt):
        opt.param_groups[0]["weight_decay"] = first if step <= 100 else then
        detector.step()
        if step > 110 and step % 10 == 0:
            shares.append(1 / detector.forecast(W).R_wd)

    # next to no source before or after, but ten times the smaller decay in the average
    noise(sgd(first, 0.001), 200, each=each, scale=1e-3, rms=1.0)
    assert max(shares) < 0.2


@pytest.mark.parametrize(("lr", "wd", "momentum"), [(1e-3, 5.0, 0.9), (1e-2, 5.0, 0.0)])
def test_sgd_under_decay_of_five_fires_and_is_rescued(lr, wd, momentum):
    def run(act):
        model = small_gpt()
        opt = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=wd)
        detector = CollapseDetector(model, opt)
        first, kept = None, Kept(model)
        for step, (x, y) in enumerate(text(80), 1):
            F.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
            opt.step()
            detector.step()
            opt.zero_grad()
            if detector.is_collapsing:
                first = first or (step, kept.least())
                if act:
                    for pg in opt.param_groups:
                        pg["weight_decay"] *= 0.1
        assert detector.get_recommendations()
        return first, kept.least()

    first, left = run(act=False)
    assert first is not None
    assert first[1] > NU
    assert left < 0.1
    assert run(act=True)[1] > 2 * left


def test_coupled_decay_of_other_optimizers_is_unavailable():
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(16, 16))
    opt = torch.optim.Adam([p], lr=LR, weight_decay=3.0)
    detector = CollapseDetector(None, opt)
    for _ in range(40):
        p.grad = torch.randn(16, 16)
        opt.step()
    assert detector.unavailable.keys() == {"group0"}
    assert math.isnan(detector.step()[W])
    assert math.isnan(detector.forecast(W).norm_forecast)
    assert detector.steps_to_collapse(W) == math.inf
    assert not detector.is_collapsing
    (line,) = detector.get_recommendations()
    assert line.startswith("unavailable for group0: Adam ")
    opt.param_groups[0]["weight_decay"] = 0.0
    assert detector.unavailable == {}


def test_an_own_optimizer_says_that_its_decay_is_decoupled():
    class Sign(torch.optim.Optimizer):
        def __init__(self, params, **groups):
            super().__init__(params, {"lr": 1e-3, "weight_decay": 30.0, **groups})

        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * p.grad.sign())

    detector, _, _ = noise(lambda params: Sign(params, decoupled_weight_decay=True), 60)
    assert [alarm.layer for alarm in detector.alarms] == [W]
    detector, _, _ = noise(Sign, 60)
    assert detector.alarms == []
    assert detector.unavailable


# -------------------------------------------------------------------- nets, sick


def small_gpt(seed=0):
    torch.manual_seed(seed)
    return GPT(GPTConfig(depth=1, width=48, heads=4, context=32))


def text(steps, seed=0):
    """Batches of this file's own bytes."""
    data = torch.tensor(list(Path(__file__).read_bytes()))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        at = torch.randint(0, len(data) - 33, (8, 1), generator=generator) + torch.arange(33)
        yield data[at][:, :-1], data[at][:, 1:]


class Kept:
    """The least share of its norm at the start that a matrix has kept."""

    def __init__(self, model):
        self.start = {p: p.detach().norm().item() for p in model.parameters() if p.ndim >= 2}

    def least(self):
        return min(p.detach().norm().item() / norm for p, norm in self.start.items())


@pytest.mark.parametrize(("lr", "wd"), [(1e-3, 10.0), (1e-3, 30.0), (3e-3, 10.0)])
def test_a_transformer_is_warned_before_half_of_a_norm_is_gone(lr, wd):
    model = small_gpt()
    opt = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=wd)
    detector, kept, warned = CollapseDetector(model, opt), Kept(model), None
    for step, (x, y) in enumerate(text(80), 1):
        opt.zero_grad()
        F.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
        opt.step()
        if detector.is_collapsing and warned is None:
            warned = step, kept.least()
    assert warned is not None
    assert warned[1] > NU
    assert kept.least() < NU
    assert {alarm.layer_type for alarm in detector.alarms} & {"attention", "mlp"}
    lines = [line for line in detector.get_recommendations() if not line.startswith("[LOW]")]
    assert lines
    assert all("Weight decay is collapsing" in line for line in lines)


# -------------------------------------------------------------------- nets, healthy


def images(steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(10, 3, 6, 6, generator=generator)
    for _ in range(steps):
        y = torch.randint(0, 10, (16,), generator=generator)
        yield means[y] + torch.randn(16, 3, 6, 6, generator=generator), y


def conv_net():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


class LargeEmbedding(nn.Module):
    """An embedding of unit variance that comes down to where the rest of the net is."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(64, 32)
        self.out = nn.Linear(32, 64)

    def forward(self, x):
        return self.out(self.table(x))


def labels(steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randint(0, 64, (32,), generator=generator)
        yield x, (x * 7 + torch.randint(0, 4, (32,), generator=generator)) % 64


LINEAR = lambda: nn.Sequential(nn.Flatten(), nn.Linear(108, 10))  # noqa: E731
HEALTHY = {
    "scale-invariant layers": (conv_net, images, adamw(0.1, 3e-3), None, 250),
    "scale-invariant layers, hot": (conv_net, images, adamw(0.1, 1e-2), None, 250),
    "scale-invariant layers, SGD": (conv_net, images, sgd(5e-4, 0.1), None, 250),
    "large embedding": (LargeEmbedding, labels, adamw(0.1, 1e-3), None, 400),
    "large embedding, hot": (LargeEmbedding, labels, adamw(0.1, 1e-2), None, 600),
    "converged, tiny decay": (LINEAR, images, adamw(1e-4, 1e-2), None, 600),
    "warm-up": (small_gpt, text, adamw(0.1, 3e-3), lambda step: min(1.0, step / 100), 150),
    "linear to zero": (small_gpt, text, adamw(0.1, 3e-3), lambda step: min(step / 20, 1 - step / 150), 150),
    "no decay": (small_gpt, text, adamw(0.0, 3e-3), None, 60),
}


@pytest.mark.parametrize(("net", "data", "make", "schedule", "steps"), HEALTHY.values(), ids=HEALTHY)
def test_healthy_runs_are_silent(net, data, make, schedule, steps):
    torch.manual_seed(0)
    model = net()
    opt = make(model.parameters())
    lr = opt.param_groups[0]["lr"]
    detector, fired = CollapseDetector(model, opt), []
    for step, (x, y) in enumerate(data(steps), 1):
        if schedule is not None:
            opt.param_groups[0]["lr"] = lr * schedule(step)
        out = model(x)
        opt.zero_grad()
        F.cross_entropy(out.flatten(0, -2), y.flatten()).backward()
        opt.step()
        fired.append(detector.is_collapsing)
    assert not any(fired)
    assert detector.alarms == []
    assert detector.get_recommendations() == []


def test_what_cannot_collapse_is_left_alone():
    torch.manual_seed(0)
    bias = nn.Parameter(torch.ones(4096) * RMS)
    zero = nn.Parameter(torch.zeros(64, 64))
    frozen = nn.Parameter(torch.randn(64, 64) * RMS, requires_grad=False)
    plain, sick = (nn.Parameter(torch.randn(64, 64) * RMS) for _ in range(2))
    groups = [
        {"params": [bias, zero, frozen, sick]},
        {"params": [plain], "weight_decay": 0.0},
    ]
    opt = torch.optim.AdamW(groups, lr=LR, weight_decay=10.0)
    detector = CollapseDetector(None, opt)
    for _ in range(100):
        for p in (bias, zero, plain, sick):
            p.grad = torch.randn_like(p)
        opt.step()
    assert [alarm.layer for alarm in detector.alarms] == ["group0.3"]
    assert detector.steps_to_collapse("group1.0") == math.inf
    with pytest.raises(KeyError, match=r"group0\.2"):
        detector.forecast("group0.2")  # no gradient, never measured


def test_a_layer_frozen_in_mid_run_collapses_no_further():
    torch.manual_seed(0)
    p, other = (nn.Parameter(torch.randn(64, 64) * RMS) for _ in range(2))
    opt = torch.optim.AdamW(
        [{"params": [p]}, {"params": [other], "weight_decay": 0.0}], lr=LR, weight_decay=10.0
    )
    detector = CollapseDetector(None, opt)
    for step in range(80):
        p.grad = torch.randn(64, 64) if step < 40 else None
        other.grad = torch.randn(64, 64)
        opt.step()
        if step == 39:
            assert detector.collapsing == [W]
    assert detector.collapsing == []


def test_a_gradient_that_shrinks_weights_is_told_from_decay():
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(64, 64) * RMS)
    opt = torch.optim.AdamW([p], lr=LR, weight_decay=0.3, betas=(0.9, 0.99))
    detector = CollapseDetector(None, opt)
    for _ in range(300):
        p.grad = torch.randn(64, 64) * 0.1 + 8 * p.detach() / RMS
        opt.step()
    assert detector.alarms == []
    (line,) = detector.get_recommendations()
    assert line.startswith("[LOW] 1 ")
    assert "learning rate rather than weight_decay" in line


def test_a_group_added_in_mid_run_is_watched_from_then_on():
    torch.manual_seed(0)
    p, late = (nn.Parameter(torch.randn(64, 64) * RMS) for _ in range(2))
    opt = torch.optim.AdamW([p], lr=LR, weight_decay=0.0)
    detector = CollapseDetector(None, opt)
    for step in range(150):
        if step == 50:
            opt.add_param_group({"params": [late], "weight_decay": 10.0})
        for q in (p, late):
            q.grad = torch.randn(64, 64)
        opt.step()
        detector.step()
    (alarm,) = detector.alarms
    assert alarm.layer == "group1.0"
    assert 50 < alarm.step <= 80


# -------------------------------------------------------------------- bad input, and before anything was read


@pytest.mark.parametrize(
    ("horizon", "error"),
    [*((value, ValueError) for value in (0.5, 0, math.inf, math.nan)), ("10", TypeError), (True, TypeError)],
)
def test_bad_horizon(horizon, error):
    p = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(error, match=f"horizon must be .* got {horizon!r}"):
        CollapseDetector(None, torch.optim.AdamW([p]), horizon=horizon)


def test_an_observer_of_another_optimizer_is_refused():
    p = nn.Parameter(torch.ones(2, 2))
    first, second = torch.optim.AdamW([p]), torch.optim.AdamW([p])
    with pytest.raises(ValueError, match=r"observer must be None or .* another AdamW"):
        CollapseDetector(None, first, observer=Observer(None, second))


def test_before_the_first_reading():
    model = nn.Linear(4, 4)
    detector = CollapseDetector(model, torch.optim.AdamW(model.parameters()))
    assert detector.step() == {}
    assert not detector.is_collapsing
    assert detector.collapsing == []
    assert detector.get_recommendations() == []
    assert detector.steps_to_collapse() == math.inf
    with pytest.raises(ValueError, match="no forecast for layer 'weight' yet"):
        detector.forecast("weight")


def test_terms_of_a_reading_are_not_changed():
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(16, 16))
    opt = sgd(0.1, 0.1)([p])
    detector = CollapseDetector(None, opt)
    for _ in range(20):
        p.grad = torch.randn(16, 16)
        opt.step()
    before = detector.observer.reading.terms.copy()
    detector.step()
    detector.get_recommendations()
    np.testing.assert_array_equal(detector.observer.reading.terms, before)
    assert before[Term.TT, 0] > 0
