"""Replay and random gain: blind to their own run, and what they are told is what they do."""

import math

import numpy as np
import pytest
import torch

from tests.support.method_runs import STEPS, WARM, Run, scales, share
from thermoopt import ThermoAdamW, autotune
from thermoopt.benchmarks.methods import Point, get
from thermoopt.benchmarks.methods.placebo import OFFSET, RandomGain
from thermoopt.benchmarks.workloads import WORKLOADS
from thermoopt.controllers import Recorder


def recorded(seed, steps):
    """Autotune's trajectory on linear, by hand: scales of every step, and the recorder."""
    task = WORKLOADS["linear"].build(seed)
    recorder = Recorder(autotune(steps))
    optimizer = ThermoAdamW(task.model.named_parameters(), controller=recorder)
    seen = []
    for _ in range(steps):
        optimizer.zero_grad()
        task.loss().backward()
        optimizer.step()
        thermo = optimizer.param_groups[0]["thermo"]
        seen.append((thermo["lr_scale"], thermo["wd_scale"], thermo["layer_factors"].tolist()))
    return seen, [p.detach().clone() for p in task.model.parameters()]


def test_replay_plays_the_scales_of_another_seed():
    seen, _ = recorded(3 + OFFSET, 60)
    run = Run("replay", seed=3)
    assert run.setup.extra_steps == 60
    for n in range(60):
        run.step()
        assert scales(run) == [seen[n]]
    own, _ = recorded(3, 60)
    assert own != seen  # the feedback of its own seed would have done another thing


def test_replay_of_ones_own_seed_is_the_run_itself():
    """Then open loop and closed loop cannot differ in a bit."""
    _, params = recorded(3, 60)
    build = WORKLOADS["linear"].build
    run = Run("replay", seed=3)
    task = build(3)
    run.task, run.setup = (
        task,
        get("replay").build(task.model, Point(), 60, 3, lambda seed: build(seed - OFFSET)),
    )
    run.go()
    assert all(torch.equal(a, b) for a, b in zip(run.params, params, strict=True))


def test_a_rehearsal_that_diverges_ends_there():
    build = WORKLOADS["linear"].build

    def another(seed):
        task = build(seed)
        calls = []

        def loss():
            calls.append(1)
            return task.loss() * (math.nan if len(calls) > 7 else 1.0)

        return type(task)(task.model, loss, task.evaluate)

    setup = get("replay").build(build(0).model, Point(), 60, 0, another)
    assert setup.extra_steps == 7


def gains(seed, steps=400):
    controller = RandomGain(seed, steps)
    return np.array([controller.update(None, n + 1).lr for n in range(steps)]), controller


def test_random_gain_is_seeded_bounded_and_blind():
    first, controller = gains(0)
    assert np.array_equal(first, gains(0)[0])
    assert not np.array_equal(first, gains(1)[0])
    assert len(controller.log) == 20
    draws = np.array([action.new for seed in range(40) for action in gains(seed)[1].log])
    assert draws.min() >= 1 / 4
    assert draws.max() <= 4
    # uniform in the logarithm: mean 0 and spread of 2 ln 4 / sqrt 12, within 3 standard errors of 800 draws
    logs = np.log(draws)
    assert abs(logs.mean()) < 3 * 0.80 / math.sqrt(800)
    assert logs.std() == pytest.approx(2 * math.log(4) / math.sqrt(12), rel=0.08)
    # a thermostat's slew limit: e in 4 of 400 steps
    assert abs(np.diff(np.log(first))).max() <= 1 / 4 + 1e-12
    # and there at the end of each stretch of 20 steps
    assert first[19::20] == pytest.approx([action.new for action in controller.log])


def test_random_gain_goes_on_where_it_stood():
    whole, _ = gains(5)
    first, second = RandomGain(5, 400), RandomGain(5, 400)
    for n in range(133):
        first.update(None, n + 1)
    second.load_state_dict(first.state_dict())
    assert [second.update(None, n + 1).lr for n in range(133, 400)] == whole[133:].tolist()
    assert second.log[:7] == first.log


def test_random_gain_moves_the_lr_and_not_by_what_it_sees():
    """lr follows the draws times warm-up and linear cooling, whatever the lr and the losses."""
    for lr in (1e-3, 1e-2):
        run = Run("random gain", steps=STEPS, lr=lr, seed=2)
        drawn, _ = gains(2, STEPS)
        for n in range(STEPS):
            run.step()
            shape = (n + 1) / WARM if n < WARM else 1 - share(n)
            assert scales(run)[0][0] == pytest.approx(drawn[n] * shape)
        assert set(run.lrs) == {lr}
