"""The reverse gear as pure functions, against closed forms, and what must not set it off."""

import math
from itertools import pairwise

import numpy as np
import pytest

from thermoopt.controllers.gear import LEAP, LEAST, SHARE, Gear, largest_share, leap


def feed(gear, energies, *, total=400, every=2, coherence=1.0, losses=None, start=0):
    """Hand over readings; return the shifts as (step, factor)."""
    shifts = []
    for i, energy in enumerate(energies):
        step = start + every * (i + 1)
        loss = math.nan if losses is None else losses[i]
        shift = gear.look(step, step, total, energy, coherence, loss)
        if shift is not None:
            shifts.append((step, shift.factor, shift.reason))
    return shifts


def test_a_leap_is_measured_against_the_median_of_one_to_three_windows_ago():
    energies = [(t, 1.0) for t in range(0, 60, 10)] + [(60, 100.0)]
    assert leap(energies, 4.0, 80, 20.0) == 4.0  # the outlier at 60 is one of four
    assert math.isnan(leap(energies, 4.0, 500, 20.0))
    assert math.isnan(leap([], 4.0, 80, 20.0))


@pytest.mark.parametrize("times", [3.2, 3.5, 3.9])
def test_a_leap_of_noise_lowers_the_rate_with_its_root(times):
    """Gradients of a batch 1/n as large have n times the variance; Adam's rate goes with the root."""
    gear = Gear()
    shifts = feed(gear, [1.0] * 100 + [times] * 60)
    assert [f for _, f, _ in shifts] == [pytest.approx(1 / math.sqrt(times))]
    assert shifts[0][0] <= 210  # within a window
    assert gear.cut == pytest.approx(1 / math.sqrt(times))


def test_one_action_never_takes_more_than_its_share():
    gear = Gear()
    assert feed(gear, [1.0] * 100 + [1e6] * 30)[0][1] == LEAST


def test_noise_that_falls_back_restores_what_it_took_and_no_more():
    gear = Gear()
    shifts = feed(gear, [1.0] * 60 + [9.0] * 40 + [0.5] * 60)
    assert [f for _, f, _ in shifts] == [0.5, pytest.approx(2.0)]
    assert gear.cut == 1.0
    assert feed(Gear(), [1.0] * 60 + [0.01] * 60) == []  # nothing was taken: nothing to restore


@pytest.mark.parametrize(
    "energies",
    [
        np.exp(-np.arange(200) / 20),  # interpolation: gradients vanish while v remembers
        np.exp(np.arange(200) / 60),  # gradients that grow all the while, as on a plateau's edge
        1 + 0.5 * np.sin(np.arange(200) / 5),
        np.r_[np.full(10, 1.0), np.full(190, 8.0)],  # before a run has a past
    ],
    ids=["interpolates", "grows", "swings", "early"],
)
def test_healthy_runs_keep_their_rate(energies):
    assert feed(Gear(), energies) == []


def test_gradients_that_agree_are_no_noise():
    """Data of another kind: the gradient's energy leaps, and the rate is needed."""
    assert feed(Gear(), [1.0] * 100 + [8.0] * 60, coherence=3.0) == []


def test_a_loss_that_loses_half_of_what_it_gained_halves_the_rate_and_one_bad_batch_does_not():
    calm = [1.0] * 200
    down = np.linspace(4.0, 1.0, 100).tolist()
    lost = [*down, *[3.0] * 100]
    gear = Gear()
    shifts = feed(gear, calm, losses=lost)
    assert shifts[0][1] == 0.5
    assert len(shifts) > 1  # once more where it stays lost
    assert all(b[0] - a[0] >= 40 for a, b in pairwise(shifts))
    spike = [*down, 9.0, *[1.0] * 99]
    assert feed(Gear(), calm, losses=spike) == []
    assert feed(Gear(), calm, losses=down + [1.0] * 100) == []


@pytest.mark.parametrize("gain", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("seed", range(5))
def test_a_noisy_loss_that_has_hardly_fallen_loses_nothing(gain, seed):
    """The lowest value of noise is no gain that could be lost; a loss that leaves its noise behind is."""
    noise = 0.1 * np.random.default_rng(seed).standard_normal(300)
    flat = 2.0 - gain * np.linspace(0, 1, 300) + noise
    calm = [1.0] * 300
    assert feed(Gear(), calm, losses=flat.tolist()) == []
    lost = flat + np.interp(np.arange(300), [0, 100, 300], [1, 0, 3])
    assert feed(Gear(), calm, losses=lost.tolist())[0][1] == 0.5


def test_the_gear_travels_in_plain_data():
    gear = Gear()
    feed(gear, [1.0] * 40)
    state = gear.state_dict()
    assert state["smooth"] is None
    again = Gear.of(state)
    rest = [8.0] * 40
    assert feed(gear, rest, start=80) == feed(again, rest, start=80) != []
    assert again.state_dict() == gear.state_dict()


def test_turning_is_the_step_over_the_size_or_the_unit():
    rng = np.random.default_rng(0)
    theta, step = rng.normal(size=(3, 50)), 0.1 * rng.normal(size=(3, 50))
    theta[2] = 0  # a zero-initialised matrix is measured in its unit
    units = np.array([0.1, 0.1, 2.0])
    share, layer = largest_share(
        (step**2).sum(axis=1), (theta**2).sum(axis=1), np.full(3, 50.0), np.full(3, 50.0), units
    )
    rms = np.sqrt((step**2).mean(axis=1)) / np.maximum(np.sqrt((theta**2).mean(axis=1)), units)
    assert share == pytest.approx(rms.max())
    assert layer == int(rms.argmax())
    assert largest_share(*np.zeros((5, 0))) == (0.0, -1)
    assert 0 < SHARE < 1 < LEAP
