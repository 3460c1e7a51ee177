"""Two runs in one file are told apart, and a run that was resumed from a checkpoint is one."""

import warnings

import pytest
import torch

from thermoopt import Observer, ThermoAdamW
from thermoopt.record import SavedRun
from thermoopt.sinks import JSONLSink, ParquetSink

NAMES = ["run.jsonl", "run.jsonl.gz", "run.parquet"]


def sink_of(path):
    if path.suffix == ".parquet":
        pytest.importorskip("pyarrow")
        return ParquetSink(path)
    return JSONLSink(path)


def made(sink, seed=0, every=1):
    torch.manual_seed(seed)
    model = torch.nn.Linear(4, 1)
    options = {"ema_steps": 1, "measure_every": every, "sinks": [sink], "backend": "torch"}
    return model, ThermoAdamW(model.named_parameters(), lr=1e-2, **options)


def train(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.report_loss(float(optimizer.steps))
        optimizer.step()
    optimizer.sinks.flush()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("first", "second", "every"), [(12, 7, 1), (7, 12, 1), (3, 30, 5)])
def test_a_second_run_is_told_of_and_shown_alone(tmp_path, name, first, second, every):
    """As when a script is run twice; with ``every``, nothing of the second repeats a step of the first."""
    path = tmp_path / name
    sink = sink_of(path)
    train(*made(sink), first)
    sink.close()
    sink = sink_of(path)
    model, optimizer = made(sink, seed=1, every=every)
    with pytest.warns(RuntimeWarning, match="holds a run already, and another begins at step 0"):
        train(model, optimizer, second)
    sink.close()
    if name.endswith("parquet"):
        return
    with pytest.warns(RuntimeWarning, match=rf"another run: session .*the {first} readings before it"):
        run = SavedRun.read(path)
    steps = optimizer.history.steps
    assert run.history.steps.tolist() == steps.tolist()
    assert run.facts["first_loss"] == [1, 0.0]
    assert set(run.history.layer_steps) <= set(steps)
    norms = {
        name: float(p.detach().double().square().sum())
        for name, p in made(sink, seed=1)[0].named_parameters()
    }
    assert run.start_norms == pytest.approx(norms)


@pytest.mark.parametrize("name", NAMES[:2])
def test_one_sink_for_two_runs_of_one_process(tmp_path, name):
    """As when a notebook's cell is run again."""
    sink = JSONLSink(tmp_path / name)
    train(*made(sink), 12)
    with pytest.warns(RuntimeWarning, match="holds a run already"):
        train(*made(sink, seed=1), 5)
    sink.close()
    with pytest.warns(RuntimeWarning, match="the 12 readings before it"):
        assert SavedRun.read(tmp_path / name).history.steps.tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kept", [0, 4])
def test_a_resumed_run_is_one(tmp_path, name, kept):
    """``kept`` steps were taken, and lost, after the checkpoint."""
    path = tmp_path / name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sink = sink_of(path)
        model, optimizer = made(sink)
        train(model, optimizer, 6)
        saved = optimizer.state_dict()
        train(model, optimizer, kept)
        sink.close()
        sink = sink_of(path)
        again, resumed = made(sink, seed=2)
        resumed.load_state_dict(saved)
        train(again, resumed, 6)
        sink.close()
        run = SavedRun.read(path)
    assert run.history.steps.tolist() == list(range(1, 13))


def test_an_observers_record(tmp_path):
    path = tmp_path / "run.jsonl"

    def watched(state=None):
        model = torch.nn.Linear(4, 1)
        sgd = torch.optim.SGD(model.parameters(), lr=1e-2)
        sink = JSONLSink(path)
        observer = Observer(model, sgd, log_every=1, ema_steps=1, sinks=[sink])
        if state is not None:
            observer.load_state_dict(state)
        for _ in range(5):
            sgd.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            sgd.step()
            observer.step()
        sink.close()
        return observer.state_dict()

    state = watched()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watched(state)
        assert SavedRun.read(path).history.steps.tolist() == list(range(1, 11))
    with pytest.warns(RuntimeWarning, match="holds a run already"):
        watched()
    with pytest.warns(RuntimeWarning, match="the 10 readings before it"):
        assert SavedRun.read(path).history.steps.tolist() == list(range(1, 6))


def test_a_file_that_does_not_say_is_judged_by_its_steps(tmp_path):
    """As earlier versions wrote it: a run that begins where the first did is another."""
    path = tmp_path / "run.jsonl"
    train(*made(JSONLSink(path)), 6)
    with pytest.warns(RuntimeWarning, match="holds a run already"):
        train(*made(JSONLSink(path)), 4)
    path.write_text(path.read_text().replace("begun_at", "something"))
    with pytest.warns(RuntimeWarning, match="the 6 readings before it"):
        assert SavedRun.read(path).history.steps.tolist() == [1, 2, 3, 4]
