"""The barostat on norm balances in closed form, on noise in the optimizer, and on everything odd."""

import dataclasses
import io
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from thermoopt import ThermoAdamW
from thermoopt.account.reading import Reading
from thermoopt.controllers.base import Start
from thermoopt.controllers.decay.barostat import BOUNDS, Barostat, repaired_decay
from thermoopt.controllers.lever import Bounds
from thermoopt.controllers.wrappers import DryRun
from thermoopt.physics.terms import Term

NUMEL = 4096
RMS = 0.07  # nn.Linear's for 64 inputs
LR = 3e-3
NOISE = 0.0526  # mean squared update of an element in pure noise at beta1 = 0.9
START2 = RMS**2 * NUMEL


@dataclasses.dataclass
class Layer:
    """A matrix whose norm obeys |th'|^2 = (1 - lr wd)^2 |th|^2 + S in plain floats."""

    name: str = "w"
    group: int = 0
    ndim: int = 2
    norm2: float = START2
    source: float = LR**2 * NUMEL  # of Adam in pure noise
    update: float = NOISE
    lr: float = LR
    wd: float = 3.0  # what the group says
    seen: bool = True
    frozen: bool = False

    def advance(self, step, scale=1.0):
        # a little noise: a norm that stays to the last bit is that of a frozen layer
        if not self.frozen:
            noisy = self.source * (1 + 0.01 * math.sin(step))
            self.norm2 = (1 - self.lr * self.wd * scale) ** 2 * self.norm2 + noisy


def start(layers, beta2=0.999):
    groups = range(1 + max(layer.group for layer in layers))
    wd = {layer.group: layer.wd for layer in layers}
    return Start(
        names=tuple(layer.name for layer in layers),
        group_of=tuple(layer.group for layer in layers),
        group_names=tuple(f"g{g}" for g in groups),
        numel=(NUMEL,) * len(layers),
        ndim=tuple(layer.ndim for layer in layers),
        rms=tuple(math.sqrt(layer.norm2 / NUMEL) for layer in layers),
        fan_in=(1,) * len(layers),
        lr=(LR,) * len(groups),
        wd=tuple(wd[g] for g in groups),
        beta1=(0.9,) * len(groups),
        beta2=(beta2,) * len(groups),
    )


def read(step, layers, scales=None):
    """The reading of a step in which the scales held."""
    n_groups = 1 + max(layer.group for layer in layers)
    terms = np.zeros((len(Term), len(layers)))
    for i, layer in enumerate(layers):
        wd = layer.wd * (scales[layer.group] if scales else 1.0)
        terms[Term.TT, i] = layer.norm2
        terms[Term.SOURCE, i] = layer.source
        terms[Term.PULL, i] = 2 * layer.lr * wd * layer.norm2
        terms[Term.STEP2, i] = layer.lr**2 * NUMEL * layer.update
        terms[Term.NUMEL, i] = NUMEL
        terms[Term.LR_NUMEL, i], terms[Term.WD_NUMEL, i] = layer.lr * NUMEL, wd * NUMEL
    return Reading(
        step=step,
        names=tuple(layer.name for layer in layers),
        terms=terms,
        group_of=np.array([layer.group for layer in layers]),
        group_names=tuple(f"g{g}" for g in range(n_groups)),
        seen=np.array([layer.seen for layer in layers]),
        skipped={},
    )


def run(barostat, layers, steps, *, first=1, every=10, change=None):
    """Close the loop; return the scales of every step. ``first`` above 1 goes on with a run."""
    if first == 1:
        barostat.attach(start(layers))
    out = []
    shown = None
    for step in range(first, first + steps):
        if change is not None:
            change(step)
        wd = barostat.update(shown, step).wd
        for layer in layers:
            layer.advance(step, wd[layer.group])
        shown = read(step, layers, wd) if step % every == 0 else None
        out.append(list(wd))
    return out


def ratio(layer):
    return math.sqrt(layer.norm2 / START2)


def acts(barostat):
    return [a for a in barostat.log if a.old != a.new]


# -------------------------------------------------------------------- repair


