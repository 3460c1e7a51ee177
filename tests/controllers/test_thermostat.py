"""The thermostat inside ThermoAdamW: absolute rates, bounds, log, checkpoints, and what may go wrong."""

import copy
import json
import math
import pickle

import numpy as np
import pytest
import torch

from tests.support.disk import through_disk
from tests.support.small_net import assert_same_bits, model
from thermoopt import ThermoAdamW
from thermoopt.controllers.base import Action, Start
from thermoopt.controllers.cohorts import Cohort
from thermoopt.controllers.cooling import Cooling
from thermoopt.controllers.lever import Bounds, Lever
from thermoopt.controllers.setpoints import SMALLEST, Wanted
from thermoopt.controllers.thermostat import Thermostat
from thermoopt.controllers.wrappers import Chain

FAST = Bounds(slew_up=1.5, slew_down=1.5)


def target_of(x):
    return torch.stack([x[:, 0] - x[:, 1], x[:, 2] * 2, x[:, 3]], dim=1)


def loss_of(net, step, seed=1):
    rng = torch.Generator().manual_seed(seed * 1000 + step)
    x = torch.randn(16, 6, generator=rng).to(next(net.parameters()).dtype)
    return (net(x) - target_of(x)).square().mean()


def train(net, opt, steps, start=0, report=True):
    """Train on a small regression; losses are reported before each step."""
    for step in range(start, start + steps):
        opt.zero_grad()
        loss = loss_of(net, step)
        loss.backward()
        if report:
            opt.report_loss(loss)
        opt.step()


def build(net, law="diffusion", lr=1e-3, total=200, backend="native", optim=None, **options):
    thermostat = Thermostat(law, total_steps=total, **options)
    flags = {"weight_decay": 0.1, "measure_every": 1, "backend": backend, **(optim or {})}
    return ThermoAdamW(net.named_parameters(), lr=lr, controller=thermostat, **flags)


LAWS = {
    "angular": {"law": "angular"},
    "diffusion": {"law": "diffusion", "kappa": 0.1},
    "bounded_diffusion": {"law": "bounded_diffusion", "kappa": 0.01, "lead": 40.0},
    "distance": {"law": "distance", "bounds": FAST},
    "coherence": {"law": "coherence", "r_min": 20.0},
    "polyak": {"law": "polyak", "k": 0.1},
}
"""The laws with options at which each of them acts within some dozen steps."""


def scale(opt, group=0):
    return opt.param_groups[group]["thermo"]["lr_scale"]


def lever_of(opt, name="all"):
    return opt.controller.state_dict()["cohorts"][name]["lever"]


def matrix(n=12, m=10, size=0.3, seed=0, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    return torch.nn.Parameter(size * torch.randn(n, m, generator=rng, dtype=dtype))


# ------------------------------------------------------------------ absolute rates


@pytest.mark.parametrize("law", ["angular", "diffusion", "distance"])
def test_an_absolute_law_needs_no_lr(law):
    runs = []
    for lr in (1e-3, 0.5):
        net = model(torch.float64)
        opt = build(net, lr=lr, backend="torch", **LAWS[law])
        rates = []
        for step in range(60):
            train(net, opt, 1, start=step)
            rates.append(opt.reading.total.lr_eff)
        runs.append((rates, torch.cat([p.detach().flatten() for p in net.parameters()])))
        assert opt.param_groups[0]["lr"] == lr
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-9)
    torch.testing.assert_close(runs[0][1], runs[1][1], rtol=1e-8, atol=1e-10)
    moved = runs[0][0][-1] / runs[0][0][0]
    assert moved == pytest.approx(1.0) if law == "angular" else moved > 2  # the loop was closed


@pytest.mark.parametrize("lr", [1e-3, 0.5, torch.tensor(0.02)])
def test_angular_is_exact_and_an_outside_schedule_multiplies(lr):
    p = matrix()
    kappa, total, base = 1.2, 300, float(lr)
    opt = ThermoAdamW(
        [p],
        lr=lr.clone() if isinstance(lr, torch.Tensor) else lr,  # torch's schedulers write into it
        controller=Thermostat("angular", total_steps=total, kappa=kappa),
        measure_every=1,
        ema_steps=1,
        backend="torch",
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda s: 0.9**s)
    expected = kappa * math.sqrt(3 / total) * float(p.detach().square().mean().sqrt())
    for step in range(12):
        p.grad = torch.randn(p.shape, dtype=p.dtype)
        opt.step()
        scheduler.step()
        assert opt.reading.total.lr_eff == pytest.approx(expected * 0.9**step, rel=1e-6)
    assert float(opt.param_groups[0]["lr"]) == pytest.approx(base * 0.9**12)  # the schedule owns it


