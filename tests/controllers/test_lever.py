"""Bounds, slew, hold-off and memory of the one thing that controllers move."""

import math

import pytest

from thermoopt.controllers.base import Action
from thermoopt.controllers.lever import Bounds, Lever

WORDS = {
    "controller": "Test",
    "group": "all",
    "kind": "lr",
    "evidence": {"r": (1.5, 0.1)},
    "reason": "because",
}


def aim(lever, target, step=1, **more):
    return lever.aim(target, step, **{**WORDS, **more})


def ready(value=1.0, **bounds):
    """A lever that may act at once."""
    return Lever(Bounds(**{"min_readings": 0, **bounds}), value)


def moves(lever, n):
    return [lever.move() for _ in range(n)]


def test_it_goes_up_by_the_slew_factor_and_stops_at_the_target():
    lever = ready(slew_up=2.0)
    aim(lever, 10.0)
    assert moves(lever, 6) == [2.0, 4.0, 8.0, 10.0, 10.0, 10.0]


def test_it_goes_down_by_its_own_slew_factor():
    lever = ready(slew_up=100.0, slew_down=4.0)
    aim(lever, 1 / 50)
    assert moves(lever, 5) == [1 / 4, 1 / 16, 1 / 50, 1 / 50, 1 / 50]


def test_it_turns_round_in_the_middle_of_a_way():
    lever = ready(slew_up=2.0, slew_down=4.0)
    aim(lever, 1000.0, 1)
    assert moves(lever, 4) == [2.0, 4.0, 8.0, 16.0]
    aim(lever, 3.0, 5)
    assert moves(lever, 3) == [4.0, 3.0, 3.0]
    aim(lever, 5.0, 8)
    assert moves(lever, 2) == [5.0, 5.0]


def test_aiming_alone_moves_nothing():
    lever = ready()
    aim(lever, 3.0)
    assert lever.value == 1.0
    assert ready(slew_up=1.5).move() == 1.0


def test_to_zero_and_back():
    """No factor leads away from 0, so the first step up goes all the way."""
    lever = ready(slew_down=2.0, slew_up=2.0)
    aim(lever, 0.0)
    assert moves(lever, 3) == [0.5, 0.25, 0.125]
    lever.value = 0.0
    aim(lever, 7.0, 4)
    assert lever.move() == 7.0


@pytest.mark.parametrize(("value", "start"), [(0.1, 0.5), (1.0, 1.0), (9.0, 2.0)])
def test_it_starts_within_its_bounds(value, start):
    lever = Lever(Bounds(lo=0.5, hi=2.0), value)
    assert lever.value == lever.target == start
    assert lever.move() == start


def test_targets_are_cut_to_the_bounds():
    lever = ready(lo=0.5, hi=2.0, slew_up=10.0, slew_down=10.0)
    assert aim(lever, 1e9, 1).new == 2.0
    assert moves(lever, 2) == [2.0, 2.0]
    assert aim(lever, 0.0, 2).new == 0.5
    assert moves(lever, 2) == [0.5, 0.5]


@pytest.mark.parametrize(("far", "stop"), [(1e12, 2.0), (0.0, 0.5)])
def test_nothing_winds_up_at_a_bound(far, stop):
    """A thousand steps of asking for the impossible leave no debt: the way back starts at once."""
    lever = ready(lo=0.5, hi=2.0, slew_up=1.1, slew_down=1.1)
    for step in range(1, 1001):
        aim(lever, far, step)
        lever.move()
    assert lever.value == stop
    aim(lever, 1.0, 1001)
    back = moves(lever, 9)
    expected = [stop * (1.1**-k if stop > 1 else 1.1**k) for k in range(1, 9)]
    clipped = [max(1.0, v) if stop > 1 else min(1.0, v) for v in expected]
    assert back[:8] == pytest.approx(clipped)
    assert back[8] == 1.0


def test_the_hold_off_lets_no_action_through_for_so_many_steps():
    lever = ready(hold_off=3)
    acted = [step for step in range(10, 20) if aim(lever, 1.0 + step, step) is not None]
    assert acted == [10, 13, 16, 19]