def test_repaired_decay_keeps_the_norm_it_is_for():
    source, lr, norm2 = 0.037, 3e-3, 5.0
    wd = repaired_decay(source, lr, norm2)
    # one step of the exact balance moves the norm by (lr wd)^2 of itself, and by nothing of first order
    assert (1 - lr * wd) ** 2 * norm2 + source == pytest.approx(norm2 * (1 + (lr * wd) ** 2), rel=1e-15)
    assert math.isnan(repaired_decay(source, 0.0, norm2))


def test_without_it_the_norm_collapses():
    layer = Layer()
    for step in range(4000):
        layer.advance(step)
    assert ratio(layer) == pytest.approx(math.sqrt(LR / (2 * 3.0)) / RMS, rel=0.01)
    assert ratio(layer) < 0.35


@pytest.mark.parametrize("every", [2, 10, 50])
@pytest.mark.parametrize("wd", [3.0, 10.0, 100.0])
def test_it_holds_half_of_the_norm(wd, every):
    layer, barostat = Layer(wd=wd), Barostat()
    scales = run(barostat, [layer], 6000, every=every)
    assert ratio(layer) == pytest.approx(0.5, rel=0.06)
    # pure noise rests at rms = sqrt(lr / 2 wd)
    assert scales[-1][0] * wd == pytest.approx(LR / (2 * (0.5 * RMS) ** 2), rel=0.12)
    assert all(
        a[0] / 1.1 <= b[0] * (1 + 1e-12) and b[0] <= a[0] * 1.01 * (1 + 1e-12) for a, b in pairwise(scales)
    )
    assert len(barostat.log) <= 3


def test_it_acts_before_the_norm_is_lost():
    layer, barostat = Layer(), Barostat()
    lowest = []
    run(barostat, [layer], 3000, change=lambda step: lowest.append(ratio(layer)))
    assert min(lowest) > 0.48


def test_the_action_says_what_it_saw():
    layer, barostat = Layer(name="block.weight"), Barostat()
    lag = []
    run(barostat, [layer], 61, change=lambda step: lag.append(layer.norm2))
    (action,) = barostat.log
    assert (action.step, action.controller, action.group, action.kind, action.old) == (
        61,
        "Barostat",
        "g0",
        "wd",
        1.0,
    )
    norm2 = layer_norm2 = lag[60]
    for _ in range(1000):
        norm2 = (1 - LR * 3.0) ** 2 * norm2 + layer.source
    pull = 2 * LR * 3.0 * layer_norm2
    values = {name: value for name, (value, _) in action.evidence.items()}
    assert values == pytest.approx(
        {
            "R_wd": pull / layer.source,
            "norm": math.sqrt(layer_norm2),
            "reference": math.sqrt(START2),
            "forecast": math.sqrt(norm2),
            "free_fall": 1 - layer.source / pull,
            "angular_step": LR * math.sqrt(NUMEL * NOISE / layer_norm2),
            "angular_forecast": LR * math.sqrt(NUMEL * NOISE / norm2),
        },
        rel=1e-9,
    )
    assert all(math.isnan(error) for _, error in action.evidence.values())
    assert "block.weight" in action.reason
    assert "1000 steps" in action.reason


def test_the_worst_layer_of_a_group_decides():
    layers = [Layer("a"), Layer("b", source=0.3 * LR**2 * NUMEL), Layer("c", source=1.0)]
    barostat = Barostat()
    run(barostat, layers, 200)
    (action,) = barostat.log
    assert "as much of b as gradients restore" in action.reason
    assert action.new * 3.0 == pytest.approx(0.3 * LR / (2 * (0.5 * RMS) ** 2))


def test_groups_are_judged_one_by_one():
    layers = [Layer("a"), Layer("b", group=1, wd=0.1), Layer("c", group=2, wd=0.0, norm2=9.0)]
    barostat = Barostat()
    scales = run(barostat, layers, 400)
    assert scales[-1][0] < 0.5
    assert {(s[1], s[2]) for s in scales} == {(1.0, 1.0)}
    assert {a.group for a in barostat.log} == {"g0"}


# -------------------------------------------------------------------- silence


