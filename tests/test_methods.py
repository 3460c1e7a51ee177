"""Methods: schedules are what they are called, feedback acts on what it is told, placebos are blind."""

import importlib.util
import math
import random
import re

import numpy as np
import pytest
import torch
from thermoopt.benchmarks.methods import LAWS, METHODS, Method, Point, get
from thermoopt.benchmarks.methods.placebo import OFFSET, RandomGain
from thermoopt.benchmarks.workloads import WORKLOADS
from thermoopt.controllers import Recorder
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from thermoopt import ThermoAdamW, autotune

STEPS, WARM = 200, 10
"""Length of the runs in which schedules are looked at, and its warm-up."""


def wanted(name):
    """A method whose package is there."""
    if METHODS[name].needs:
        pytest.importorskip(METHODS[name].needs)
    return METHODS[name]


class Run:
    """A run that can be looked at on the way."""

    def __init__(self, name, workload="linear", steps=60, lr=None, decay=None, seed=0):
        self.task = WORKLOADS[workload].build(seed)
        build = WORKLOADS[workload].build
        self.initial = self.task.evaluate()
        self.setup = wanted(name).build(self.task.model, Point(lr, decay), steps, seed, build)
        self.steps, self.lrs, self.losses = steps, [], []

    @property
    def group(self):
        return self.setup.optimizer.param_groups[0]

    @property
    def params(self):
        return [p.detach().clone() for p in self.task.model.parameters()]

    def step(self, loss=None):
        """One step; ``loss`` is what the method is told instead of the truth."""
        true = self.task.loss()
        self.setup.optimizer.zero_grad()
        true.backward()
        self.setup.report(true if loss is None else torch.tensor(loss))
        self.lrs.append(float(self.group["lr"]))
        self.setup.optimizer.step()
        if self.setup.schedule is not None:
            self.setup.schedule.step()
        self.setup.after_step()
        self.losses.append(true.item())

    def judge(self):
        self.setup.before_judging()
        loss = self.task.evaluate()
        self.setup.after_judging()
        return loss

    def go(self, judge_every=0):
        for n in range(self.steps):
            self.step()
            if judge_every and n % judge_every == 0:
                self.judge()
        return self


# ------------------------------------------------------------------ what all have in common


def test_the_registry():
    assert list(METHODS) == [m.name for m in METHODS.values()]
    assert len(METHODS) == 27
    assert not set(LAWS) & set(METHODS)
    for method in (*METHODS.values(), *LAWS.values()):
        assert re.fullmatch(r"[a-z0-9_. -]+", method.name)
        assert method.about.count(";") >= 1
        defaults = {float(x) for x in re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", method.about)}
        assert method.decay in defaults
        assert "lr" not in method.tunables or method.lr in defaults
    free = {m.name for m in METHODS.values() if "lr" not in m.tunables}
    assert free == {"prodigy", "autotune", "lr only", "per group", "global", "scheduler adamw autotune",
                    "scheduler sgd autotune", "replay"}  # fmt: skip
    assert all("decay" in m.tunables for m in METHODS.values())


@pytest.mark.parametrize("name", METHODS)
def test_a_method_takes_its_point_and_draws_from_no_global_state(name):
    method = wanted(name)
    states = torch.random.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    default, given = Run(name, steps=20), Run(name, steps=20, lr=0.02, decay=0.3)
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1][1]).all()  # noqa: NPY002
    assert random.getstate() == states[2]
    assert default.group["weight_decay"] == method.decay
    assert given.group["weight_decay"] == 0.3
    for run in (default, given):
        held = {id(p) for group in run.setup.optimizer.param_groups for p in group["params"]}
        assert held == {id(p) for p in run.task.model.parameters()}
        assert run.setup.extra_steps == (20 if name == "replay" else 0)
    for run in (default, given):
        run.go()
    if "lr" in method.tunables:
        assert max(default.lrs) < max(given.lrs) if method.lr < 0.02 else max(default.lrs) > max(given.lrs)
    elif "scheduler" not in name:  # there decay acts on what the law sees
        assert default.lrs == given.lrs


@pytest.mark.parametrize("name", METHODS)
def test_every_method_lowers_the_loss(name):
    pytest.importorskip("mnist1d")
    run = Run(name, "mlp", lr=0.1 if "sgd" in name else 0.01).go()
    final = run.judge()
    # a fifth below that of ignorance (2.3); measured: 1.1 to 1.75, inverse-time and SGD highest
    assert final < 0.8 * run.initial
    assert np.mean(run.losses[-10:]) < np.mean(run.losses[:10])


def test_an_unknown_name_gets_the_nearest():
    assert get("adamw wsd") is METHODS["adamw wsd"]
    with pytest.raises(
        ValueError, match=r"method is 'adam linear' \(nearest: 'adamw linear'.*allowed are 'adamw"
    ):
        get("adam linear")
    with pytest.raises(ValueError, match="method is 'xyzzy'; allowed are"):
        get("xyzzy")


