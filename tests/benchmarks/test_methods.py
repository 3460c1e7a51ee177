"""Benchmark methods: what all have in common, schedule-free's two modes, the monitor, autotune's parts."""

import importlib.util
import math
import random
import re

import numpy as np
import pytest
import torch

from tests.support.method_runs import Run, scales, wanted
from thermoopt.benchmarks.methods import LAWS, METHODS, Method, Point, get

# ------------------------------------------------------------------ what all have in common


def test_the_registry():
    assert list(METHODS) == [m.name for m in METHODS.values()]
    assert len(METHODS) == 32
    assert not set(LAWS) & set(METHODS)
    for method in (*METHODS.values(), *LAWS.values()):
        assert re.fullmatch(r"[a-z0-9_. +-]+", method.name)
        assert method.about.count(";") >= 1
        defaults = {float(x) for x in re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", method.about)}
        assert method.decay in defaults
        assert "lr" not in method.tunables or method.lr in defaults
    free = {m.name for m in METHODS.values() if "lr" not in m.tunables}
    assert free == {"prodigy", "autotune", "lr only", "per group", "global", "scheduler adamw autotune",
                    "scheduler sgd autotune", "replay", "adamw fixed", "nadamw fixed", "dadapt-adam",
                    "momo-adam", "schedule-free+"}  # fmt: skip
    assert all("decay" in m.tunables for m in METHODS.values())


@pytest.mark.parametrize("name", METHODS)
def test_a_method_takes_its_point_and_draws_from_no_global_state(name):
    method = wanted(name)
    states = torch.random.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    default, given = Run(name, steps=20), Run(name, steps=20, lr=0.02, decay=0.3)
    other = Run(name, steps=20, lr=2.0, decay=0.3)
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1][1]).all()  # noqa: NPY002
    assert random.getstate() == states[2]
    assert default.group["weight_decay"] == method.decay
    assert given.group["weight_decay"] == 0.3
    for run in (default, given):
        held = {id(p) for group in run.setup.optimizer.param_groups for p in group["params"]}
        assert held == {id(p) for p in run.task.model.parameters()}
        assert run.setup.extra_steps == (20 if name == "replay" else 0)
    for run in (default, given, other):
        run.go()
    if "lr" in method.tunables:
        assert max(given.lrs) / max(default.lrs) == pytest.approx(
            0.02 / method.lr, rel=0.05
        )  # thermoclaw's feedback
        assert max(other.lrs) > max(given.lrs)
    else:
        assert given.losses == other.losses
    assert default.losses != given.losses


@pytest.mark.parametrize("name", METHODS)
def test_every_method_lowers_the_loss(name):
    pytest.importorskip("mnist1d")
    run = Run(name, "mlp", lr=0.1 if "sgd" in name else 0.01).go()
    final = run.judge()
    # measured with seeds 0 to 2: 0.65 to 0.75, the highest adamw inverse-time
    assert final < (1.0 if name == "schedule-free+" else 0.8) * run.initial  # made for larger models
    if name != "schedule-free+":  # whose training loss is that of a point beyond its average
        assert np.mean(run.losses[-10:]) < np.mean(run.losses[:10])


def test_an_unknown_name_gets_the_nearest():
    assert get("adamw wsd") is METHODS["adamw wsd"]
    with pytest.raises(
        ValueError, match=r"method must be one of .*'adamw.* got 'adam linear' \(nearest: 'adamw linear'"
    ):
        get("adam linear")
    with pytest.raises(ValueError, match=r"method must be one of .* got 'xyzzy'"):
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
        (lambda: Point(lr=0.0), "lr must be .* got 0.0"),
        (lambda: Point(lr=math.inf), "lr must be .* got inf"),
        (lambda: Point(decay=-0.1), "decay must be .* got -0.1"),
        (lambda: Point(decay=math.nan), "decay must be .* got nan"),
        (lambda: get("autotune").build(torch.nn.Linear(2, 1), Point(), 0, 0), "steps must be .* got 0"),
        (lambda: get("autotune").build(torch.nn.Linear(2, 1), Point(), 1.5, 0), "steps must be .* got 1.5"),
        (lambda: get("replay").build(torch.nn.Linear(2, 1), Point(), 10, 0), "another must be .* got None"),
        (
            lambda: Method("x", "y", lambda job: None, ("momentum",)),
            r"tunables must be .* got \('momentum',\)",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


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
    assert (watched.setup.optimizer.steps, watched.setup.optimizer.reading.step) == (60, 52)
    assert watched.setup.optimizer.backend == "torch"
    own = Run("autotune", workload).setup.optimizer.backend  # "native" unless there was no compiler
    assert native.setup.optimizer.backend == own


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
    assert set(factors["autotune"][-1]) == {1.0}  # gains: torch's defaults make layers alike
    modules = [m for m in runs["per group"].task.model.modules() if list(m.parameters(recurse=False))]
    assert len(seen["per group"][-1]) == len(modules) > 1
    assert len({round(step[0] * 1e9) for step in seen["per group"][-1]}) > 1