@pytest.mark.parametrize(
    "layer",
    [
        Layer(wd=0.1),
        Layer(wd=0.0),
        Layer(wd=3.0, ndim=1),
        # starts far above its equilibrium, and turns slowly all the way down
        Layer(wd=0.1, norm2=float(NUMEL), lr=1e-3, source=1e-6 * NUMEL),
        # falls fast and far, but not below half of the start
        Layer(wd=3.0, source=3 * LR**2 * NUMEL),
    ],
    ids=["usual decay", "no decay", "a bias", "large embedding", "rests above half"],
)
def test_healthy_layers_are_left_alone(layer):
    barostat = Barostat()
    scales = run(barostat, [layer], 20_000 if layer.norm2 == NUMEL else 4000)
    assert {s[0] for s in scales} == {1.0}
    assert barostat.log == []


def test_the_angular_bound_is_what_spares_the_large_embedding():
    layer = Layer(wd=0.1, norm2=float(NUMEL), lr=1e-3, source=1e-6 * NUMEL)
    barostat = Barostat(angular_bound=0.0)
    run(barostat, [layer], 10_000)
    assert acts(barostat)


def test_a_gradient_that_shrinks_weights_is_reported_once_until_the_norm_is_back():
    layer = Layer(wd=0.1, source=0.0, update=1.0)
    barostat = Barostat()

    def change(step):
        sinking = step <= 400 or 700 < step
        layer.source = -0.004 * layer.norm2 if sinking else 0.002 * START2

    scales = run(barostat, [layer], 1200, change=change)
    assert {s[0] for s in scales} == {1.0}
    assert [a.old == a.new == 1.0 for a in barostat.log] == [True, True]
    assert all("w" in a.reason and "gradient" in a.reason for a in barostat.log)
    assert barostat.log[0].step < 400
    assert barostat.log[1].step > 700
    assert barostat.log[0].evidence["R_wd"][0] == math.inf


def test_nothing_happens_in_the_first_fifty_steps():
    layer, barostat = Layer(wd=30.0), Barostat()
    run(barostat, [layer], 400, every=1)
    assert barostat.log[0].step == 52  # the first reading came at step 2


# -------------------------------------------------------------------- recovery, hold-off, bounds


def test_decay_recovers_slowly_when_the_source_is_back():
    layer, barostat = Layer(), Barostat()

    def change(step):
        # holds 0.41, then 0.93, then more than all of the decay at half of the norm
        layer.source = (1 + 1.28 * (step > 1500) + 0.4 * (step > 2500)) * LR**2 * NUMEL

    scales = [s[0] for s in run(barostat, [layer], 3500, change=change)]
    assert scales[1499] == pytest.approx(0.41, abs=0.05)
    assert scales[2499] == pytest.approx(0.93, abs=0.01)
    assert scales[-1] == 1.0
    assert "raised" in barostat.log[-1].reason
    assert max(b / a for a, b in pairwise(scales)) <= 1.01 * (1 + 1e-12)
    assert max(scales) == 1.0
    assert barostat.state_dict()["groups"]["g0"]["repaired"] == []


def feed(barostat, step, norm, layer, scale=1.0, readings=12):
    """Show so many readings of a norm, a share of that at the start; return the next step."""
    for i in range(readings):
        layer.norm2 = norm**2 * START2 * (1 + 1e-6 * i)
        barostat.update(read(step, [layer], [scale]), step + 1)
        step += 10
    return step


def test_decay_waits_with_recovery_until_the_norm_no_longer_falls():
    layer, barostat = Layer(), Barostat()
    barostat.attach(start([layer]))
    step = feed(barostat, 1, 0.9, layer)
    repaired = barostat.log[-1].new
    assert len(barostat.log) == 1
    layer.source *= 2
    # decay takes 0.64 / (2 * 0.25) of what the source gives, then 0.36 / (2 * 0.25)
    step = feed(barostat, step, 0.8, layer, repaired, 40)
    assert len(barostat.log) == 1
    feed(barostat, step, 0.6, layer, repaired)
    assert [a.new for a in barostat.log[1:]] == pytest.approx([2 * repaired])


