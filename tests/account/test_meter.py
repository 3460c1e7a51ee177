"""Averages against closed forms, and the frequency of measuring."""

import numpy as np
import pytest
import torch

from tests.support.small_net import model, train
from thermoopt import ThermoAdamW
from thermoopt.account.history import History
from thermoopt.account.meter import Meter
from thermoopt.kernels import Sum
from thermoopt.physics.terms import COLUMNS


def feed(meter, step, value, layers=(0,), t=1000.0):
    k = len(layers)
    sums = np.full((len(Sum), k), float(value))
    ones = np.ones(k)
    constants = {"lr": ones, "wd": 0 * ones, "beta1": 0.9 * ones, "beta2": 0.999 * ones}
    return meter.update(step, np.array(layers), sums, t * ones, constants)


def fresh(n=1, ema_steps=10.0):
    meter = Meter(ema_steps)
    meter.add_group("group0", [f"w{i}" for i in range(n)], [4] * n)
    return meter


@pytest.mark.parametrize("steps", [[1, 2, 3, 4], [10, 20, 25, 60]])
def test_average_is_the_weighted_mean(steps):
    """A value measured at step s weighs (keep**(T-s)) (1 - keep**(s - previous)), normalised."""
    meter = fresh()
    values = [3.0, -1.0, 4.0, 1.5]
    for step, value in zip(steps, values, strict=True):
        feed(meter, step, value)
    keep = 0.9
    gaps = np.diff([0, *steps])
    weights = keep ** (steps[-1] - np.array(steps)) * (1 - keep**gaps)
    expected = (weights * values).sum() / weights.sum()
    assert meter.reading.total.grad_norm**2 == pytest.approx(abs(expected))
    assert meter.reading.step == steps[-1]


def test_first_reading_has_no_bias():
    meter = fresh(ema_steps=500)
    feed(meter, 1, 2.5)
    assert meter.reading.total.sigma == pytest.approx(2.5)


def test_one_step_average_is_the_raw_step():
    meter = fresh(ema_steps=1)
    for step, value in enumerate([5.0, 1.0, 7.0], start=1):
        feed(meter, step, value)
        assert meter.reading.total.sigma == value


def test_layers_without_gradient_keep_their_average():
    meter = fresh(n=3)
    feed(meter, 1, 2.0, layers=(0, 1))
    feed(meter, 2, 8.0, layers=(1,))
    reading = meter.reading
    assert set(reading.layers) == {"w0", "w1"}
    assert reading.layers["w0"].sigma == pytest.approx(2.0)
    keep = 0.9
    assert reading.layers["w1"].sigma == pytest.approx((keep * 0.1 * 2 + 0.1 * 8) / (keep * 0.1 + 0.1))
    assert reading.total.sigma == pytest.approx(reading.layers["w0"].sigma + reading.layers["w1"].sigma)


@pytest.mark.parametrize(("value", "cause"), [(np.nan, "nonfinite"), (np.inf, "nonfinite")])
def test_refused_steps_move_nothing(value, cause):
    meter = fresh()
    feed(meter, 1, 2.0)
    before = meter.export_group(0)
    assert feed(meter, 2, value) == cause
    after = meter.export_group(0)
    assert torch.equal(before["meter"], after["meter"])
    assert before["readings"] == after["readings"] == 1


def test_error_of_work_shrinks_with_the_average():
    """WORK_VAR is the variance of the averaged work: 1/n_eff of one step's."""
    from thermoopt.physics.terms import Term

    rng = np.random.default_rng(0)
    estimates, finals = [], []
    for _ in range(150):
        meter = fresh(ema_steps=10)
        for step in range(1, 80):
            k = np.zeros((len(Sum), 1))
            k[Sum.A] = rng.standard_normal()
            one = np.ones(1)
            meter.update(
                step,
                np.array([0]),
                k + 1e-30,
                1000 * one,
                {"lr": one, "wd": 0 * one, "beta1": 0.9 * one, "beta2": 0.999 * one},
            )
        estimates.append(meter.reading.terms[Term.WORK_VAR, 0])
        finals.append(meter.reading.terms[Term.SIGMA, 0])
    assert np.mean(estimates) == pytest.approx(np.var(finals), rel=0.3)
    assert np.var(finals) == pytest.approx(1 / 19, rel=0.3)  # n_eff of an EMA over 10 steps is 19


@pytest.mark.parametrize(("every", "steps", "expected"), [(1, 5, 5), (4, 11, 8), (None, 25, 20)])
def test_measure_every(every, steps, expected):
    net = model()
    opt = ThermoAdamW(net.parameters(), measure_every=every, backend="torch")
    train(net, opt, steps)
    assert opt.reading.step == expected
    assert opt.reading.skipped["dry"] == 0


def test_nothing_before_the_first_measured_step():
    net = model()
    opt = ThermoAdamW(net.parameters(), measure_every=5, backend="torch")
    assert opt.reading is None
    train(net, opt, 4)
    assert opt.reading is None
    assert len(opt.history) == 0


def test_unknown_names_are_named():
    net = model()
    opt = ThermoAdamW(net.named_parameters(), measure_every=1)
    train(net, opt, 1)
    with pytest.raises(KeyError, match="sigmma"):
        opt.reading.layer_array("sigmma")
    with pytest.raises(KeyError):
        opt.reading.layers["nope"]
    array = opt.reading.layer_array("r")
    assert array.shape == (4,)
    assert COLUMNS == opt._ledger.meter.export_group(0)["meter"].shape[0] - 6


def test_reading_is_formed_once():
    net = model()
    opt = ThermoAdamW(net.parameters(), measure_every=1)
    train(net, opt, 2)
    assert opt.reading is opt.reading


@pytest.mark.parametrize("unavailable", [(), (Sum.A, Sum.UU)])
def test_readings_formed_together_are_those_formed_alone(unavailable):
    meter = Meter(ema_steps=3.0, unavailable=unavailable)
    meter.add_group("group0", ["w0", "w1"], [4, 7])
    copies, alone = [], []
    measured = [(0,), (0, 1), (1,), (1,), (1,), (1,)]  # w0 is out of date in the end
    for step, layers in enumerate(measured, start=1):
        feed(meter, step, 2.0 + step, layers)
        meter.skip("nonfinite")
        copies.append(meter.snapshot())
        alone.append(meter.reading)
    Meter.form(copies)
    for copy, reading in zip(copies, alone, strict=True):
        assert (copy.reading.step, copy.reading.skipped) == (reading.step, reading.skipped)
        assert copy.reading.seen.tolist() == reading.seen.tolist()
        np.testing.assert_array_equal(copy.reading.terms, reading.terms)
    assert [r.seen.tolist() for r in alone][::5] == [[True, False], [False, True]]


def test_a_history_forms_readings_of_before_and_after_a_group_joined():
    meter, history = fresh(), History()
    feed(meter, 1, 2.0)
    history.append_later(meter.snapshot())
    meter.add_group("late", ["v"], [3])
    feed(meter, 2, 4.0, layers=(0, 1))
    history.append_later(meter.snapshot())
    assert history.steps.tolist() == [1, 2]
    np.testing.assert_array_equal(history.group(1, "sigma"), [np.nan, meter.reading.groups[1].sigma])
