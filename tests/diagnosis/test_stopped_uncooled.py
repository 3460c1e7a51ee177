"""A run that ends before the length it was given is told so, and one that may still go on is not."""

import subprocess
import sys

import pytest
import torch

from thermoopt import Observer, ThermoAdamW, ThermoScheduler, autotune, diagnose
from thermoopt.controllers import Chain, Cooling, DryRun, Recorder, Thermostat
from thermoopt.integrations.artifacts import write_artifacts
from thermoopt.record import SavedRun
from thermoopt.sinks import JSONLSink

TOTAL = 400


def run(steps, make=None, scheduler=None, quench=None, **options):
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 1)
    x = torch.randn(64, 8)
    if make is None:
        optimizer = ThermoAdamW(model.named_parameters(), controller=autotune(TOTAL), **options)
    else:
        optimizer = make(model)
    schedule = None if scheduler is None else scheduler(optimizer)
    observer = Observer(model, optimizer)
    for step in range(steps):
        optimizer.zero_grad()
        (model(x) - x.prod(1, keepdim=True)).square().mean().backward()
        if step == quench:
            optimizer.controller.cool_now(steps - step)
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return observer


def found(report):
    return [f for f in report.findings if f.kind == "stopped_uncooled"]


def test_it_is_a_finding_of_a_run_that_ended():
    observer = run(200)
    assert observer.length == TOTAL
    assert not found(diagnose(observer))  # it may go on
    report = diagnose(observer, ended=True)
    (finding,) = found(report)
    assert finding.confidence == "HIGH"
    assert "step 200 of 400" in finding.message
    assert report.facts["length"] == TOTAL
    assert "200 steps of 400" in report.summary
    share = observer.history.total("lr_eff")[-1] / observer.history.total("lr_eff").max()
    assert finding.effect == pytest.approx(share)
    assert f"{share:.0%}" in finding.message


@pytest.mark.parametrize("steps", [TOTAL - 3, TOTAL])
def test_a_whole_run_is_none(steps):
    assert not found(diagnose(run(steps), ended=True))


def test_a_quench_ends_a_run_early():
    assert not found(diagnose(run(200, quench=150), ended=True))


@pytest.mark.parametrize("with_controller", [False, True])
def test_a_schedulers_length_is_known(with_controller):
    def sgd(model):
        return torch.optim.SGD(model.parameters(), lr=1e-2)

    def scheduler(optimizer):
        if with_controller:
            return ThermoScheduler(optimizer, TOTAL, shape="constant", controller=autotune(TOTAL))
        return ThermoScheduler(optimizer, TOTAL)

    observer = run(100, sgd, scheduler)
    (finding,) = found(diagnose(observer, ended=True))
    assert "step 100 of 400" in finding.message


@pytest.mark.parametrize(
    ("controller", "length"),
    [
        (Cooling(100), 100),
        (Cooling(100, "constant"), None),
        (Cooling(100, "inverse_time", rate=0.1), None),
        (Cooling(None, "constant"), None),
        (Thermostat(total_steps=100), None),
        (autotune(100), 100),
        (autotune(100, shape="constant"), None),
        (autotune(), None),
        (Chain(Thermostat(total_steps=100), Cooling(80)), 80),
        (Recorder(Cooling(100)), 100),
        (DryRun(Cooling(100)), None),
    ],
    ids=lambda x: type(x).__name__ if x is not None and not isinstance(x, int) else str(x),
)
def test_length_is_where_cooling_ends(controller, length):
    assert controller.length == length


def test_a_quench_gives_a_length():
    cooling = Cooling(None)
    for step in range(1, 51):
        cooling.update(None, step)
    cooling.cool_now(20)
    assert cooling.length == 70
    assert [cooling.update(None, step).lr for step in (70, 71)][1] == 0.0


SCRIPT = """
import sys, os, torch
from tests.diagnosis.test_stopped_uncooled import run
from thermoopt.integrations.artifacts import write_artifacts
from thermoopt.record import SavedRun
from thermoopt.sinks import JSONLSink
observer = run(200, sinks=[JSONLSink(sys.argv[1])])
observer.optimizer.sinks.flush()
if sys.argv[2] == "killed":
    os._exit(0)
"""


@pytest.mark.parametrize(("how", "ended"), [("over", True), ("killed", False)])
def test_a_record_says_whether_its_process_ended(tmp_path, how, ended):
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "run.jsonl"), how], check=True)
    saved = SavedRun.read(tmp_path / "run.jsonl")
    assert (saved.ended, saved.length, saved.steps) == (ended, TOTAL, 200)
    assert bool(found(diagnose(saved))) == ended


def test_a_record_that_goes_on_has_not_ended(tmp_path):
    sink = JSONLSink(tmp_path / "run.jsonl")
    observer = run(200, sinks=[sink])
    sink.close()
    assert SavedRun.read(tmp_path / "run.jsonl").ended
    model, optimizer = observer.model, observer.optimizer
    for _ in range(50):
        model(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
    optimizer.sinks.flush()
    assert not SavedRun.read(tmp_path / "run.jsonl").ended
    sink.close()
    assert SavedRun.read(tmp_path / "run.jsonl").ended


def test_the_files_of_a_run_that_ended_come_with_a_warning(tmp_path):
    pytest.importorskip("matplotlib")
    observer = run(200)
    with pytest.warns(RuntimeWarning, match=r"ended at step 200 of 400.*cool_now"):
        write_artifacts(observer, tmp_path / "ended")
    assert "stopped uncooled" in (tmp_path / "ended" / "diagnosis.txt").read_text()
    write_artifacts(observer, tmp_path / "interrupted", ended=False)  # warnings are errors here
    assert "stopped uncooled" not in (tmp_path / "interrupted" / "diagnosis.txt").read_text()


def test_a_controlled_optimizer_under_a_plain_schedule_has_the_earlier_end():
    model = torch.nn.Linear(2, 1)
    optimizer = ThermoAdamW(model.parameters(), controller=autotune(100, shape="constant"))
    observer = Observer(model, optimizer)
    assert observer.length is None
    ThermoScheduler(optimizer, 80)
    assert observer.length == 80
    own = ThermoAdamW(model.parameters(), controller=autotune(100))
    ThermoScheduler(own, 80, shape="constant")
    assert Observer(model, own).length == 100