def test_a_norm_that_is_about_to_come_to_rest_is_left_alone():
    layer, barostat = Layer(wd=3.0), Barostat()
    barostat.attach(start([layer]))
    layer.source = 0.45**2 * START2 * (1 - (1 - LR * 3.0) ** 2)
    step = feed(barostat, 1, 0.6, layer, readings=40)  # free fall 0.44
    assert barostat.log == []
    feed(barostat, step, 0.7, layer)  # 0.59
    assert len(barostat.log) == 1


def test_a_small_norm_is_left_alone_while_it_rises():
    layer, barostat = Layer(wd=3.0), Barostat()
    barostat.attach(start([layer]))
    layer.source = 0.45**2 * START2 * (1 - (1 - LR * 3.0) ** 2)
    step = feed(barostat, 1, 0.3, layer, readings=40)
    assert barostat.log == []
    feed(barostat, step, 0.46, layer)
    assert [a.new * 3.0 for a in barostat.log] == pytest.approx([3.0 * 0.45**2 / 0.5**2], rel=0.01)


def test_wider_bounds_still_raise_nothing_above_what_the_group_says():
    layer, barostat = Layer(), Barostat(bounds=Bounds(lo=0.1, hi=5.0))

    def change(step):
        layer.source = (10 if step > 1500 else 1) * LR**2 * NUMEL

    scales = [s[0] for s in run(barostat, [layer], 3000, change=change)]
    assert (min(scales) < 0.5, max(scales), scales[-1]) == (True, 1.0, 1.0)


def test_a_source_that_trembles_moves_nothing():
    rng = np.random.default_rng(0)
    layer, barostat = Layer(), Barostat()

    def change(step):
        layer.source = LR**2 * NUMEL * float(rng.uniform(0.95, 1.05))

    run(barostat, [layer], 6000, change=change)
    assert len(barostat.log) == 1


@pytest.mark.parametrize(("every", "least"), [(1, 100), (10, 100), (50, 500)])
def test_actions_keep_their_distance(every, least):
    rng = np.random.default_rng(0)
    layer, barostat = Layer(), Barostat()

    def change(step):
        layer.source = LR**2 * NUMEL * float(rng.uniform(0.1, 3.0))

    run(barostat, [layer], 6000, every=every, change=change)
    steps = [a.step for a in acts(barostat)]
    assert len(steps) > 5
    assert min(b - a for a, b in pairwise(steps)) >= least


def test_bounds_hold():
    layer = Layer(wd=3.0, source=1e-4 * LR**2 * NUMEL, update=1.0)
    barostat = Barostat(bounds=Bounds(lo=0.2, hi=1.0, slew_down=1.5, min_readings=2))
    scales = [s[0] for s in run(barostat, [layer], 500)]
    assert min(scales) == 0.2
    assert barostat.log[0].new == 0.2
    assert BOUNDS.hi == 1.0


def test_scales_are_neutral_before_it_is_attached():
    barostat = Barostat()
    assert barostat.update(read(1, [Layer()]), 2).spread(1) == ([1.0], [1.0])


# -------------------------------------------------------------------- coupling


def test_decay_follows_the_learning_rate_and_its_maximum():
    layer, barostat = Layer(wd=0.1), Barostat()
    peak = 100

    def change(step):
        layer.lr = LR * (step / peak if step <= peak else (500 - step) / 400)

    scales = [s[0] for s in run(barostat, [layer], 499, every=1, change=change)]
    assert set(scales[: peak + 1]) == {1.0}
    for step in range(peak + 2, 500):
        before = LR * (500 - (step - 1)) / 400  # the last reading is of the step before
        assert before * 0.1 * scales[step - 1] == pytest.approx(0.1 * before**2 / LR, rel=1e-12)


def test_without_coupling_decay_stays():
    layer, barostat = Layer(wd=0.1), Barostat(couple=False)

    def change(step):
        layer.lr = LR * (1 - step / 400)

    assert {s[0] for s in run(barostat, [layer], 399, change=change)} == {1.0}