def test_a_warm_up_from_zero_is_no_lr_of_zero():
    """LambdaLR writes lr 0 before the first step: the unit is the lr that the optimizer was made with."""
    p = matrix()
    opt = ThermoAdamW([p], lr=0.1, controller=Thermostat("angular", total_steps=400), measure_every=1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda s: min(1.0, s / 4))
    start = p.detach().clone()
    seen = []
    for _ in range(6):
        p.grad = torch.ones_like(p)
        opt.step()
        scheduler.step()
        seen.append(scale(opt))
    assert len(set(seen)) == 1
    size = float(start.square().mean().sqrt()) * 1.5 * math.sqrt(3 / 400)
    # constant gradients: every step is lr_eff long; 0 + 1/4 + 2/4 + 3/4 + 1 + 1 of it
    moved = (start * (1 - 0) - p.detach()).mean()
    assert float(moved) == pytest.approx(3.5 * size, rel=0.02)


@pytest.mark.parametrize("law", ["angular", "diffusion", "distance"])
def test_an_lr_of_zero_at_attachment_is_refused(law):
    net = model()
    before = copy.deepcopy(net.state_dict())
    opt = build(net, law, lr=0.0)
    with pytest.raises(ValueError, match="lr of group 'group0' must be > 0"):
        train(net, opt, 1)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("law", ["coherence", "polyak"])
def test_a_law_that_scales_lr_takes_an_lr_of_zero(law):
    net = model()
    opt = build(net, law, lr=0.0)
    train(net, opt, 3)
    assert math.isfinite(scale(opt))


def test_the_group_lr_is_never_written():
    net = model()
    value = 1e-3
    opt = build(net, lr=value, **LAWS["diffusion"])
    for step in range(20):
        train(net, opt, 1, start=step)
        assert opt.param_groups[0]["lr"] is value
    assert len(opt.controller.log) > 0


def test_layers_run_at_their_own_rate_or_alike():
    for layers in (True, False):
        net = model()
        with torch.no_grad():
            net[2].weight.mul_(2)
        opt = build(net, "angular", layers=layers)
        train(net, opt, 2)
        rates = {name: q.lr_eff for name, q in opt.reading.layers.items()}
        if layers:
            d = 1.5 * math.sqrt(3 / 200)
            for name, (unit, _) in opt.controller.state_dict()["units"].items():
                assert rates[name] == pytest.approx(d * unit, rel=2 ** (1 / 16) - 1)
            assert rates["2.weight"] > 1.5 * rates["0.weight"]  # of a larger gain
        else:
            assert max(rates.values()) == pytest.approx(min(rates.values()))


# ------------------------------------------------------------------ what a law is told and may answer


def test_the_distance_law_is_prodigys_recursion_inside_the_optimizer():
    """Beside a float64 loop on a noisy quadratic; two layers whose rms differ by a power of two."""
    total, growth, beta1, beta2, k = 300, 1.05, 0.9, 0.99, 1.2
    first, second = matrix(size=0.2), torch.nn.Parameter(2 * matrix(size=0.2).detach())
    params, a = [first, second], [0.3, 5.0]
    s = [float(p.detach().square().mean().sqrt()) for p in params]
    opt = ThermoAdamW(
        params,
        lr=1e-2,
        betas=(beta1, beta2),
        weight_decay=0.0,
        eps=1e-12,
        controller=Thermostat(
            "distance", total_steps=total, bounds=Bounds(slew_up=growth), k=k, reverse=False
        ),
        measure_every=1,
        backend="torch",
    )
    x0 = [p.detach().numpy().copy() for p in params]
    x, m, v = ([arr.copy() for arr in x0] for _ in range(3))
    m, v, big_s = ([np.zeros_like(arr) for arr in x0] for _ in range(3))
    d, n, q = SMALLEST, 0.0, math.sqrt(beta2)
    ours, theirs = [], []
    for t in range(1, 151):
        noise = [np.random.default_rng(100 * t + i).standard_normal(xi.shape) * 0.1 for i, xi in enumerate(x)]
        for p, ai, ni in zip(params, a, noise, strict=True):
            p.grad = ai * p.detach() + torch.from_numpy(ni)
        opt.step()
        ours.append(scale(opt) * 1e-2 / opt.controller._units.group[0])
        theirs.append(d)
        bias = math.sqrt(1 - beta2**t) / (1 - beta1**t)
        impulse, n = 0.0, q * n
        for i, (ai, ni, si) in enumerate(zip(a, noise, s, strict=True)):
            g = ai * x[i] + ni
            n += d / SMALLEST * d * bias * float((g * (x0[i] - x[i])).sum())
            big_s[i] = q * big_s[i] + d / SMALLEST * d * si * g
            impulse += np.abs(big_s[i]).sum()
            m[i] = beta1 * m[i] + (1 - beta1) * g
            v[i] = beta2 * v[i] + (1 - beta2) * g * g
            x[i] = x[i] - d * si * bias * m[i] / np.sqrt(v[i])
        d = max(d, min(k * n / impulse, growth * d))
    assert theirs[-1] > 100 * SMALLEST
    # a target within 1 % of the last one is left alone
    assert ours == pytest.approx(theirs, rel=0.03)
    for p, xi in zip(params, x, strict=True):
        assert np.linalg.norm(p.detach().numpy() - xi) < 0.03 * (np.linalg.norm(xi) + 1)


