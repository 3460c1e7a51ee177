"""Confinement: when it holds weights, by how much, and that it leaves driven and noisy motion alone."""

import io
import math

import pytest
import torch

from thermoopt import ThermoAdamW, ThermoScheduler, autotune
from thermoopt.controllers import Barostat, Chain, Cooling, Thermostat
from thermoopt.physics import confining_decay, idleness

T = 200


@pytest.mark.parametrize(
    ("force", "coherence", "idle"),
    [
        (0.0, 3.0, 1.0),
        (0.0, 1.25, 0.5),
        (0.125, 3.0, 0.5),
        (0.125, 1.25, 0.25),
        (0.25, 3.0, 0.0),  # driven
        (2.0, 3.0, 0.0),
        (-1.0, 3.0, 1.0),  # against the force
        (0.0, 1.0, 0.0),  # noise
        (0.0, 0.3, 0.0),  # overshoots
        (math.nan, 3.0, 0.0),
        (0.0, math.nan, 0.0),
    ],
)
def test_idle_is_what_agrees_without_a_force(force, coherence, idle):
    assert idleness(force, coherence) == pytest.approx(idle, abs=1e-15)


@pytest.mark.parametrize(("steps", "memory"), [(300, 60), (1200, 120), (30_000, 600)])
def test_what_confined_weights_remember_grows_as_the_root_of_the_run(steps, memory):
    lr = 3e-3
    left = (1 - lr * confining_decay(lr, steps)) ** memory
    assert left == pytest.approx(math.exp(-1), rel=0.01)


def test_a_short_run_remembers_six_times_what_momentum_does():
    assert 1 - 1e-2 * confining_decay(1e-2, 10) == pytest.approx(1 - (1 - 0.9) / 6)


def data(noisy=False):
    """32 points that a network knows by heart soon, or 2048 with labels half of which are chance."""
    rng = torch.Generator().manual_seed(3)
    x = torch.randn(2048 if noisy else 32, 10, generator=rng)
    y = (x[:, 0] > 0).long()
    if noisy:
        y = torch.where(
            torch.rand(len(y), generator=rng) < 0.5, torch.randint(0, 2, y.shape, generator=rng), y
        )
    return x, y


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(10, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))


def train(model, opt, steps=T, *, noisy=False, first=0, scheduler=None):
    x, y = data(noisy)
    rng, decays = torch.Generator().manual_seed(1), []
    for t in range(steps + first):
        i = torch.randint(0, len(x), (16,), generator=rng)
        if t < first:
            continue
        opt.zero_grad()
        torch.nn.functional.cross_entropy(model(x[i]), y[i]).backward()
        opt.step()
        if scheduler is not None:
            scheduler.step()
        if t % 10 == 9:
            decays.append(
                opt.reading.total.wd_eff if scheduler is None else opt.param_groups[0]["weight_decay"]
            )
    return decays


def size(model):
    return math.sqrt(sum(p.square().sum().item() for p in model.parameters()))


def without(steps):
    return Chain(Thermostat(total_steps=steps), Barostat(), Cooling(steps, "trapezoid", 0.1))


def test_what_is_known_by_heart_is_confined():
    free, held = net(), net()
    opt = ThermoAdamW(free.named_parameters(), weight_decay=0.01, controller=without(T))
    assert max(train(free, opt)) <= 0.01 * (1 + 1e-12)
    opt = ThermoAdamW(held.named_parameters(), weight_decay=0.01, controller=autotune(T))
    decays = train(held, opt)
    assert max(decays[:2]) <= 0.01 * (1 + 1e-12)
    assert max(decays) > 0.1
    assert size(held) < 0.95 * size(free)
    begun = next(a for a in opt.controller.log if a.kind == "wd")
    assert begun.old == 1.0 < begun.new
    assert "no force drives the motion" in begun.reason
    assert begun.evidence["force"][0] < 0.25
    assert begun.evidence["coherence"][0] > 1
    assert begun.step >= 0.15 * T