def test_coupled_decay_keeps_the_equilibrium_of_noise():
    # wd ~ lr keeps sqrt(lr / 2 wd): the norm rests where it was while lr falls tenfold
    layer = Layer(wd=LR / (2 * RMS**2))
    other = dataclasses.replace(layer)
    barostat = Barostat()

    def change(step):
        for each in (layer, other):
            each.lr = LR * max(0.1, 1 - step / 4000)
            each.source = each.lr**2 * NUMEL

    run(barostat, [layer], 8000, change=change)
    run(Barostat(couple=False), [other], 8000, change=change)
    assert ratio(layer) == pytest.approx(1.0, abs=0.01)
    assert ratio(other) < 0.8


def test_coupled_decay_is_repaired_to_the_same_absolute_value():
    layer, barostat = Layer(wd=30.0), Barostat()

    def change(step):
        layer.lr = LR if step < 20 else LR / 2
        layer.source = layer.lr**2 * NUMEL

    scales = run(barostat, [layer], 4000, change=change)
    assert ratio(layer) == pytest.approx(0.5, rel=0.06)
    assert scales[-1][0] * 30.0 == pytest.approx(LR / 2 / (2 * (0.5 * RMS) ** 2), rel=0.12)


def test_lr_zero_is_no_collapse_and_no_division():
    layer, barostat = Layer(), Barostat()

    def change(step):
        layer.lr = LR if step < 300 else 0.0
        layer.source = layer.lr**2 * NUMEL

    scales = run(barostat, [layer], 600, change=change)
    assert scales[-1] == [0.0]
    assert len(acts(barostat)) <= 2


# -------------------------------------------------------------------- what is odd


def test_zero_initialised_matrices_never_collapse():
    layers = [Layer("lora_b", norm2=0.0, source=1e-6), Layer("w", group=1)]
    barostat = Barostat()
    scales = run(barostat, layers, 600)
    assert {s[0] for s in scales} == {1.0}
    assert scales[-1][1] < 1.0


def test_layers_never_seen_and_frozen_ones_are_ignored():
    layers = [Layer("unseen", seen=False), Layer("frozen", group=1, frozen=True), Layer("w", group=2)]
    barostat = Barostat()
    scales = run(barostat, layers, 600)
    assert {(s[0], s[1]) for s in scales} == {(1.0, 1.0)}
    assert scales[-1][2] < 1.0


def test_a_frozen_layer_keeps_its_last_lr_out_of_the_coupling():
    layers = [Layer("frozen", wd=0.1), Layer("live", wd=0.1)]
    barostat = Barostat()

    def change(step):
        layers[0].frozen = step > 100
        layers[1].lr = LR if step <= 200 else LR / 4

    assert run(barostat, layers, 400, change=change)[-1][0] == pytest.approx(0.25)


def test_a_layer_frozen_after_its_repair_keeps_the_decay_where_it_is():
    layer, barostat = Layer(), Barostat()

    def change(step):
        layer.frozen = step > 300

    scales = run(barostat, [layer], 1500, change=change)
    assert scales[-1] == scales[400] < [0.6]


def test_nan_terms_change_nothing():
    layer, barostat = Layer(), Barostat()
    run(barostat, [layer], 300)
    before = barostat.state_dict()
    broken = read(301, [layer])
    broken.terms[:] = math.nan
    value = barostat.update(broken, 302).wd
    after = barostat.state_dict()
    assert all(math.isfinite(v) for v in value)
    assert after["log"] == before["log"]
    assert after["groups"]["g0"]["coupling"] == before["groups"]["g0"]["coupling"]
    assert after["groups"]["g0"]["lever"]["target"] == before["groups"]["g0"]["lever"]["target"]


def test_a_group_added_in_mid_run_starts_at_one_and_leaves_the_others():
    layers, barostat = [Layer("a")], Barostat()
    before = run(barostat, layers, 300)
    layers.append(Layer("b", group=1))
    old = read(300, layers[:1], before[-1])  # a reading from before speaks of fewer layers
    barostat.attach(start(layers))  # says another norm of "a": the first counts
    scales = barostat.update(old, 301).wd
    assert scales[0] == pytest.approx(before[-1][0], rel=0.1)
    assert scales[1] == 1.0
    for layer in layers:
        layer.source *= 1.5
    run(barostat, layers, 3000, first=302)
    assert [ratio(layer) for layer in layers] == pytest.approx([0.5, 0.5], rel=0.06)