def test_the_value_goes_on_during_a_hold_off():
    lever = ready(hold_off=100, slew_up=2.0)
    aim(lever, 8.0, 1)
    assert aim(lever, 0.1, 2) is None
    assert moves(lever, 4) == [2.0, 4.0, 8.0, 8.0]


def test_what_was_refused_starts_no_hold_off():
    lever = ready(hold_off=5)
    assert aim(lever, 1.0, 1) is None  # where it stands
    assert aim(lever, math.nan, 2) is None
    assert aim(lever, 2.0, 3) is not None


def test_it_waits_for_so_many_readings():
    lever = Lever(Bounds(min_readings=3))
    acted = []
    for step in range(1, 6):
        lever.readings += 1
        if aim(lever, 1.0 + step, step) is not None:
            acted.append(step)
    assert acted == [3, 4, 5]
    assert aim(Lever(Bounds(min_readings=0)), 2.0) is not None
    assert aim(Lever(Bounds(min_readings=1)), 2.0) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_asks_for_nothing(bad):
    lever = ready(slew_up=2.0)
    aim(lever, 4.0, 1)
    assert aim(lever, bad, 2) is None
    assert moves(lever, 3) == [2.0, 4.0, 4.0]


def test_small_changes_are_left_alone():
    lever = ready(2.0)
    assert aim(lever, 2.019, 1, tolerance=0.01) is None
    assert aim(lever, 1.981, 2, tolerance=0.01) is None
    assert lever.target == 2.0
    # against the target, not the value: else a slow creep would never be seen
    assert aim(lever, 2.021, 3, tolerance=0.01).new == 2.021
    assert aim(lever, 2.040, 4, tolerance=0.01) is None
    assert aim(lever, 2.042, 5, tolerance=0.01).new == 2.042


def test_the_action_tells_it_all():
    lever = ready(2.0, hi=3.0)
    action = aim(lever, 5.0, 17)
    assert action == Action(17, "Test", "all", "lr", 2.0, 3.0, {"r": (1.5, 0.1)}, "because")
    assert Action.from_dict(action.to_dict()) == action
    evidence = dict(WORDS["evidence"])
    action = aim(ready(), 5.0, evidence=evidence)
    evidence["r"] = (0.0, 0.0)  # a controller may use its dict again
    assert action.evidence == {"r": (1.5, 0.1)}


def test_a_restored_lever_goes_on_in_the_middle_of_a_hold_off():
    bounds = Bounds(slew_up=1.5, min_readings=2, hold_off=4)

    def go(lever, steps):
        out = []
        for step in steps:
            lever.readings += 1
            out.append((aim(lever, 10.0 + step, step), lever.move()))
        return out

    lever = Lever(bounds, 0.3)
    first = go(lever, range(1, 5))
    assert [a is not None for a, _ in first] == [False, True, False, False]  # held until step 6
    saved = lever.state_dict()
    other = Lever(bounds)
    other.load_state_dict(saved)
    rest = go(lever, range(5, 15))
    assert go(other, range(5, 15)) == rest
    assert [a is not None for a, _ in rest] == [step in (6, 10, 14) for step in range(5, 15)]
    assert other.state_dict() == lever.state_dict() != saved
    assert {type(v) for v in saved.values()} <= {int, float}


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"lo": 2.0, "hi": 1.0}, ["lo and hi", "2.0 and 1.0", "0 <= lo <= hi"]),
        ({"lo": -0.1}, ["lo and hi", "-0.1"]),
        ({"hi": math.nan}, ["lo and hi", "nan"]),
        ({"slew_up": 1.0}, ["slew_up", "1.0", "> 1"]),
        ({"slew_down": 0.5}, ["slew_down", "0.5"]),
        ({"slew_down": math.nan}, ["slew_down", "nan"]),
        ({"min_readings": -1}, ["min_readings", "-1", ">= 0"]),
        ({"min_readings": True}, ["min_readings", "True"]),
        ({"hold_off": 2.5}, ["hold_off", "2.5"]),
        ({"hold_off": math.inf}, ["hold_off", "inf"]),
        ({"hold_off": math.nan}, ["hold_off", "nan"]),
    ],
)
def test_bad_bounds(kwargs, words):
    with pytest.raises(ValueError, match=words[0]) as caught:
        Bounds(**kwargs)
    for word in words:
        assert word in str(caught.value)