def test_no_matrix_forgets_faster_than_confined_weights_should():
    steps, memory, model = 500, 60 * (500 / 300) ** 0.5, net()
    opt = ThermoAdamW(model.named_parameters(), weight_decay=0.01, controller=autotune(steps))
    x, y = data()
    rng, worst = torch.Generator().manual_seed(1), 0.0
    for _ in range(steps):
        i = torch.randint(0, len(x), (16,), generator=rng)
        opt.zero_grad()
        torch.nn.functional.cross_entropy(model(x[i]), y[i]).backward()
        opt.step()
        layers = (opt.reading.layers[name] for name in ("0.weight", "2.weight"))
        worst = max(worst, *(q.lr_eff * q.wd_eff for q in layers))
    assert 0.5 / memory < worst <= 1.02 / memory


def test_label_noise_is_not_taken_for_knowledge_by_heart():
    model = net()
    opt = ThermoAdamW(model.named_parameters(), weight_decay=0.01, controller=autotune(T))
    assert max(train(model, opt, noisy=True)) <= 0.01 * (1 + 1e-12)


@pytest.mark.parametrize(("decay", "low", "high"), [(0.0, 0.0, 0.0), (0.01, 1.0, 5 / 3), (3.0, 3.0, 3.0)])
def test_no_decay_stays_none_and_a_higher_one_is_kept(decay, low, high, monkeypatch):
    """Motion idle throughout: at lr 1e-2 and a memory of 60 steps decay may rise to 1.7, coupled or not."""
    monkeypatch.setattr("thermoopt.controllers.decay.barostat.idleness", lambda force, coherence: 1.0)
    barostat = Barostat(T, couple=False)
    model = net()
    opt = ThermoAdamW(model.named_parameters(), lr=1e-2, weight_decay=decay, controller=barostat)
    assert low * (1 - 1e-12) <= max(train(model, opt)) <= high * (1 + 1e-12)
    assert bool([a for a in opt.controller.log if "confines" in a.reason]) == (decay == 0.01)


@pytest.mark.parametrize("preset", ["finetune", "respect_lr"])
def test_presets_that_keep_what_is_there_raise_no_decay(preset):
    model = net()
    opt = ThermoAdamW(model.named_parameters(), lr=3e-3, weight_decay=0.01, controller=autotune(T, preset))
    assert max(train(model, opt)) <= 0.01 * (1 + 1e-12)


def test_a_run_without_a_length_raises_no_decay():
    model = net()
    opt = ThermoAdamW(model.named_parameters(), weight_decay=0.01, controller=autotune())
    assert max(train(model, opt)) <= 0.01 * (1 + 1e-12)


def scheduled(kind, **options):
    model = net()
    opt = kind(model.parameters(), **options)
    scheduler = ThermoScheduler(opt, T, shape="constant", controller=autotune(T))
    return train(model, opt, scheduler=scheduler), scheduler.controller.log


def test_a_scheduler_confines_over_torchs_adamw():
    assert max(scheduled(torch.optim.AdamW, lr=1e-3, weight_decay=0.01)[0]) > 0.1


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}),  # no r_c
        (torch.optim.Adam, {"lr": 1e-3, "weight_decay": 1e-4}),  # decay inside the moments
    ],
)
def test_a_scheduler_raises_no_decay_where_it_does_not_stand_beside_the_update(kind, options):
    decays, log = scheduled(kind, **options)
    assert max(decays) <= 1e-4
    assert not [a for a in log if a.kind == "wd"]


def test_a_confined_run_resumes_bit_for_bit():
    whole = net()
    opt = ThermoAdamW(whole.named_parameters(), weight_decay=0.01, controller=autotune(T))
    train(whole, opt, 110)
    file = io.BytesIO()
    torch.save([whole.state_dict(), opt.state_dict()], file)
    confined = [a for a in opt.controller.log if a.kind == "wd"]
    assert confined, "nothing to resume"
    train(whole, opt, T - 110, first=110)
    file.seek(0)
    again = net()
    second = ThermoAdamW(again.named_parameters(), weight_decay=0.01, controller=autotune(T))
    weights, state = torch.load(file, weights_only=True)
    again.load_state_dict(weights)
    second.load_state_dict(state)
    train(again, second, T - 110, first=110)
    for p, q in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)
    told = [[(a.step, a.kind, a.old, a.new, a.reason) for a in o.controller.log] for o in (opt, second)]
    assert told[0] == told[1]


@pytest.mark.parametrize("steps", [0, -1, 1.5, "100", True])
def test_a_bad_length_is_named(steps):
    with pytest.raises((ValueError, TypeError), match="total_steps"):
        Barostat(steps)
