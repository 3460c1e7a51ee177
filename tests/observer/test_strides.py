"""Where one step in n is measured, the account is that of all steps, whatever rhythm the loop has."""

import math

import numpy as np
import pytest
import torch

from tests.support.strides import measured
from thermoopt import Observer, ThermoAdamW
from thermoopt.account import is_measured, meter
from thermoopt.account.meter import measured_steps

LR, BETA1, BETA2, EPS = 1e-2, 0.9, 0.99, 1e-8
STEPS, WARM = 1200, 300


@pytest.mark.parametrize("every", [1, 2, 3, 7, 10, 50])
def test_distances_are_n_or_one_more(every):
    steps = [t for t in range(1, 3001) if is_measured(t, every)]
    assert steps == measured(every, 3000)
    assert steps[0] == every
    assert set(np.diff(steps)) == ({every, every + 1} if every > 1 else {1})
    assert [measured_steps(t, every) for t in steps] == list(range(1, len(steps) + 1))


@pytest.mark.parametrize("every", [2, 3, 5, 10])
@pytest.mark.parametrize("period", [2, 3, 4, 5, 7, 10, 11, 20])
def test_every_phase_of_a_period_is_met_equally_often_by_both_halves(every, period):
    """Halves are those of large tensors, which an Observer reads in turns."""
    counts = np.zeros((2, period))
    for k, t in enumerate(measured(every, 40_000), 1):
        counts[k % 2, t % period] += 1
    assert counts == pytest.approx(np.full((2, period), counts.mean()), rel=0.15)


def gradients(period, seed=0):
    """Of tasks in turn: the last drifts, the others are noisier."""
    rng = torch.Generator().manual_seed(seed)
    for t in range(1, STEPS + 1):
        noise = torch.randn(400, generator=rng, dtype=torch.float64)
        yield noise + 2.0 if t % period == 0 else 3.0 * noise


def plain_sigma(period):
    r"""Mean of :math:`\eta\langle g, U\rangle` over the steps after ``WARM``, by AdamW written out here."""
    m = v = torch.zeros(400, dtype=torch.float64)
    out = []
    for t, g in enumerate(gradients(period), 1):
        m, v = BETA1 * m + (1 - BETA1) * g, BETA2 * v + (1 - BETA2) * g * g
        update = m / (1 - BETA1**t) / ((v / (1 - BETA2**t)).sqrt() + EPS)
        out.append(LR * float(g @ update))
    return float(np.mean(out[WARM:]))


def mean_sigma_and_r(kind, period, every=None):
    p = torch.nn.Parameter(torch.zeros(400, dtype=torch.float64))
    settings = {"lr": LR, "betas": (BETA1, BETA2), "eps": EPS, "weight_decay": 0.0}
    if kind == "observer":
        optimizer = torch.optim.AdamW([p], **settings)
        source = Observer(None, optimizer, **({} if every is None else {"log_every": every}))
    else:
        flags = {"foreach": False} if kind == "for-loop" else {kind: True}
        source = optimizer = ThermoAdamW([p], **settings, **flags, measure_every=every)
    for g in gradients(period):
        p.grad = g
        optimizer.step()
    history = source.history
    return [float(history.total(q)[history.steps > WARM].mean()) for q in ("sigma", "r")]


@pytest.mark.parametrize("kind", ["fused", "foreach", "for-loop", "observer"])
@pytest.mark.parametrize("period", [2, 5, 10])
def test_the_account_of_tasks_in_turn_is_that_of_every_step(kind, period):
    sigma, r = mean_sigma_and_r(kind, period)
    _, every_r = mean_sigma_and_r(kind, period, every=1)
    assert sigma == pytest.approx(plain_sigma(period), rel=0.03)
    assert r == pytest.approx(every_r, rel=0.01)


@pytest.mark.parametrize("period", [2, 5, 10])
def test_with_a_fixed_distance_it_would_not_be(period, monkeypatch):
    """What the test above can see."""
    monkeypatch.setattr(meter, "GOLDEN", 0.0)
    assert measured_steps(100, 10) == 10
    sigma, _ = mean_sigma_and_r("fused", period)
    assert abs(math.log(sigma / plain_sigma(period))) > 0.15