def test_a_users_own_law():
    told = []

    def half_then_reason(signals, gain=1.0):
        told.append(signals)
        if signals.t < 10:
            return None
        return 0.5 * gain if signals.t < 20 else Wanted(2.0, {"t": (float(signals.t), 0.0)}, "time is up")

    net = model()
    opt = build(net, half_then_reason, total=40, bounds=Bounds(slew_up=2.0, slew_down=2.0), gain=1.5)
    scales = []
    for step in range(25):
        train(net, opt, 1, start=step)
        scales.append(scale(opt))
    assert scales[:9] == [1.0] * 9
    assert scales[9:19] == [0.75] * 10
    assert scales[19:] == [1.5] + [2.0] * 5
    first, second = opt.controller.log
    assert (first.step, first.new, first.reason) == (10, 0.75, "the user's law")
    assert (second.step, second.old, second.new) == (20, 0.75, 2.0)
    assert (second.reason, second.evidence["t"]) == ("time is up", (20.0, 0.0))
    assert second.evidence["rate_wanted"][0] == 2.0
    assert first.controller == "Thermostat(half_then_reason)"
    # one call a reading: step t decides on the reading of step t - 1
    assert [s.t for s in told] == list(range(2, 26))
    last = told[-1]
    assert last.total_steps == 40
    assert last.rate == 2.0
    assert last.loss == pytest.approx(float(loss_of_before_last(24)), rel=1e-4)
    assert last.lr_eff == pytest.approx(2e-3)
    assert math.isnan(last.distance)  # nobody measures it for a function


def loss_of_before_last(steps):
    """The loss reported before step 24 of the run above, trained again without a controller in the way."""
    net = model()
    opt = ThermoAdamW(net.named_parameters(), lr=1e-3, weight_decay=0.1, backend="native", measure_every=1)
    factors = [1.0] * 9 + [0.75] * 10 + [1.5] + [2.0] * 5
    for step in range(steps - 1):
        opt.param_groups[0]["thermo"]["lr_scale"] = factors[step]
        train(net, opt, 1, start=step)
    return loss_of(net, steps - 1).detach()


@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
def test_a_users_law_may_ask_for_nothing(bad):
    net = model()
    opt = build(net, lambda signals: bad)
    train(net, opt, 5)
    assert scale(opt) == 1.0
    assert opt.controller.log == []


