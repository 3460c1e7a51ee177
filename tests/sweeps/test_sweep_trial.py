"""One trial: it trains as a loop written out by hand does, and its row says what happened."""

import json
import math
from dataclasses import replace

import pytest
import torch

pytest.importorskip("optuna")
pytest.importorskip("mnist1d")
pytest.importorskip("sklearn")

from thermoopt.benchmarks.methods import Setup
from thermoopt.benchmarks.sweeps import trial
from thermoopt.benchmarks.sweeps.trial import Stopped, TrialSpec, log_path, run_trial
from thermoopt.benchmarks.workloads import WORKLOADS, Task

SPEC = TrialSpec(
    protocol="f" * 64,
    tier="t",
    workload="linear",
    steps=40,
    method="adamw linear",
    seed=3,
    k=1,
    lr=0.05,
    decay=0.02,
    evaluations=4,
)


def by_hand(steps, lr, decay, seed):
    """AdamW, warm-up over 5 %, linear to zero, as a loop: losses, rates, validation loss."""
    task = WORKLOADS["linear"].build(seed)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr, weight_decay=decay, fused=True)
    warmup = round(0.05 * steps)
    losses, rates = [], []
    for t in range(steps):
        rates.append(lr * ((t + 1) / warmup if t < warmup else 1 - (t - warmup) / (steps - warmup)))
        optimizer.param_groups[0]["lr"] = rates[-1]
        loss = task.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, rates, task.evaluate()


def test_it_trains_as_a_loop_by_hand_and_logs_every_step(tmp_path):
    losses, rates, valid = by_hand(40, 0.05, 0.02, 3)
    state = torch.random.get_rng_state()
    row = run_trial(SPEC, tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert row["valid"] == row["curve"][-1][1] == pytest.approx(valid, rel=1e-6)
    assert row["initial"] == row["curve"][0][1] == WORKLOADS["linear"].build(3).evaluate()
    assert [step for step, _ in row["curve"]] == [0, 10, 20, 30, 40]
    assert not row["diverged"]
    log = [json.loads(line) for line in log_path(tmp_path, SPEC).read_text().splitlines()]
    assert [line["step"] for line in log] == list(range(1, 41))
    assert [line["loss"] for line in log] == pytest.approx(losses, rel=1e-5)
    assert [line["lr"] for line in log] == pytest.approx(rates, rel=1e-5)
    assert [p.name for p in log_path(tmp_path, SPEC).parent.iterdir()] == ["seed3-k1.jsonl"]


def test_what_a_row_says():
    row = run_trial(replace(SPEC, retried=True))
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    given = SPEC.__dict__ | {"retried": True}
    assert {k: row[k] for k in given if k in row} == {k: v for k, v in given.items() if k in row}
    assert {*given} - {*row} == {"evaluations", "log_every"}
    assert row["tunables"] == ["lr", "decay"]
    assert row["metric"] == WORKLOADS["linear"].metric
    assert row["sha256"] == WORKLOADS["linear"].sha256()
    assert 0 < row["step_ms"] * 40 / 1e3 < 2 * row["seconds"]
    assert 50 < row["peak_mb"] < 1e5  # torch alone is more than 50 MB


def test_the_number_of_validations_does_not_touch_the_run():
    rows = [run_trial(replace(SPEC, evaluations=n, workload="mlp")) for n in (1, 7)]
    assert rows[0]["valid"] == rows[1]["valid"]
    assert [len(row["curve"]) for row in rows] == [2, 8]


def test_a_sparse_log(tmp_path):
    spec = replace(SPEC, log_every=15)
    run_trial(spec, tmp_path)
    lines = log_path(tmp_path, spec).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 15, 30]


def test_the_logged_rate_is_the_one_a_controller_sets(tmp_path):
    spec = replace(SPEC, method="autotune", lr=None, steps=60)
    run_trial(spec, tmp_path)
    rates = [json.loads(line)["lr"] for line in log_path(tmp_path, spec).read_text().splitlines()]
    assert len({*rates}) > 30


def test_a_run_that_blows_up_scores_its_initial_loss():
    row = run_trial(replace(SPEC, lr=1e30))
    assert row["diverged"]
    assert row["valid"] == row["initial"] > 1000
    assert row["curve"][0] == [0, row["initial"]]
    assert all(math.isfinite(v) for _, v in row["curve"])


def test_a_run_that_ends_above_its_start_scores_its_initial_loss():
    row = run_trial(replace(SPEC, lr=300.0, decay=1e-4))
    assert row["curve"][-1][0] == 40
    assert row["curve"][-1][1] > row["initial"]
    assert row["diverged"]
    assert row["valid"] == row["initial"]


def test_a_run_that_is_stopped_leaves_nothing(tmp_path):
    asked = iter([False] * 5 + [True])
    with pytest.raises(Stopped):
        run_trial(SPEC, tmp_path, lambda: next(asked))
    assert not [*tmp_path.rglob("*.jsonl")]


def test_the_order_of_calls(monkeypatch):
    """Report before the step, schedule and after_step after it, judging wrapped, and only finite losses."""
    calls = []
    weight = torch.nn.Linear(1, 1)

    class Optimizer(torch.optim.SGD):
        def step(self, closure=None):
            calls.append("step")

    def task(seed, batch=1.0):
        losses = iter([1.0, 1.0, math.nan])
        return Task(
            weight, lambda: weight.weight.sum() * 0 + next(losses), lambda: calls.append("judge") or 2.0
        )

    class Schedule:
        def step(self):
            calls.append("schedule")

    def build(model, point, steps, seed, another):
        assert (point.lr, point.decay, steps, seed) == (0.05, 0.02, 40, 3)
        assert another is task
        say = lambda word: lambda *_: calls.append(word)  # noqa: E731
        return Setup(
            Optimizer(model.parameters(), 0.1),
            Schedule(),
            say("before"),
            say("after"),
            say("report"),
            say("end"),
            7,
        )

    monkeypatch.setitem(trial.WORKLOADS, "linear", replace(WORKLOADS["linear"], build=task))
    fake = type("M", (), {"build": staticmethod(build), "tunables": ("lr",)})
    monkeypatch.setitem(trial.METHODS, "adamw linear", fake)
    row = run_trial(replace(SPEC, evaluations=40))
    judged, stepped = ["before", "judge", "after"], ["report", "step", "schedule", "end"]
    assert calls == judged + 2 * (stepped + judged)
    assert row["diverged"]
    assert row["extra_steps"] == 7


def test_a_workload_without_a_finite_start_is_an_error(monkeypatch):
    def task(seed, batch=1.0):
        return Task(torch.nn.Linear(1, 1), lambda: None, lambda: math.nan)

    monkeypatch.setitem(trial.WORKLOADS, "linear", replace(WORKLOADS["linear"], build=task))
    with pytest.raises(ValueError, match="linear, seed 3: the initial loss is not finite"):
        run_trial(SPEC)
