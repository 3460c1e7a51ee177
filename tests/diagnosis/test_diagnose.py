"""diagnose: every kind on records made for it, on real sick and healthy runs, and what the report is."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from thermoopt import Observer, diagnose
from thermoopt.demo.corpus import batches, load_corpus
from thermoopt.demo.gpt import GPT, GPTConfig
from thermoopt.diagnosis.diagnose import DiagnosticReport
from thermoopt.diagnosis.evidence import MIN_READINGS, Evidence, mean_interval
from thermoopt.diagnosis.finding import CONFIDENCES, Finding
from thermoopt.diagnosis.kinds import FOLLOWS, KINDS
from thermoopt.diagnosis.kinds.rates import momentum_memory
from thermoopt.physics.terms import null_update_energy

N, LAYERS = 40, ("a.weight", "b.weight", "c.weight", "d.weight", "d.bias")
STEPS = np.arange(1, N + 1) * 10
HEALTHY = {
    "sigma": 1e-3,
    "r": 1.0,
    "coherence": 1.0,
    "energy_ratio": 1.0,
    "gaussianity": 0.75,
    "rho_momentum": 0.05,
    "rho": math.nan,
    "grad_norm": 0.1,
    "param_norm": 1.0,
    "angular_step": 5e-3,
    "update_norm": 2.3,
    "norm_forecast": 1.0,
    "free_fall": 0.0,
    "wd_balance": 1.0,
    "lr_eff": 1e-3,
    "wd_eff": 0.1,
    "numel": 100.0,
    "phi_star": 1e-3 / 4 * 100 * 0.0526,
}


def record(total=None, layers=None, steps_read=STEPS, **run):
    """A run's record: healthy but for what is said. Layer arrays are ``[n_layers]`` or ``[n, n_layers]``."""
    total, layers, n = total or {}, layers or {}, len(steps_read)

    def in_total(name):
        return np.broadcast_to(np.asarray(total.get(name, HEALTHY[name]), dtype=float), (n,)).copy()

    def in_layers(name):
        value = layers.get(name, HEALTHY[name])
        return np.broadcast_to(np.asarray(value, dtype=float), (n, len(LAYERS))).copy()

    history = SimpleNamespace(
        steps=steps_read,
        layer_steps=steps_read,
        layer_names=list(LAYERS),
        total=in_total,
        layers=in_layers,
        standings=[],
    )
    fall = np.linspace(2.0, 1.0, N)
    defaults = {
        "history": history,
        "reading": None,
        "losses": SimpleNamespace(steps=STEPS, values=fall),
        "skipped": {},
        "layer_types": dict.fromkeys(LAYERS, "mlp"),
        "start_norms": dict.fromkeys(LAYERS, 1.0),
        "matrices": [name for name in LAYERS if name.endswith("weight")],
        "frozen": (),
        "bad_losses": 0,
        "steps": int(STEPS[-1]),
    }
    return SimpleNamespace(**{**defaults, **run})


def one(index, value, other):
    """``[n_layers]``: a value for one layer, another for all others."""
    return np.where(np.arange(len(LAYERS)) == index, value, other)


def only(index, values):
    """``[n, n_layers]``: values over the run for one layer, 0.1 for all others."""
    return np.where(np.arange(len(LAYERS)) == index, np.asarray(values)[:, None], 0.1)


SINCE = np.maximum(STEPS - 200, 0)
"""Steps since the middle of the run."""
FORGETS = 0.1 * np.sqrt(0.98**SINCE * (1 - 0.98**200.0) / (1 - 0.98 ** np.maximum(STEPS, 200.0)))
"""Root of an average over 50 steps of squared gradients of 0.1, and of 0 since then."""


def losses(values):
    return SimpleNamespace(steps=np.arange(1, len(values) + 1), values=np.asarray(values, dtype=float))


# lr_eff 0.5 over rms 0.1: five times a weight
HOT = {"lr_eff": 0.5, "wd_eff": 1e-3}
BURSTS = {"gaussianity": 0.1, "r": 0.2, "energy_ratio": 0.1, "lr_eff": 0.5, "wd_eff": 1e-3}
FALLS = {
    "free_fall": 0.8,
    "wd_balance": 5.0,
    "param_norm": 0.8,
    "norm_forecast": 0.2,
    "angular_step": 1e-2,
}

FADES = {"sigma": np.where(SINCE > 0, 1e-5, 1e-3)}
"""Force that falls to a hundredth in the middle of the run."""