@pytest.mark.parametrize("attach_first", [True, False])
def test_it_resumes_in_a_hold_off_bit_for_bit(attach_first):
    layers, barostat = [Layer("a"), Layer("b", group=1, wd=20.0)], Barostat()
    at_start = start(layers)
    run(barostat, layers, 140)
    assert barostat.log
    assert 140 - barostat.log[-1].step < BOUNDS.hold_off
    file = io.BytesIO()
    torch.save(barostat.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    copies = [dataclasses.replace(layer) for layer in layers]
    other = Barostat()
    if attach_first:
        other.attach(at_start)
    other.load_state_dict(saved)
    if not attach_first:
        other.attach(at_start)

    def go_on(controller, own):
        def change(step):
            for layer in own:
                layer.source = 3 * LR**2 * NUMEL

        return run(controller, own, 700, first=141, change=change)

    assert go_on(barostat, layers) == go_on(other, copies)
    assert repr(other.state_dict()) == repr(barostat.state_dict())
    assert len(other.log) > len(saved["log"])


def test_reset_forgets_the_run_and_takes_the_next_start():
    layer, barostat = Layer(), Barostat()
    run(barostat, [layer], 400)
    barostat.reset()
    assert barostat.log == []
    assert barostat.update(None, 1).wd == [1.0]
    fresh = Layer(norm2=4 * START2)
    again = run(barostat, [fresh], 3000)
    new = Layer(norm2=4 * START2)
    assert again == run(Barostat(), [new], 3000)
    assert ratio(fresh) == pytest.approx(1.0, rel=0.06)  # half of a norm twice as large


def test_an_optimizer_without_second_moment_is_forecast_over_an_average():
    barostat = Barostat()
    layer = Layer(wd=10.0)
    barostat.attach(start([layer], beta2=0.0))
    for step in range(1, 200):
        layer.advance(step)
        barostat.update(read(step, [layer]), step + 1)
    assert "in 50 steps" in barostat.log[0].reason


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"nu": 0.0}, ["nu", "0.0"]),
        ({"nu": 1.0}, ["nu", "1.0"]),
        ({"horizon": 0.5}, ["horizon", "0.5"]),
        ({"horizon": math.inf}, ["horizon", "inf"]),
        ({"angular_bound": -1.0}, ["angular_bound", "-1.0"]),
        ({"angular_bound": math.nan}, ["angular_bound", "nan"]),
    ],
)
def test_bad_input(kwargs, words):
    with pytest.raises(ValueError, match=words[0]) as caught:
        Barostat(**kwargs)
    for word in words:
        assert word in str(caught.value)


# -------------------------------------------------------------------- in the optimizer


def noise(controller, wd, steps=1200, size=48):
    """Random gradients: the norm of pure noise is known. Returns the norm over that at the start."""
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(size, size) * RMS)
    first = p.detach().norm().item()
    opt = ThermoAdamW(
        [("w", p)], lr=LR, weight_decay=wd, controller=controller, backend="torch", measure_every=2
    )
    out = []
    for _ in range(steps):
        p.grad = torch.randn(size, size)
        opt.step()
        out.append(p.detach().norm().item() / first)
    return out, p


def test_noise_under_decay_thirty_times_too_high_is_rescued():
    plain, _ = noise(None, 3.0)
    assert np.mean(plain[-200:]) == pytest.approx(math.sqrt(LR / 6) / RMS, rel=0.08)  # first order in lr wd
    barostat = Barostat()
    held, _ = noise(barostat, 3.0)
    assert min(held) > 0.44
    assert held[-1] == pytest.approx(0.5, rel=0.1)
    assert acts(barostat)
    assert all(a.group == "group0" for a in barostat.log)


def test_noise_under_usual_decay_is_left_alone():
    barostat = Barostat()
    _, plain = noise(None, 0.1)
    _, controlled = noise(barostat, 0.1)
    assert torch.equal(plain, controlled)
    assert barostat.log == []


def test_a_dry_run_says_what_it_would_do():
    dry = DryRun(Barostat())
    _, plain = noise(None, 3.0)
    _, same = noise(dry, 3.0)
    assert torch.equal(plain, same)
    assert dry.log[0].new < 0.6
    assert dry.would.wd[0] < 0.6