@pytest.mark.parametrize(
    ("name", "brings"),
    [
        ("prodigy", r"prodigyopt.*pip install prodigyopt \(or thermoopt\[bench\]\)"),
        ("greedylr", r"transformers.*pip install transformers \(or thermoopt\[hf\]\)"),
        ("thermoclaw", r"thermoclaw.*pip install thermoclaw \(it is in no extra"),
    ],
)
def test_a_missing_package_is_named(name, brings, monkeypatch):
    find = importlib.util.find_spec
    needs = METHODS[name].needs
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == needs else find(n, *a))
    with pytest.raises(ImportError, match=f"method {name!r} needs {brings}"):
        METHODS[name].build(torch.nn.Linear(2, 1), Point(), 10, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Point(lr=0.0), "lr is 0.0; allowed"),
        (lambda: Point(lr=math.inf), "lr is inf; allowed"),
        (lambda: Point(decay=-0.1), "decay is -0.1; allowed"),
        (lambda: Point(decay=math.nan), "decay is nan; allowed"),
        (lambda: get("autotune").build(torch.nn.Linear(2, 1), Point(), 0, 0), "steps is 0; allowed"),
        (lambda: get("autotune").build(torch.nn.Linear(2, 1), Point(), 1.5, 0), "steps is 1.5; allowed"),
        (lambda: get("replay").build(torch.nn.Linear(2, 1), Point(), 10, 0), "another is None; allowed"),
        (lambda: Method("x", "y", lambda job: None, ("momentum",)), r"tunables is \('momentum',\); allowed"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ------------------------------------------------------------------ schedules


def rising(shape):
    """Closed form over a run: warm-up, then a function of the step."""
    return lambda n: (n + 1) / WARM if n < WARM else shape(n)


def share(n):
    return (n - WARM) / (STEPS - WARM)


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
    """Losses that swing by 10 and fall by 1e-3 a step: single ones would look like a plateau."""
    run = Run("reduce-on-plateau", steps=500, lr=0.01)
    for n in range(500):
        run.step(loss=100 + 10 * (-1) ** n - 1e-2 * n)
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


# ------------------------------------------------------------------ schedule-free


def test_judging_schedule_free_changes_no_bit_of_its_run():
    plain, judged = Run("schedule-free").go(), Run("schedule-free").go(judge_every=1)
    for a, b in zip(plain.params, judged.params, strict=True):
        assert torch.equal(a, b)
    assert plain.losses == judged.losses


def test_schedule_free_is_judged_at_its_average_and_trained_elsewhere():
    """The average of z by hand, float64: weights are squares of the largest lr so far (arXiv 2405.15682)."""
    run = Run("schedule-free", steps=40, lr=0.05)
    average, total = [p.double() for p in run.params], 0.0
    for n in range(40):
        run.step()
        weight = (0.05 * min(1.0, (n + 1) / 2)) ** 2
        total += weight
        for x, p in zip(average, run.task.model.parameters(), strict=True):
            x += weight / total * (run.setup.optimizer.state[p]["z"].double() - x)
    there = run.params
    run.setup.before_judging()
    for x, p in zip(average, run.params, strict=True):
        torch.testing.assert_close(p.double(), x, rtol=1e-4, atol=1e-6)
    assert not any(torch.equal(a, b) for a, b in zip(there, run.params, strict=True))
    assert not run.group["train_mode"]
    run.setup.after_judging()
    assert all(torch.equal(a, b) for a, b in zip(there, run.params, strict=True))
    assert run.group["train_mode"]
    run.step()


# ------------------------------------------------------------------ ours


@pytest.mark.parametrize("workload", ["linear", "mlp"])
def test_the_monitor_is_adamw_to_the_last_bit(workload):
    if workload == "mlp":
        pytest.importorskip("mnist1d")
    plain, watched, native = (
        Run(name, workload, lr=0.01, decay=0.1).go() for name in ("adamw linear", "monitor", "monitor native")
    )
    assert plain.losses == watched.losses
    for a, b, c in zip(plain.task.model.parameters(), *(r.task.model.parameters() for r in (watched, native)),
                       strict=True):  # fmt: skip
        assert torch.equal(a, b)
        for key, value in plain.setup.optimizer.state[a].items():
            assert torch.equal(value, watched.setup.optimizer.state[b][key])
        torch.testing.assert_close(a, c, rtol=1e-3, atol=1e-5)  # rounding, grown over 60 steps
    assert watched.setup.optimizer.reading.step == 60


def scales(run):
    thermo = [group["thermo"] for group in run.setup.optimizer.param_groups]
    return [(t["lr_scale"], t["wd_scale"], t["layer_factors"].tolist()) for t in thermo]


def test_what_the_parts_of_autotune_leave_alone():
    pytest.importorskip("mnist1d")
    runs = {name: Run(name, "mlp") for name in ("autotune", "lr only", "decay only", "global", "per group")}
    seen = {name: [] for name in runs}
    for name, run in runs.items():
        for _ in range(60):
            run.step()
            seen[name].append(scales(run))
    (lr, wd, factors) = ({name: [step[0][i] for step in seen[name]] for name in runs} for i in range(3))
    assert set(wd["lr only"]) == set(lr["decay only"]) == {1.0}
    assert lr["lr only"] == pytest.approx(lr["autotune"], rel=0.2)
    assert min(wd["autotune"]) < 1  # coupled to a falling lr
    assert min(wd["decay only"]) < 1
    assert {x for step in factors["global"] for x in step} == {1.0}
    assert len({x for x in factors["autotune"][-1]}) > 2
    modules = [m for m in runs["per group"].task.model.modules() if list(m.parameters(recurse=False))]
    assert len(seen["per group"][-1]) == len(modules) > 1
    assert len({round(step[0] * 1e9) for step in seen["per group"][-1]}) > 1


# ------------------------------------------------------------------ placebos


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
