"""Schedules of the benchmark are what they are called, and feedback acts on what it is told."""

import math

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from tests.support.method_runs import STEPS, WARM, Run, rising, share
from thermoopt.benchmarks.methods import METHODS

LINEAR, COSINE = rising(lambda n: 1 - share(n)), rising(lambda n: 0.5 + 0.5 * math.cos(math.pi * share(n)))

FORMS = {
    "adamw constant": rising(lambda n: 1.0),
    "adamw linear": LINEAR,
    "adamw cosine": COSINE,
    "adamw cosine 0.1": rising(lambda n: 0.55 + 0.45 * math.cos(math.pi * share(n))),
    "adamw wsd": rising(lambda n: 1.0 if n <= 160 else 1 - math.sqrt((n - 160) / 40)),
    "adamw inverse-sqrt": rising(lambda n: math.sqrt(WARM / n)),
    "adamw inverse-time": rising(lambda n: WARM / n),
    "sgd cosine": COSINE,
    "monitor": LINEAR,
    "monitor native": LINEAR,
    "decay only": LINEAR,
    "scheduler adamw": LINEAR,
    "scheduler sgd": LINEAR,
    "prodigy": lambda n: 1000 * (1 - n / STEPS),  # of its lr of 1, where others have 1e-3
}


@pytest.mark.parametrize("name", FORMS)
def test_a_schedule_is_its_closed_form_over_the_whole_run(name):
    lrs = Run(name, steps=STEPS, lr=1e-3).go().lrs
    assert lrs == pytest.approx([1e-3 * FORMS[name](n) for n in range(STEPS)], rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("adamw linear", lambda opt: LinearLR(opt, 1.0, 0.0, STEPS - WARM)),
        ("adamw cosine", lambda opt: CosineAnnealingLR(opt, STEPS - WARM)),
        ("adamw cosine 0.1", lambda opt: CosineAnnealingLR(opt, STEPS - WARM, eta_min=1e-4)),
    ],
)
@pytest.mark.filterwarnings("ignore:.*epoch parameter in `scheduler.step.*:UserWarning")  # SequentialLR's own
def test_a_schedule_is_what_torch_calls_so(name, shape):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
    parts = [LinearLR(optimizer, 1 / WARM, total_iters=WARM - 1), shape(optimizer)]
    schedule, lrs = SequentialLR(optimizer, parts, [WARM]), []
    for _ in range(STEPS):
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert Run(name, steps=STEPS, lr=1e-3).go().lrs == pytest.approx(lrs, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("name", METHODS)
def test_a_run_of_one_step(name):
    run = Run(name, steps=1).go()
    assert all(torch.isfinite(p).all() for p in run.params)


def test_thermoclaws_schedule_is_its_own():
    lrs = np.array(Run("thermoclaw", steps=STEPS, lr=1e-3).go().lrs)
    n = np.arange(STEPS)
    assert lrs[:WARM] == pytest.approx(1e-7 + (1e-3 - 1e-7) * n[:WARM] / WARM)
    bound = 1e-7 + (1e-3 - 1e-7) * (1 + np.cos(np.pi * share(n[WARM:]))) / 2
    ratio = lrs[WARM:] / bound
    assert (ratio > 0.949).all()
    assert (ratio < 1.051).all()
    assert ratio.std() > 0  # its feedback acts


# ------------------------------------------------------------------ feedback on the loss


def test_a_plateau_divides_lr_by_ten_after_eleven_bad_windows():
    """Windows of 500/50 steps after a warm-up of 25: the first is the best, the twelfth one too many."""
    run = Run("reduce-on-plateau", steps=500, lr=0.01)
    for _ in range(500):
        run.step(loss=1.0)
    expected = [0.01 * (n + 1) / 25 if n < 25 else 0.01 for n in range(145)]
    expected += [0.001] * 110 + [1e-4] * 110 + [1e-5] * 110 + [1e-6] * 25
    assert run.lrs == pytest.approx(expected)


def test_a_plateau_is_judged_by_means():
    """Means of windows fall slowly; their last losses stand 20 above that of the second for the rest."""
    run = Run("reduce-on-plateau", steps=500, lr=0.01)
    for n in range(500):
        window, place = divmod(n - 25, 10)
        swing = (10 if window == 1 else -10) * (1 if place < 5 else -1)
        run.step(loss=100 + swing - 1e-2 * n)
    assert run.lrs[25:] == [pytest.approx(0.01)] * 475


@pytest.mark.parametrize(("slope", "factor", "bound"), [(-1e-2, 1 / 0.95, 10.0), (1e-2, 0.95, 0.01)])
def test_greedylr_follows_the_loss(slope, factor, bound):
    """One factor every 11 losses in a row (the very first counts as better), no further than its bounds."""
    run = Run("greedylr", steps=1200, lr=0.01)
    for n in range(1200):
        run.step(loss=50 + slope * n)
    warm, first = 60, 0 if slope < 0 else 1
    expected = np.array([factor ** max(0, (n - warm - first) // 11) for n in range(1200)])
    expected = np.minimum(expected, bound) if slope < 0 else np.maximum(expected, bound)
    expected[:warm] = np.arange(1, warm + 1) / warm
    assert run.lrs == pytest.approx((0.01 * expected).tolist(), rel=1e-6)
    assert run.lrs[-1] == pytest.approx(0.01 * bound)
