"""The averages that the native kernel keeps beside its sums, against the Python meter."""

import numpy as np
import pytest
import torch

from thermoopt.account.meter import STATE_ROWS, Meter
from thermoopt.kernels import Sum, native, native_checks, native_chunks

pytestmark = pytest.mark.skipif(not native.available(), reason="the native kernel is not built")

SIZES = [3, 64, 1000, 20_000]


def world(seed=0):
    rng = torch.Generator().manual_seed(seed)
    params = [torch.randn(n, generator=rng) for n in SIZES]
    grads = [0.1 * torch.randn(n, generator=rng) for n in SIZES]
    moments = [[torch.zeros(n) for n in SIZES] for _ in range(2)]
    steps = [torch.tensor(float(3 * i)) for i in range(len(SIZES))]
    return params, grads, moments, steps


LAYERS = len(SIZES) + 1


def meter_of(n=LAYERS, ema_steps=7.0):
    meter = Meter(ema_steps)
    meter.add_group("group0", [f"w{i}" for i in range(n)], [1] * n)
    return meter


def test_rows_are_the_meters():
    assert native_checks.TABLE_ROWS == STATE_ROWS


@pytest.mark.parametrize("beta1", [0.9, 0.0])
def test_averages_are_the_meters(beta1):
    """Layers in another order than the tensors', gaps between measured steps, rates of each tensor's own."""
    params, grads, moments, steps = world()
    plan = native.Plan(params, *moments, [None] * len(SIZES), steps)
    layer = np.array([4, 0, 3, 1])
    mine, reference = meter_of(), meter_of()
    plan.average_into(mine._state, layer, mine.keep)
    wd, beta2 = np.array([0.0, 0.1, 0.2, 0.3]), np.array([0.999, 0.99, 0.999, 0.95])
    for number in (1, 2, 3, 7, 8, 20):
        lr = 1e-3 * np.arange(1, 5) * number
        sums = plan.step(grads, lr=lr, weight_decay=wd, beta1=beta1, beta2=beta2, eps=1e-8, number=number)
        assert plan.refused is None
        t = np.array([float(s) for s in steps])
        assert np.array_equal(plan.t, t)
        constants = {"lr": lr, "wd": wd, "beta1": np.full(4, beta1), "beta2": beta2}
        assert reference.update(number, layer, sums.T, t, constants) is None
        np.testing.assert_allclose(mine._state, reference._state, rtol=1e-12, atol=1e-300)
    assert not mine._state[:, 2].any()  # of no tensor


def test_refusals_leave_the_averages():
    params, grads, moments, steps = world()
    plan = native.Plan(params, *moments, [None] * len(SIZES), steps)
    meter = meter_of()
    plan.average_into(meter._state, np.arange(4), meter.keep)
    hyper = {"lr": 1e-3, "weight_decay": 0.0, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    plan.step(grads, **hyper, number=1)
    before = meter._state.copy()
    assert before.any()
    assert plan.step(grads, **hyper, number=2, found_inf=torch.tensor(1.0)) is None
    assert plan.refused == "found_inf"
    zeros = [torch.zeros_like(g) for g in grads]
    plan.step(zeros, **{**hyper, "lr": 0.0}, number=2)
    assert plan.refused == "dry"
    plan.step(zeros, **hyper, number=2)
    assert plan.refused is None
    before = meter._state.copy()
    grads[1][5] = torch.nan
    plan.step(grads, **hyper, number=3)
    assert plan.refused == "nonfinite"
    assert np.array_equal(meter._state, before)


def test_halves_scale_before_they_are_averaged():
    size = native_chunks.CHUNK * native_chunks.HALVED
    p, g = torch.randn(size), torch.randn(size)
    m, v, step = torch.zeros(size), torch.zeros(size), torch.tensor(0.0)
    plan = native.Plan([p], [m], [v], [None], [step])
    hyper = {"lr": 1e-3, "weight_decay": 0.0, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    whole = plan.step([g], **hyper, dry=True)
    halves = [plan.step([g], **hyper, dry=True, half=half) for half in (0, 1)]
    again = plan.step([g], **hyper, dry=True)
    np.testing.assert_allclose(sum(halves) / 2, whole, rtol=1e-9)
    assert np.array_equal(again, whole)
    assert halves[0][0, Sum.GG] != halves[1][0, Sum.GG]


def test_a_table_that_does_not_fit():
    params, _, moments, steps = world()
    plan = native.Plan(params, *moments, [None] * len(SIZES), steps)
    with pytest.raises(ValueError, match="27 rows, got 5"):
        plan.average_into(np.zeros((5, 4)), np.arange(4), 0.9)
    with pytest.raises(ValueError, match="4 different columns"):
        plan.average_into(np.zeros((STATE_ROWS, 4)), np.array([0, 1, 2, 2]), 0.9)
    with pytest.raises(ValueError, match="4 different columns"):
        plan.average_into(np.zeros((STATE_ROWS, 3)), np.arange(4), 0.9)


def test_measuring_without_a_place_for_the_sums_moves_nothing():
    """The library as another program would call it."""
    params, grads, moments, steps = world()
    plan = native.Plan(params, *moments, [None] * len(SIZES), steps)
    hyper = {"lr": 1e-3, "weight_decay": 0.0, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    plan.step(grads, **hyper)
    before = [t.clone() for t in (*params, *moments[0], *moments[1], *steps)]
    assert plan._call.out is None
    assert native.LIBRARY.thermoopt_step(plan._pointer) == 4  # NO_OUT
    assert all(map(torch.equal, before, (*params, *moments[0], *moments[1], *steps)))