def lost(share):
    """Losses that fall from 2 to 1 by the middle of the run, and lose a share of that again."""
    return losses(np.r_[np.linspace(2.0, 1.0, int(STEPS[-1]) // 2), np.full(int(STEPS[-1]) // 2, 1 + share)])


SICK = [
    ("no_gradients", "HIGH", record(steps=600, skipped={"no_gradients": 20})),
    ("no_gradients", "MEDIUM", record(steps=430, skipped={"no_gradients": 3})),
    ("progress_lost", "HIGH", record(FADES, losses=lost(0.95))),
    ("progress_lost", "MEDIUM", record(FADES, losses=lost(0.6))),
    (
        "progress_lost",
        "LOW",  # a difference of energies, which is 0 where both sides agree
        record(FADES, losses=losses(lost(0.95).values - 1.9)),
    ),
    (
        "nothing_learned",
        "LOW",
        record(losses=losses(np.full(int(STEPS[-1]), 2.0)), layers={"angular_step": 1e-2}),
    ),
    ("learning_rate_too_high", "HIGH", record(BURSTS, HOT)),
    ("learning_rate_too_high", "MEDIUM", record(BURSTS, HOT, losses=losses([]))),
    (
        "learning_rate_too_high",
        "HIGH",  # it does not fall, at twice a weight
        record({**BURSTS, "lr_eff": 0.2}, {**HOT, "lr_eff": 0.2}, losses=losses(np.full(40, 2.0))),
    ),
    (
        "learning_rate_too_high",
        "HIGH",  # no bursts, but the loss is five times as high
        record({"lr_eff": 0.5}, HOT, losses=losses([1.0] + [5.0] * 39)),
    ),
    (
        "learning_rate_too_high",
        "HIGH",  # no bursts, at twice a weight, but the loss ends at five times its first value
        record({"lr_eff": 0.2}, {**HOT, "lr_eff": 0.2}, losses=losses([1.0] + [5.0] * 39)),
    ),
    ("learning_rate_too_low", "HIGH", record({"r": 5.0, "rho_momentum": 0.6, "angular_step": 1e-5})),
    ("learning_rate_too_low", "MEDIUM", record({"r": 1.8, "rho_momentum": 0.3, "angular_step": 1e-5})),
    (
        "momentum_overdamped",
        "HIGH",
        record({"coherence": 6.0}, {"phi_star": 1e-3 / 4 * 100 * 0.0025}),
    ),
    ("oscillation", "HIGH", record({"rho_momentum": -0.5}, losses=losses(np.full(40, 2.0)))),
    ("oscillation", "MEDIUM", record({"rho_momentum": -0.3}, losses=losses(np.full(40, 2.0)))),
    ("oscillation", "LOW", record({"rho_momentum": -0.5})),  # it learns
    ("oscillation", "MEDIUM", record({"rho_momentum": -0.5}, losses=lost(0.6))),  # it did
    ("oscillation", "MEDIUM", record({"rho_momentum": -0.5}, losses=losses([]))),
    ("oscillation", "HIGH", record({"rho_momentum": math.nan, "rho": -0.6}, losses=losses(np.full(40, 2.0)))),
    ("weight_decay_collapse", "HIGH", record(layers={k: one(1, v, HEALTHY[k]) for k, v in FALLS.items()})),
    (
        "weight_decay_collapse",
        "HIGH",  # erased in 20 steps
        record(layers={"wd_eff": 50.0}),
    ),
    ("weight_decay_irrelevant", "LOW", record({"wd_eff": 1e-3})),
    ("dead_layer", "HIGH", record(layers={"grad_norm": one(2, 0.0, 0.1)})),
    ("dead_layer", "MEDIUM", record(layers={"grad_norm": one(2, math.nan, 0.1)})),
    # an average over zeros, from step 200 on
    (
        "dead_layer",
        "HIGH",
        record(layers={"grad_norm": only(2, FORGETS), "gaussianity": only(2, 10 * FORGETS**2)}, ema_steps=50),
    ),
    ("dead_layer", "MEDIUM", record(layers={"grad_norm": only(2, np.where(SINCE > 0, math.nan, 0.1))})),
    (
        "learning_rate_runaway",
        "HIGH",
        record({"wd_eff": 1e-3}, {"lr_eff": 5.0, "wd_eff": 1e-3}, losses=losses([])),
    ),
    (
        "learning_rate_runaway",
        "HIGH",  # what had been gained is lost again
        record({"wd_eff": 1e-3}, {"lr_eff": 5.0, "wd_eff": 1e-3}, losses=lost(0.6)),
    ),
    (
        "learning_rate_runaway",
        "LOW",  # weights of tables and coordinates start next to 0
        record(layers={"lr_eff": 5.0, "wd_eff": 1e-3}, losses=lost(0.2)),
    ),
    ("learning_rate_zero", "HIGH", record({"lr_eff": np.where(SINCE > 0, 0.0, 1e-3)})),
    ("learning_rate_zero", "MEDIUM", record({"lr_eff": np.where(SINCE > 180, 0.0, 1e-3)})),
    ("learning_rate_zero", "HIGH", record(steps=600, skipped={"lr_zero": 20})),
    ("stopped_uncooled", "HIGH", record(ended=True, length=1000)),
    ("stopped_uncooled", "MEDIUM", record(ended=True, length=410)),
    ("exploding_layer", "HIGH", record(layers={"param_norm": one(0, 50.0, 1.1)})),
    (
        "exploding_layer",
        "HIGH",  # it began small, and did not stop where the others are
        record(
            layers={"param_norm": one(0, 50.0, 1.1)},
            start_norms={**dict.fromkeys(LAYERS, 1.0), "a.weight": 1e-4},
        ),
    ),
    (
        "exploding_layer",
        "HIGH",
        record(layers={"grad_norm": np.geomspace(1, 1e5, N)[:, None] * one(0, 1, 0) + one(0, 0, 0.1)}),
    ),
    ("layers_out_of_step", "MEDIUM", record(layers={"angular_step": one(3, 5e-5, 5e-3)})),
    (
        "gradients_below_eps",
        "HIGH",
        record({"energy_ratio": 1e-6}, losses=losses(np.full(40, 2.0))),
    ),
    (
        "gradients_below_eps",
        "MEDIUM",
        record({"energy_ratio": 1e-6}, losses=losses([])),
    ),
    ("gradient_noise", "MEDIUM", record({"rho_momentum": np.linspace(-0.01, 0.01, N)})),
    ("non_finite_steps", "HIGH", record(skipped={"nonfinite": 7})),
    ("non_finite_steps", "HIGH", record(bad_losses=3)),
    ("non_finite_steps", "MEDIUM", record(skipped={"nonfinite": 1})),
    ("non_finite_steps", "MEDIUM", record(skipped={"found_inf": 20})),
]


def test_decay_that_no_gradient_counters_is_to_be_set_to_0():
    falls = {**FALLS, "wd_balance": math.inf, "free_fall": 1.0}
    report = diagnose(record(layers={k: one(1, v, HEALTHY[k]) for k, v in falls.items()}))
    (finding,) = (f for f in report.findings if f.kind == "weight_decay_collapse")
    assert "inf" not in str(finding)
    assert finding.advice.startswith("Set weight decay to 0")


def test_decay_that_ended_is_spoken_of_as_it_was():
    report = diagnose(record({"wd_eff": np.where(STEPS > STEPS[N // 4], 0.0, 1e-3)}))
    assert [f.message.split(" removed")[0] for f in report.findings] == ["weight decay of 0.001"]


def test_nothing_is_found_in_a_healthy_record():
    report = diagnose(record())
    assert report.findings == ()
    assert report.healthy
    assert report.recommendations == []
    assert "nothing wrong" in str(report)


@pytest.mark.parametrize(("kind", "confidence", "run"), SICK, ids=[f"{k}-{c}" for k, c, _ in SICK])
def test_each_kind_is_found_and_no_other(kind, confidence, run):
    report = diagnose(run)
    sure = [f for f in report.findings if f.confidence != "LOW"]
    found = sure or list(report.findings)
    assert [(f.kind, f.confidence) for f in found] == [(kind, confidence)]
    assert report.healthy == (confidence == "LOW")
    assert found[0].message.endswith(".")
    assert found[0].advice.endswith(".")


def test_every_kind_has_a_record_here():
    assert {kind for kind, _, _ in SICK} == set(KINDS)


def test_the_advice_about_a_growing_gradient_is_not_a_rate():
    """Adam's step does not grow with the gradient."""
    grown = np.geomspace(1, 1e5, N)[:, None] * one(0, 1, 0) + one(0, 0, 0.1)
    (finding,) = diagnose(record(layers={"grad_norm": grown})).findings
    assert finding.kind == "exploding_layer"
    assert finding.advice.startswith("Check what feeds this layer")
    (finding,) = diagnose(record(layers={"param_norm": one(0, 50.0, 1.1)})).findings
    assert "learning rate by a factor of 45" in finding.advice


NOT_SICK = {
    "a few steps without a gradient at the end": record(steps=412, skipped={"no_gradients": 2}),
    "a loss that lost two fifths of its gain": record(FADES, losses=lost(0.4)),
    "a loss that came back while forces are there": record(losses=lost(0.95)),
    "a gradient that fades: its square is soon invisible in the average, its first power is not": record(
        layers={"grad_norm": only(2, FORGETS), "gaussianity": only(2, 10 * FORGETS**2 + 1e-4)}, ema_steps=50
    ),
    "interpolation: energy falls with the squared loss": record(
        {**BURSTS, "energy_ratio": 0.05}, HOT, losses=losses(np.geomspace(10, 0.1, 40))
    ),
    "targets that grow, at a usual rate": record(losses=losses([1.0] + [5.0] * 39)),
    "a loss that rose at twice a weight, and is back": record(
        {"lr_eff": 0.2}, {**HOT, "lr_eff": 0.2}, losses=losses([1.0] + [50.0] * 19 + [0.1] * 20)
    ),
    "a warm-up drifts on purpose": record(
        {"r": 5.0, "rho_momentum": 0.6, "angular_step": 1e-5, "lr_eff": np.linspace(1e-6, 1e-4, N)}
    ),
    "drift that moves": record({"r": 5.0, "rho_momentum": 0.6}),
    "long momentum in noise": record(layers={"phi_star": 1e-3 / 4 * 100 * 0.0025}),
    "gradients shrink the norm, not decay": record(
        layers={k: one(1, v, HEALTHY[k]) for k, v in {**FALLS, "free_fall": 1.4}.items()}
    ),
    "a scale-invariant layer turns slowly": record(
        layers={k: one(1, v, HEALTHY[k]) for k, v in {**FALLS, "angular_step": 1e-3}.items()}
    ),
    "a vector falls": record(layers={k: one(4, v, HEALTHY[k]) for k, v in FALLS.items()}),
    "two readings of a fall": record(
        layers={
            k: np.where((np.arange(N) // 2 == 15)[:, None], one(1, v, HEALTHY[k]), HEALTHY[k])
            for k, v in FALLS.items()
        }
    ),
    "gradients that fade as fast": record(layers={"grad_norm": only(2, FORGETS**0.9)}, ema_steps=50),
    "a frozen layer": record(layers={"grad_norm": one(2, math.nan, 0.1)}, frozen=("c.weight",)),
    "all layers grow alike": record(layers={"param_norm": 50.0}),
    "a policy's last layer, of gain 0.01, comes up to the others": record(
        layers={"param_norm": one(3, 1.2, 1.1)}, start_norms={**dict.fromkeys(LAYERS, 1.0), "d.weight": 1e-4}
    ),
    "a gradient that a gate held back": record(
        layers={"grad_norm": np.geomspace(1e-5, 0.2, N)[:, None] * one(0, 1, 0) + one(0, 0, 0.1)}
    ),
    "one decade apart": record(layers={"angular_step": one(3, 5e-4, 5e-3)}),
    "gradients vanish in a run that learned": record({"energy_ratio": 1e-6}),
    "gradients vanish late": record(
        {"energy_ratio": np.where(np.arange(N) < 10, 0.5, 1e-6)}, losses=losses(np.full(40, 2.0))
    ),
    "drift at first, noise later": record({"rho_momentum": np.where(np.arange(N) < 3, 0.3, 0.0)}),
    "noise in a run watched late": record({"rho_momentum": 0.0}, steps_read=STEPS + 9_600, steps=10_000),
    "a scaler that starts too high": record(skipped={"found_inf": 3}),
    "oscillation of a few readings": record({"rho_momentum": np.where(np.arange(N) > 35, -0.6, 0.05)}),
    "a run of known length that goes on": record(length=1000),
    "a run that ended with its schedule": record(ended=True, length=405),
    "a run that a quench ended early": record(
        {"lr_eff": np.where(np.arange(N) < 38, 1e-3, 1e-5)}, ended=True, length=1000
    ),
    "no decay": record({"wd_eff": 0.0}, {"wd_eff": 0.0, "free_fall": math.nan, "wd_balance": math.nan}),
    "no moments": record(
        dict.fromkeys(("r", "coherence", "energy_ratio", "gaussianity", "rho_momentum"), math.nan),
        {"phi_star": math.nan, "r": math.nan},
    ),
}


@pytest.mark.parametrize("about", NOT_SICK)
def test_what_only_looks_sick(about):
    report = diagnose(NOT_SICK[about])
    assert [f.kind for f in report.findings if f.confidence != "LOW"] == []


def test_what_follows_from_a_cause_is_kept_as_low():
    run = record({**BURSTS, "rho_momentum": -0.6}, HOT)
    report = diagnose(run)
    by_kind = {f.kind: f for f in report.findings}
    assert by_kind["learning_rate_too_high"].confidence == "HIGH"
    assert by_kind["oscillation"].confidence == "LOW"
    assert by_kind["oscillation"].follows_from == "learning_rate_too_high"
    assert "follows from learning rate too high" in str(report)
    assert len(report.recommendations) == 1


def test_causes_are_looked_at_before_their_consequences():
    order = list(KINDS)
    for cause, consequences in FOLLOWS.items():
        assert all(order.index(cause) < order.index(c) for c in consequences), cause


def test_repaired_decay_balances_the_norm_at_half_of_the_start():
    """lambda_new = S / (2 lr nu^2 ||theta_0||^2), S and lambda as a closed-form layer has them."""
    lr, wd, norm, source = 1e-2, 3.0, 0.8, 4e-3
    balance = 2 * lr * wd * norm**2 / source
    falling = {
        "free_fall": 1 - 1 / balance,
        "wd_balance": balance,
        "param_norm": norm,
        "norm_forecast": math.sqrt(source / (2 * lr * wd)),
        "angular_step": 1e-2,
    }
    assert falling["norm_forecast"] < 0.5
    run = record(layers={k: one(1, v, HEALTHY[k]) for k, v in falling.items()})
    advice = diagnose(run).findings[0].advice
    expected = wd / (source / (2 * lr * 0.25))
    assert f"factor of about {float(f'{expected:.2g}'):g}." in advice


@pytest.mark.parametrize("beta1", [0.9, 0.99, 0.995, 0.999])
@pytest.mark.parametrize("t", [100, 400, 10_000])
def test_memory_of_momentum_is_the_inverse_of_the_null(beta1, t):
    assert momentum_memory(float(null_update_energy(beta1, t)), t) == pytest.approx(1 / (1 - beta1), rel=1e-6)


def test_memory_beyond_what_can_be_told_is_infinite():
    assert momentum_memory(1 / 300, 300) == math.inf


def test_too_few_readings_are_said_to_be_too_few():
    report = diagnose(record(steps_read=STEPS[: MIN_READINGS - 1]))
    assert not report.healthy
    assert not report.findings
    assert "too few" in report.summary


def test_interval_covers_the_mean_of_correlated_readings():
    """Readings are moving averages: five share their steps. Coverage of 2 standard errors, by simulation."""
    rng = np.random.default_rng(0)
    covered, runs = 0, 400
    keep = (1 - 1 / 50) ** 10
    for _ in range(runs):
        x, value = [], rng.normal() * math.sqrt((1 - keep) / (1 + keep))
        for _ in range(50):
            value = keep * value + (1 - keep) * rng.normal()
            x.append(value)
        low, high = mean_interval(np.array(x))
        covered += low < 0 < high
    assert 0.7 < covered / runs < 0.97


@pytest.mark.parametrize("name", ["to_dict", "to_markdown", "__str__"])
def test_reports_say_everything(name):
    report = diagnose(record({**BURSTS, "rho_momentum": -0.6}, HOT))
    shown = getattr(report, name)()
    if name == "to_dict":
        shown = json.dumps(shown, allow_nan=False)
    for finding in report.findings:
        assert finding.kind in shown or finding.kind.replace("_", " ") in shown
        assert finding.confidence in shown


def test_findings_as_data():
    finding = diagnose(record(layers={"grad_norm": one(2, 0.0, 0.1)})).findings[0]
    data = finding.to_dict()
    assert data["layers"] == ["c.weight"]
    assert data["layer_type"] == "mlp"
    assert data["null"] is None  # NaN is no JSON
    assert data["readings"] == N
    assert finding.confidence in CONFIDENCES


def test_a_report_without_readings_says_what_to_do():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    observer = Observer(model, optimizer, log_every=1)
    report = diagnose(observer)
    assert "train first" in str(report)
    assert not report.healthy
    for _ in range(3):
        optimizer.step()
    assert "loss.backward()" in str(diagnose(observer))


def test_something_that_is_no_run_is_an_error():
    with pytest.raises(TypeError, match="observer must be an Observer or a SavedRun, got a int"):
        diagnose(3)
    with pytest.raises(TypeError, match=r"got a SGD without \w+; Observer\(model, optimizer\) makes one"):
        diagnose(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))]))


# ---------------------------------------------------------------- real runs


def test_a_loss_that_is_too_small_for_eps_and_what_the_advice_makes_of_it():
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))

    def run(scale):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        observer = Observer(model, optimizer)
        for _ in range(150):
            optimizer.zero_grad()
            loss = scale * (model(x) - x[:, :1]).square().mean()
            loss.backward()
            optimizer.step()
            observer.step(loss=loss)
        return loss.item() / scale, {f.kind: f for f in diagnose(observer).findings}

    learned, clean = run(1.0)
    stayed, found = run(1e-12)
    assert "gradients_below_eps" not in clean
    assert stayed > 10 * learned
    assert found["gradients_below_eps"].confidence == "HIGH"
    factor = float(found["gradients_below_eps"].advice.split()[4])
    followed, _ = run(1e-12 * factor)
    assert followed < 2 * learned


def _gpt():
    torch.manual_seed(1)
    model = GPT(GPTConfig(depth=2, width=48, heads=4, context=32))
    draws = batches(load_corpus().train, 8, 32, 1)

    def loss():
        inputs, targets = next(draws)
        return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())

    return model, loss


def _conv():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16 - 0.3
    y = torch.tensor(bunch.target)
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, 2, 1, bias=False),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * 16, 10),
    )
    rng = torch.Generator().manual_seed(1)

    def loss():
        rows = torch.randint(len(x), (64,), generator=rng)
        noisy = x[rows] + 0.35 * torch.randn(64, 1, 8, 8, generator=rng)
        return F.cross_entropy(model(noisy), y[rows])

    return model, loss