def test_each_group_at_its_own_rate():
    """Motion of one group overshoots (its gradient turns round every two steps), the other's drifts."""
    drift, shaking = matrix(seed=1), matrix(seed=2)
    opt = ThermoAdamW(
        [{"params": [drift], "name": "drift"}, {"params": [shaking], "name": "shaking"}],
        controller=Thermostat("coherence", total_steps=200, per="group", bounds=FAST),
        measure_every=1,
        ema_steps=50,
    )
    for step in range(200):
        drift.grad = torch.ones_like(drift)
        shaking.grad = torch.ones_like(shaking) * (-1) ** (step // 2)
        opt.step()
    assert scale(opt, 0) == 1.0
    coherence = opt.reading.groups[1].coherence
    assert coherence < 0.7
    assert scale(opt, 1) == pytest.approx(coherence / 0.8, rel=0.05)
    assert {a.group for a in opt.controller.log} == {"shaking"}
    # for the run as a whole there is one rate
    together = ThermoAdamW(
        [{"params": [drift]}, {"params": [shaking]}], controller=Thermostat("coherence", total_steps=200)
    )
    for step in range(20):
        drift.grad = torch.ones_like(drift)
        shaking.grad = torch.ones_like(shaking) * (-1) ** (step // 2)
        together.step()
    assert scale(together, 0) == scale(together, 1)


# ------------------------------------------------------------------ bounds


@pytest.mark.parametrize(("lr", "kappa", "at"), [(1e-6, 1.5, 4.0), (0.05, 0.02, 0.25)])
def test_lr_scale_stays_within_its_bounds(lr, kappa, at):
    net = model()
    opt = build(net, "angular", lr=lr, kappa=kappa, lr_scale=(0.25, 4.0))
    train(net, opt, 5)
    assert scale(opt) == at


def test_a_law_that_scales_lr_starts_within_the_bounds_of_lr_scale():
    net = model()
    opt = build(net, lambda s: None, lr_scale=(2.0, 4.0))
    train(net, opt, 1)
    assert scale(opt) == 2.0


@pytest.mark.parametrize("per", ["run", "group"])
def test_nothing_winds_up_behind_the_bounds_of_lr_scale(per):
    """Polyak asks for ever more while lr_scale holds it; when it asks for less, less is done at once."""
    p = matrix()
    opt = ThermoAdamW(
        [p],
        lr=1e-6,
        controller=Thermostat("polyak", total_steps=2000, per=per, lr_scale=(0.5, 3.0), bounds=FAST),
        measure_every=1,
        ema_steps=1,
    )
    for step in range(300):
        p.grad = torch.ones_like(p)
        opt.report_loss(1e9 if step < 250 else 0.0)
        opt.step()
        if step == 249:
            assert scale(opt) == 3.0
            assert lever_of(opt, "all" if per == "run" else "group0")["value"] <= 3.0
        if step == 254:
            assert scale(opt) < 3.0
    assert scale(opt) == 0.5


def test_an_absolute_law_does_not_wind_up_behind_the_bounds_of_lr_scale():
    p = matrix()
    lr = 1e-3
    opt = ThermoAdamW(
        [p],
        lr=lr,
        controller=Thermostat("diffusion", total_steps=500, kappa=1e-3, lr_scale=(0.0, 2.0), bounds=FAST),
        measure_every=1,
    )
    for _ in range(200):
        p.grad = torch.ones_like(p)
        opt.step()
    unit = float(matrix().detach().square().mean().sqrt())
    assert scale(opt) == pytest.approx(2.0)
    assert lever_of(opt)["value"] == pytest.approx(2.0 * lr / unit)


# ------------------------------------------------------------------ log


@pytest.mark.parametrize("late", [False, True])
def test_a_rate_is_not_raised_once_the_shape_has_left_less_than_half(late):
    """The same law at the same weights: held below half, free above; newcomers are on their way."""
    lever = Lever(FAST, 0.1)
    cohort = Cohort(lever, "all", late=late)
    cohort.gear.cut = 0.5  # the law counts in rates before the gear lowered them
    higher, lower = Wanted(0.3, {}, "raised"), Wanted(0.1, {}, "lowered")
    assert cohort.unheated(higher, 0.5) is higher
    assert cohort.unheated(lower, 0.1) is lower
    assert cohort.unheated(None, 0.1) is None
    held = cohort.unheated(higher, 0.49)
    assert held.rate == (0.3 if late else 0.2)
    assert late or ("the cooling has left 0.49" in held.reason and held.evidence["amplitude_left"][0] == 0.49)


def test_a_quench_ends_all_raising():
    def raised(cool):
        net = model(torch.float64)
        chain = Chain(Thermostat("diffusion", total_steps=200, kappa=0.1), Cooling(None))
        opt = ThermoAdamW(net.named_parameters(), controller=chain, measure_every=1, backend="torch")
        train(net, opt, 15)
        if cool:
            chain.cool_now(20)
        train(net, opt, 45, start=15)
        states = {s.state for s in opt.history.standings}
        return [a.step for a in opt.controller.log if a.kind == "lr" and a.new > a.old], states

    (free, shown), (cooled, told) = raised(False), raised(True)
    assert "cooling" in told - shown
    assert max(free) > 35
    assert [s for s in cooled if s <= 15] == [s for s in free if s <= 15]
    assert max(cooled) <= 22  # from 1 - sqrt(5 / 20) = 1/2 on


def test_log_entries_are_complete_and_survive_json():
    net = model()
    opt = build(net, **LAWS["diffusion"], reverse=False)
    train(net, opt, 60)
    log = opt.controller.log
    assert len(log) > 3
    assert [a.step for a in log] == sorted(a.step for a in log)
    for action in log:
        assert action.controller == "Thermostat(diffusion)"
        assert (action.group, action.kind) == ("all", "lr")
        assert action.new > action.old > 0
        assert action.reason
        own = {"r", "r_setpoint", "distance", "diffusion_length"}
        assert set(action.evidence) == {*own, "rate_wanted", "rate_held", "phi", "phi_star"}
        e = {name: value for name, (value, _) in action.evidence.items()}
        assert e["phi"] / e["phi_star"] == pytest.approx(e["r"], rel=1e-6)
        assert (e["rate_wanted"], e["rate_held"]) == (action.new, action.old)
        assert all(math.isfinite(value) for value, _ in action.evidence.values())
    assert log[-1].evidence["r"][1] > 0  # r fluctuates, and how much is known
    again = [Action.from_dict(json.loads(json.dumps(a.to_dict()))) for a in log]
    for a, b in zip(log, again, strict=True):
        assert str(a) == str(b)  # NaN is not equal to itself
    log.clear()
    assert len(opt.controller.log) > 3  # what is handed out is a copy


def test_the_error_of_r_is_the_spread_of_its_readings():
    """Readings of white noise of standard deviation 0.3: successive differences over root 2 give it back."""
    cohort = Cohort(Lever(Bounds()), "all")
    rng = np.random.default_rng(0)
    told = [cohort.r_error(r) for r in 1 + 0.3 * rng.standard_normal(4000)]
    assert np.sqrt(np.mean(np.square(told[100:]))) == pytest.approx(0.3, rel=0.1)
    cohort.r_error(math.nan)
    assert math.isfinite(cohort.r_error(1.0))


# ------------------------------------------------------------------ checkpoints


HELD = Bounds(slew_up=1.2, slew_down=1.2, min_readings=2, hold_off=7)


def same_control(a, b):
    assert json.dumps(a.controller.state_dict()) == json.dumps(b.controller.state_dict())
    for g, h in zip(a.param_groups, b.param_groups, strict=True):
        assert g["thermo"]["lr_scale"] == h["thermo"]["lr_scale"]
        assert torch.equal(g["thermo"]["layer_factors"], h["thermo"]["layer_factors"])


@pytest.mark.parametrize(("backend", "cut"), [("torch", 24), ("native", 1), ("native", 24), ("native", 25)])
@pytest.mark.parametrize("law", LAWS)
def test_resume_in_mid_run_is_bit_for_bit(law, backend, cut):
    options = {**LAWS[law], "bounds": HELD, "backend": backend}
    whole = model()
    opt = build(whole, **options)
    train(whole, opt, cut)
    saved, weights = through_disk(opt.state_dict()), copy.deepcopy(whole.state_dict())
    train(whole, opt, 35, start=cut)
    other = model(seed=5)
    other.load_state_dict(weights)
    resumed = build(other, **options)
    resumed.load_state_dict(saved)
    train(other, resumed, 35, start=cut)
    assert_same_bits(whole, opt, other, resumed)
    same_control(opt, resumed)
    assert (len(opt.controller.log) > 2) == (law != "angular")


def test_resume_in_the_middle_of_a_hold_off_and_of_a_way_to_a_target():
    options = {"law": "diffusion", "kappa": 0.01, "bounds": Bounds(slew_up=1.02, hold_off=30)}
    whole = model()
    opt = build(whole, **options)
    train(whole, opt, 40)
    lever = lever_of(opt)
    acted = opt.controller.log[-1].step
    assert lever["value"] < lever["target"]
    assert 40 - acted < 25  # held, and the way not done
    saved, weights = through_disk(opt.state_dict()), copy.deepcopy(whole.state_dict())
    train(whole, opt, 50, start=40)
    other = model(seed=5)
    other.load_state_dict(weights)
    resumed = build(other, **options)
    resumed.load_state_dict(saved)
    train(other, resumed, 50, start=40)
    assert_same_bits(whole, opt, other, resumed)
    same_control(opt, resumed)
    assert opt.controller.log[-1].step > acted + 29


def test_a_loss_reported_now_and_then_survives_a_checkpoint():
    def go(net, opt, steps, start=0):
        for step in range(start, start + steps):
            opt.zero_grad()
            loss = loss_of(net, step)
            loss.backward()
            if step % 10 == 0:
                opt.report_loss(loss)
            opt.step()

    whole = model()
    opt = build(whole, **LAWS["polyak"])
    go(whole, opt, 25)
    saved, weights = through_disk(opt.state_dict()), copy.deepcopy(whole.state_dict())
    go(whole, opt, 20, start=25)
    other = model(seed=5)
    other.load_state_dict(weights)
    resumed = build(other, **LAWS["polyak"])
    resumed.load_state_dict(saved)
    go(other, resumed, 20, start=25)
    assert_same_bits(whole, opt, other, resumed)
    same_control(opt, resumed)


def users_law(signals, gain=1.0):
    """A law that pickles: a function of a module."""
    return gain * (1 + 0.1 * math.sin(signals.t))


@pytest.mark.parametrize("law", [*LAWS, "user"])
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_go_on_like_the_original(clone, law):
    options = LAWS.get(law, {"law": users_law, "gain": 0.5})
    net = model()
    opt = build(net, **options)
    train(net, opt, 12)
    net2, opt2 = clone((net, opt))
    train(net, opt, 20, start=12)
    steps = len(opt2.controller.log)
    train(net2, opt2, 20, start=12)
    assert_same_bits(net, opt, net2, opt2)
    same_control(opt, opt2)
    assert opt2.controller is not opt.controller
    assert len(opt2.controller.log) > steps or law == "angular"


# ------------------------------------------------------------------ irregular runs


def dry_step(opt, net):
    """What a checkpoint library does with a fresh optimizer."""
    lrs = [group["lr"] for group in opt.param_groups]
    for group in opt.param_groups:
        group["lr"] = 0.0
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    opt.step()
    for group, lr in zip(opt.param_groups, lrs, strict=True):
        group["lr"] = lr


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("law", LAWS)
def test_a_dry_step_moves_nothing_and_the_start_is_taken_afterwards(law, backend):
    options = {**LAWS[law], "backend": backend}
    net, plain = model(seed=3), model()
    opt = build(net, **options)
    before = copy.deepcopy(net.state_dict())
    dry_step(opt, net)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert opt.controller.state_dict()["begun"] == 0
    assert opt.controller.log == []
    # weights of another size are loaded now: they are the start
    weights = {k: v * (8 if "0." in k else 1) for k, v in plain.state_dict().items()}
    ref = build(plain, **options)
    for n, o in ((net, opt), (plain, ref)):
        n.load_state_dict(weights)
        train(n, o, 1)
    same_control(opt, ref)
    assert opt.controller.state_dict()["begun"] == 1
    ours, theirs = (o.state_dict()["param_groups"][0]["thermo"] for o in (opt, ref))
    for key in ("start_lr", "start_wd", "start_rms", "travel_start", "travel_impulse", "travel_work"):
        assert (key in ours) == (key in theirs), key
        if key in ours:
            assert torch.equal(torch.as_tensor(ours[key]), torch.as_tensor(theirs[key])), key
    train(net, opt, 30, start=1)
    assert opt.reading.step == 31
    assert all(torch.isfinite(p).all() for p in net.parameters())


@pytest.mark.parametrize("law", LAWS)
def test_a_checkpoint_loaded_after_a_dry_step_goes_on(law):
    """The order in which a checkpoint library works: state is made by a dry step, then filled."""
    whole = model()
    opt = build(whole, **LAWS[law])
    train(whole, opt, 15)
    saved, weights = through_disk(opt.state_dict()), copy.deepcopy(whole.state_dict())
    train(whole, opt, 15, start=15)
    other = model(seed=5)
    resumed = build(other, **LAWS[law])
    dry_step(resumed, other)
    other.load_state_dict(weights)
    resumed.load_state_dict(saved)
    train(other, resumed, 15, start=15)
    assert_same_bits(whole, opt, other, resumed)
    same_control(opt, resumed)


@pytest.mark.filterwarnings("ignore:groups differ in lr")
@pytest.mark.parametrize("per", ["run", "group"])
@pytest.mark.parametrize("law", LAWS)
def test_a_group_added_in_mid_run(law, per):
    net, late = model(), matrix(7, 5, size=2.0, dtype=torch.float32)
    opt = build(net, per=per, **LAWS[law])
    train(net, opt, 15)
    begun, start = opt.controller.state_dict()["begun"], late.detach().clone()
    before = scale(opt)
    opt.add_param_group({"params": [("late", late)], "lr": 0.02, "name": "late"})
    for step in range(15, 40):
        late.grad = torch.randn(late.shape, generator=torch.Generator().manual_seed(step))
        for p in net.parameters():
            p.grad = None
        loss = loss_of(net, step)
        loss.backward()
        opt.report_loss(loss)
        opt.step()
        if step == 15:
            assert abs(math.log(scale(opt) / before)) <= 100 / 200 + 1e-9  # no jump: e in T/100 steps
    assert opt.controller.state_dict()["begun"] == begun == 1
    assert all(math.isfinite(scale(opt, g)) for g in (0, 1))
    if law == "angular":
        d = 1.5 * math.sqrt(3 / 200)
        rms = opt.param_groups[1]["thermo"]["start_rms"].tolist()
        assert rms == pytest.approx([float(start.square().mean().sqrt())], rel=1e-6)
        unit = opt.controller.state_dict()["units"]["late"][0]
        assert opt.reading.layers["late"].lr_eff == pytest.approx(d * unit, rel=0.05)  # its warm-up is over
        assert scale(opt, 0) == before
    # and it goes through a checkpoint
    other, other_late = copy.deepcopy(net), torch.nn.Parameter(late.detach().clone())
    resumed = build(other, per=per, **LAWS[law])
    resumed.add_param_group({"params": [("late", other_late)], "lr": 0.02, "name": "late"})
    resumed.load_state_dict(through_disk(opt.state_dict()))
    for n, o, extra in ((net, opt, late), (other, resumed, other_late)):
        extra.grad = torch.ones_like(extra)
        train_keeping(n, o, 40, extra)
    assert_same_bits(net, opt, other, resumed)
    assert torch.equal(late, other_late)
    same_control(opt, resumed)


def train_keeping(net, opt, start, extra):
    for step in range(start, start + 12):
        opt.zero_grad()
        extra.grad = torch.ones_like(extra)
        loss = loss_of(net, step)
        loss.backward()
        opt.report_loss(loss)
        opt.step()


@pytest.mark.parametrize("how", ["requires_grad", "grad"])
@pytest.mark.parametrize("law", LAWS)
def test_a_parameter_frozen_in_mid_run(law, how):
    net = model()
    opt = build(net, **LAWS[law])
    train(net, opt, 15)
    frozen = net[0].weight
    if how == "requires_grad":
        frozen.requires_grad_(False)
    else:
        frozen.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    held = frozen.detach().clone()
    others = net[2].weight.detach().clone()
    train(net, opt, 30, start=15)
    assert torch.equal(frozen, held)
    assert not torch.equal(net[2].weight, others)
    assert math.isfinite(scale(opt))
    assert scale(opt) > 0
    assert opt.reading.step == 45


@pytest.mark.parametrize("law", LAWS)
def test_a_model_of_zeros(law):
    """The layers' unit falls back; zero matrices are where LoRA's B starts."""
    net = model()
    for p in net.parameters():
        torch.nn.init.zeros_(p)
    opt = build(net, **LAWS[law])
    train(net, opt, 20)
    assert math.isfinite(scale(opt))
    if law == "angular":
        assert opt.reading.total.lr_eff == pytest.approx(0.02 * 1.5 * math.sqrt(3 / 200))
    assert all(torch.isfinite(p).all() for p in net.parameters())
    assert net[2].bias.abs().sum() > 0


@pytest.mark.parametrize("law", LAWS)
def test_steps_with_nan_gradients_leave_the_controller_as_it_was(law):
    net = model()
    opt = build(net, **{**LAWS[law], "bounds": Bounds(slew_up=1e9, slew_down=1e9)})
    train(net, opt, 20)
    train(net, opt, 1, start=20)
    for p in net.parameters():
        p.grad = torch.full_like(p, math.nan)
    opt.step()  # decides on the reading of the step before
    state, now = json.dumps(opt.controller.state_dict()), scale(opt)
    for _ in range(5):
        for p in net.parameters():
            p.grad = torch.full_like(p, math.nan)
        opt.step()
    assert json.dumps(opt.controller.state_dict()) == state
    assert scale(opt) == now
    assert opt.reading.skipped["nonfinite"] == 6


def test_scales_stay_as_they_are_where_nothing_was_read():
    start = Start(("w",), (0,), ("g",), (10,), (2,), (0.5,), (5,), (0.1,), (0.0,), (0.9,), (0.999,))
    for law in ("angular", "diffusion", "coherence", "polyak"):
        thermostat = Thermostat(law, total_steps=200)
        assert thermostat.update(None, 1).lr == 1.0  # nobody told it anything
        thermostat.attach(start)
        first = thermostat.update(None, 1)
        state = thermostat.state_dict()
        for step in range(2, 30):
            assert thermostat.update(None, step) == first
        assert thermostat.state_dict() == state
        wanted = 1.5 * math.sqrt(3 / 200) * 0.5 / 0.1 if law in ("angular", "diffusion") else 1.0
        assert first.lr == pytest.approx([wanted])
        assert first.weights is None


# ------------------------------------------------------------------ losses


def test_losses_reach_polyak_by_report_and_by_closure():
    losses = []
    for way in ("report", "tensor", "closure"):
        net = model()
        opt = build(net, **LAWS["polyak"])
        for step in range(20):
            if way == "closure":

                def closure(net=net, opt=opt, step=step):
                    opt.zero_grad()
                    loss = loss_of(net, step)
                    loss.backward()
                    return loss

                opt.step(closure)
                continue
            opt.zero_grad()
            loss = loss_of(net, step)
            loss.backward()
            opt.report_loss(loss if way == "tensor" else loss.item())
            loss.detach().zero_()  # what is done with it afterwards is nobody's business
            opt.step()
        log = opt.controller.log
        assert len(log) > 5
        losses.append([a.evidence["loss"][0] for a in log])
        assert all(a.evidence["sigma_setpoint"][0] == pytest.approx(0.1 * a.evidence["loss"][0]) for a in log)
        # the action of step t is decided on the loss before step t - 1
        assert log[0].step == 2
        assert log[0].evidence["loss"][0] == pytest.approx(loss_of(model(), 0).item())
    assert losses[0] == pytest.approx(losses[1])
    assert losses[0] == pytest.approx(losses[2])


@pytest.mark.parametrize("bad", [math.nan, math.inf, torch.tensor(math.nan)])
def test_losses_that_are_no_numbers_ask_for_nothing(bad):
    net = model()
    opt = build(net, **LAWS["polyak"])
    for step in range(15):
        train(net, opt, 1, start=step, report=False)
        opt.report_loss(bad)
    assert scale(opt) == 1.0
    assert opt.controller.log == []
    # and the next good one does
    train(net, opt, 3, start=15)
    assert scale(opt) != 1.0


def test_without_a_loss_polyak_does_nothing():
    net = model()
    opt = build(net, **LAWS["polyak"])
    train(net, opt, 10, report=False)
    assert scale(opt) == 1.0


@pytest.mark.parametrize("bad", ["1.0", True, torch.ones(2)])
def test_a_loss_of_another_kind_is_refused(bad):
    opt = build(model(), **LAWS["polyak"])
    error = ValueError if isinstance(bad, torch.Tensor) else TypeError
    with pytest.raises(error, match=r"loss must be .*one.* element"):
        opt.report_loss(bad)


# ------------------------------------------------------------------ what it asks for, and bad input


def test_it_names_the_sums_it_lives_on():
    needs = {law: set(Thermostat(law).needs) for law in LAWS}
    assert needs.pop("diffusion") == {"distance"}
    assert needs.pop("bounded_diffusion") == {"distance", "impulse"}
    assert needs.pop("distance") == {"impulse"}
    assert all(not n for n in needs.values())


@pytest.mark.parametrize(
    ("total", "ema", "every"), [(None, None, None), (100, 5, 1), (400, 10, 2), (1600, 40, 8), (10**6, 50, 50)]
)
def test_its_averages_are_short_against_the_run(total, ema, every):
    thermostat = Thermostat("diffusion", total_steps=total)
    assert (thermostat.ema_steps, thermostat.every) == (ema, every)
    opt = ThermoAdamW([matrix()], controller=thermostat)
    assert opt.ema_steps == (ema or 50)


def test_the_default_slew_is_e_in_a_hundredth_of_the_run():
    net = model()
    opt = build(net, lambda s: 1e9, total=1000, optim={"measure_every": 1})
    train(net, opt, 42)
    # the first reading is of step 1; ten steps of T/100 each make one e
    assert scale(opt) == pytest.approx(math.exp(4.1), rel=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        ({"setpoint": "difusion"}, ValueError, ["setpoint", "'difusion'", "'diffusion'"]),
        ({"setpoint": 3.0}, TypeError, ["setpoint", "3.0", "function"]),
        ({"total_steps": 0}, ValueError, ["total_steps", "0", "None"]),
        ({"total_steps": True}, ValueError, ["total_steps", "True"]),
        ({"total_steps": 10.5}, ValueError, ["total_steps", "10.5"]),
        ({"total_steps": math.inf}, ValueError, ["total_steps", "inf"]),
        ({"per": "layer"}, ValueError, ["per", "'layer'", "'group'"]),
        ({"lr_scale": (2.0, 1.0)}, ValueError, ["lr_scale", "(2.0, 1.0)"]),
        ({"lr_scale": (-1.0, 1.0)}, ValueError, ["lr_scale", "-1.0"]),
        ({"kappa": 0.0}, ValueError, ["kappa", "0.0", "> 0"]),
        ({"kappa": math.nan}, ValueError, ["kappa", "nan"]),
        ({"setpoint": "polyak", "f_star": math.inf}, ValueError, ["f_star", "inf"]),
        ({"k": 1.0}, TypeError, ["'k'"]),
        ({"setpoint": "coherence", "kappa": 1.0}, TypeError, ["'kappa'"]),
        ({"setpoint": "distance", "r_min": 1.0}, TypeError, ["'r_min'"]),
        ({"setpoint": users_law, "kappa": 1.0}, TypeError, ["'kappa'"]),
    ],
)
def test_bad_input(kwargs, error, words):
    with pytest.raises(error) as caught:
        Thermostat(**kwargs)
    for word in words:
        assert word in str(caught.value)


def test_a_negative_lowest_loss_is_a_loss_like_any_other():
    assert Thermostat("polyak", f_star=-3.0).log == []