PATHOLOGIES = {
    "learning_rate_too_high": {"lr": 100.0},
    "weight_decay_collapse": {"decay": 0.05},
    "momentum_overdamped": {"betas": (0.999, 0.999)},
    "healthy": {},
}


@pytest.mark.parametrize("kind", PATHOLOGIES)
@pytest.mark.parametrize(("task", "lr"), [(_gpt, 2e-3), (_conv, 1e-2)], ids=["transformer", "convolutions"])
def test_pathologies_get_their_own_finding_within_200_steps(task, lr, kind):
    """Tier 2. Decay: the share of each weight that it takes a step."""
    change = PATHOLOGIES[kind]
    model, loss = task()
    lr *= change.get("lr", 1.0)
    optimizer = torch.optim.AdamW(
        model.named_parameters(),
        lr=lr,
        betas=change.get("betas", (0.9, 0.999)),
        weight_decay=change.get("decay", 0.01 * lr) / lr,
    )
    observer = Observer(model, optimizer)
    for _ in range(200):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        observer.step(loss=value)
    found = {f.kind for f in diagnose(observer).findings if f.confidence != "LOW"}
    assert found == ({kind} - {"healthy"})


def test_pure_noise_is_at_equilibrium_and_is_called_noise():
    """Gradients that are noise and nothing else: r = 1, and the only finding is that."""
    torch.manual_seed(0)
    model = nn.Linear(200, 200)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    observer = Observer(model, optimizer)
    for _ in range(300):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
    report = diagnose(observer)
    assert [f.kind for f in report.findings if f.confidence != "LOW"] == ["gradient_noise"]
    assert Evidence(observer).late_median("r") == pytest.approx(1.0, abs=0.05)


def test_types():
    report = diagnose(record({"rho_momentum": -0.6}))
    assert isinstance(report, DiagnosticReport)
    assert isinstance(report.findings[0], Finding)


@pytest.mark.parametrize("log_every", [10, 2, 1])
def test_of_tasks_that_take_turns_none_is_called_dead(log_every):
    torch.manual_seed(0)
    trunk, heads = nn.Linear(4, 8), nn.ModuleList([nn.Linear(8, 1), nn.Linear(8, 1)])
    adamw = torch.optim.AdamW([*trunk.parameters(), *heads.parameters()], lr=1e-2)
    observer = Observer(nn.ModuleList([trunk, heads]), adamw, log_every=log_every)
    for step in range(150):
        adamw.zero_grad()
        heads[step % 2](trunk(torch.randn(16, 4)).tanh()).square().mean().backward()
        adamw.step()
    assert not [f for f in diagnose(observer).findings if f.kind == "dead_layer"]
