"""Sinks fed by a training run: files that survive a crash, sinks that fail."""

from __future__ import annotations

import copy
import csv
import errno
import gzip
import json
import math
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from tests.support.sink_runs import GROUPS, make_optimizer, train
from thermoopt import CSVSink, JSONLSink, Reading, ThermoAdamW
from thermoopt.physics.quantities import QUANTITIES
from thermoopt.record import SavedRun

DIGITS = 6e-4
"""Half a unit of the fourth digit, of 1."""


def parse(path: Path) -> list[dict[str, Any] | None]:
    """Readings of a JSONL file, None for lines that are broken; a last line without its end is one, too."""
    out: list[dict[str, Any] | None] = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            held = json.loads(line)
        except ValueError:
            held = None
        if held is None or "values" in held:
            out.append(held)
    return out


def steps_in(path: Path) -> list[int]:
    """Steps of the lines that are whole."""
    return [line["step"] for line in parse(path) if line is not None]


def agree(line: dict[str, Any], reading: Reading) -> None:
    """A line holds a reading, by the reading's own attributes."""
    assert (line["step"], line["loss"]) == (reading.step, reading.loss)
    assert line["skipped"] == list(reading.skipped.values())
    for values, scope in zip(line["values"], (reading.total, *reading.groups), strict=True):
        for name, value in zip(QUANTITIES, values, strict=True):
            want = getattr(scope, name)
            if math.isfinite(want):
                assert value == pytest.approx(want, rel=DIGITS), name
            else:
                assert value is None, name


class Recorder:
    """A sink, or a logger, that fails while it is told to."""

    def __init__(self) -> None:
        self.got: list[Reading] = []
        self.offered: list[int] = []
        self.fails: BaseException | None = None

    def write(self, reading: Reading) -> None:
        self.offered.append(reading.step)
        if self.fails is not None:
            raise self.fails
        self.got.append(reading)


# -------------------------------------------------------------------- JSONL


@pytest.mark.parametrize("layers", [True, False])
def test_jsonl_holds_every_reading(tmp_path: Path, layers: bool) -> None:
    path = tmp_path / "new" / "folders" / "run.jsonl"
    optimizer = make_optimizer(JSONLSink(path, layers=layers))
    readings = train(optimizer, 4)
    optimizer.sinks.flush()
    lines = parse(path)
    assert len(lines) == 4
    for line, reading in zip(lines, readings, strict=True):
        agree(line, reading)
    head = json.loads(path.read_text().splitlines()[0])
    assert head["thermoopt"] == 2
    assert head["scopes"] == ["total", *GROUPS]
    assert head["quantities"] == list(QUANTITIES)
    assert head["skips"] == list(readings[0].skipped)
    assert "NaN" not in path.read_text()  # null, which every reader takes
    assert (path.parent / "run.layers.jsonl").exists() == layers


def test_readings_are_on_file_within_seconds_without_anyone_asking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thermoopt.sinks.beside.SECONDS", 0.1)
    path = tmp_path / "run.jsonl"
    optimizer = make_optimizer(JSONLSink(path))
    train(optimizer, 3)
    deadline = time.monotonic() + 20
    while steps_in(path) != [1, 2, 3] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert steps_in(path) == [1, 2, 3]


def test_everything_is_on_file_with_a_state_dict(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    optimizer = make_optimizer(JSONLSink(path))
    train(optimizer, 5)
    optimizer.state_dict()
    assert steps_in(path) == [1, 2, 3, 4, 5]
    assert optimizer.sinks.unsent == 0


@pytest.mark.filterwarnings("ignore:.*holds a run already:RuntimeWarning")
def test_jsonl_appends_on_reopen(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    readings = []
    for steps in (2, 3):
        optimizer = make_optimizer(JSONLSink(str(path)))
        readings += train(optimizer, steps)
        optimizer.sinks.flush()
    for line, reading in zip(parse(path), readings, strict=True):
        agree(line, reading)


@pytest.mark.filterwarnings("ignore:.*holds a run already:RuntimeWarning")
@pytest.mark.parametrize("torn", [b'{"step": 3, "tot', b"{", '{"step": "é'.encode()[:-1]], ids=str)
def test_a_torn_last_line_stays_one_broken_line(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "run.jsonl"
    for steps in (1, 2):
        optimizer = make_optimizer(JSONLSink(path))
        train(optimizer, steps)
        optimizer.sinks.flush()
        if steps == 1:
            with path.open("ab") as file:
                file.write(torn)
    lines = parse(path)
    assert lines.count(None) == 1
    assert steps_in(path) == [1, 1, 2]
    assert path.read_bytes().split(b"\n")[2] == torn


def test_a_resumed_run_repeats_steps_and_the_later_line_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    optimizer = make_optimizer(JSONLSink(path))
    train(optimizer, 2)
    state = copy.deepcopy(optimizer.state_dict())
    train(optimizer, 2, first=2)
    optimizer.load_state_dict(state)
    readings = train(optimizer, 2, first=7)
    optimizer.sinks.flush()
    assert steps_in(path) == [1, 2, 3, 4, 3, 4]
    for line, reading in zip(parse(path)[-2:], readings, strict=True):
        agree(line, reading)


KILLED = """
import sys, torch
from thermoopt import CSVSink, JSONLSink, ThermoAdamW
p = torch.nn.Parameter(torch.ones(50))
sinks = [JSONLSink(sys.argv[1]), CSVSink(sys.argv[2])]
optimizer = ThermoAdamW([p], measure_every=1, ema_steps=1, sinks=sinks)
while True:
    p.grad = torch.randn(50)
    optimizer.step()
"""


@pytest.mark.filterwarnings("ignore:.*holds a run already:RuntimeWarning")
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_sigkill_leaves_every_complete_line(tmp_path: Path) -> None:
    path, table = tmp_path / "run.jsonl", tmp_path / "run.csv"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path), str(table)])
    try:
        deadline = time.monotonic() + 60
        while not table.exists() or min(f.read_bytes().count(b"\n") for f in (path, table)) < 60:
            assert process.poll() is None, "the run ended by itself"
            assert time.monotonic() < deadline, "no lines within a minute"
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    killed = steps_in(path)
    assert None not in parse(path)
    assert killed == list(range(1, len(killed) + 1))
    assert len(killed) >= 50
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    complete = [int(row["step"]) for row in rows if row["scope"] == "total"]
    assert complete == list(range(1, len(complete) + 1))
    optimizer = make_optimizer(JSONLSink(path))
    train(optimizer, 2)
    optimizer.sinks.flush()
    assert steps_in(path) == [*killed, 1, 2]


def test_two_optimizers_that_share_a_file_are_told_and_both_are_in_it(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    one, two = make_optimizer(JSONLSink(path)), make_optimizer(JSONLSink(path))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for t in range(3):
            for optimizer in (one, two):
                train(optimizer, 1, t)
                optimizer.sinks.flush()
    assert len(caught) == 3
    assert sum("holds a run already" in str(warning.message) for warning in caught) == 1
    for warning in (w for w in caught if "holds a run already" not in str(w.message)):
        assert f"another process or sink writes to {path}: steps will occur twice in it" in str(
            warning.message
        )
    assert steps_in(path) == [1, 1, 2, 2, 3, 3]


def test_one_sink_of_two_optimizers_is_told_of(tmp_path: Path) -> None:
    sink = JSONLSink(tmp_path / "run.jsonl")
    one = make_optimizer(sink)
    train(one, 2)
    two = make_optimizer(sink)
    train(two, 2)  # one after another: a cell that is run again
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for t in range(3, 6):
            for optimizer in (one, two):
                train(optimizer, 1, t)
    assert len(told) == 1
    assert "JSONLSink receives readings of two optimizers alternately" in str(told[0].message)


# -------------------------------------------------------------------- CSV


def test_csv_holds_every_reading_and_one_header(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "run.csv"
    optimizer = make_optimizer(CSVSink(path))
    readings = train(optimizer, 3)
    optimizer.sinks.flush()
    optimizer.report_loss(2.5)
    readings += train(optimizer, 2, 3)
    optimizer.sinks.flush()
    text = path.read_text()
    assert text.count("step,scope") == 1
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "scope", "loss", *QUANTITIES]
    assert {row["loss"] for row in rows if int(row["step"]) <= 3} == {""}
    assert {row["loss"] for row in rows if int(row["step"]) > 3} == {"2.5"}
    expected = [
        (str(r.step), scope, quantity)
        for r in readings
        for scope, quantity in zip(("total", *GROUPS), (r.total, *r.groups), strict=True)
    ]
    assert len(rows) == len(expected)
    for row, (step, scope, quantity) in zip(rows, expected, strict=True):
        assert (row["step"], row["scope"]) == (step, scope)
        for name in QUANTITIES:
            value = getattr(quantity, name)
            if math.isfinite(value):
                assert float(row[name]) == pytest.approx(value, rel=DIGITS), name
            else:
                assert row[name] == "", name


def test_csv_quotes_group_names(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    p = Parameter(torch.ones(3))
    groups = [{"params": [p], "name": 'a,"b"'}]
    optimizer = ThermoAdamW(groups, measure_every=1, ema_steps=1, sinks=[CSVSink(path)])
    train(optimizer, 1)
    optimizer.sinks.flush()
    with path.open(newline="") as file:
        assert [row["scope"] for row in csv.DictReader(file)] == ["total", 'a,"b"']


@pytest.mark.parametrize("name", ["run.csv", "run.csv.gz"])
def test_a_resumed_csv_holds_each_step_once(tmp_path: Path, name: str) -> None:
    """Resumed by a new process, and by a checkpoint loaded in this one, before and after a flush."""
    path = tmp_path / name
    optimizer = make_optimizer(CSVSink(path))
    train(optimizer, 4)
    saved = copy.deepcopy(optimizer.state_dict())
    train(optimizer, 4, 4)
    optimizer.load_state_dict(saved)
    train(optimizer, 6, 40)  # 5 to 8 wait to be written, or are
    optimizer.sinks.flush()
    resumed = make_optimizer(CSVSink(path))
    resumed.load_state_dict(saved)
    want = [float(f"{r.total.sigma:.4g}") for r in train(resumed, 3, 80)]
    resumed.sinks.flush()
    del optimizer, resumed
    with (gzip.open if name.endswith(".gz") else open)(path, "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["step"]), row["scope"]) for row in rows] == [
        (step, scope) for step in range(1, 8) for scope in ("total", *GROUPS)
    ]
    assert [float(row["sigma"]) for row in rows if row["scope"] == "total"][4:] == want
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("last", ["3,total,0.1", "2,total,0.1", "25"])
def test_a_torn_csv_line_is_dropped(tmp_path: Path, last: str) -> None:
    path = tmp_path / "run.csv"
    optimizer = make_optimizer(CSVSink(path))
    train(optimizer, 3)
    optimizer.sinks.flush()
    whole = path.read_text()
    path.write_text("".join(whole.splitlines(True)[:-1]) + last)
    CSVSink(path)
    assert path.read_text() == "".join(whole.splitlines(True)[:-1])
    path.write_text(whole[:11])
    CSVSink(path)
    assert path.read_text() == whole.splitlines(True)[0]


def test_another_table_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("epoch,accuracy\n1,0.5")
    with pytest.raises(
        ValueError, match=r"must be a new file or one with the columns step, .*'epoch,accuracy'"
    ):
        CSVSink(path)
    assert path.read_text() == "epoch,accuracy\n1,0.5"


def test_two_that_share_a_table_are_told_and_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    one, two = make_optimizer(CSVSink(path)), make_optimizer(CSVSink(path))
    train(one, 2)
    one.sinks.flush()
    train(two, 2)
    with pytest.warns(
        RuntimeWarning, match="another process or sink writes to .*: steps will occur twice in it"
    ):
        two.sinks.flush()
    with path.open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file) if row["scope"] == "total"] == ["1", "2"] * 2


# -------------------------------------------------------------------- the queue


def test_every_sink_gets_every_reading_in_order(tmp_path: Path) -> None:
    one, two = Recorder(), Recorder()
    optimizer = make_optimizer(one, JSONLSink(tmp_path / "a.jsonl"), two)
    readings = train(optimizer, 4)
    assert one.got == two.got == readings
    optimizer.sinks.flush()
    assert steps_in(tmp_path / "a.jsonl") == [1, 2, 3, 4]


def test_sinks_get_what_the_history_gets() -> None:
    sink = Recorder()
    p = Parameter(torch.ones(3))
    optimizer = ThermoAdamW([p], measure_every=1, ema_steps=20, sinks=[sink])
    train(optimizer, 13)
    assert [r.step for r in sink.got] == optimizer.history.steps.tolist() == [1, 5, 9, 13]


# -------------------------------------------------------------------- sinks that fail


def test_a_failing_sink_does_not_stop_the_training() -> None:
    reference = make_optimizer()
    train(reference, 8)
    bad, good = Recorder(), Recorder()
    optimizer = make_optimizer(bad, good)
    readings = train(optimizer, 2)
    assert optimizer.sinks.unsent == 0
    bad.fails = ValueError("disk on fire")
    with pytest.warns(RuntimeWarning, match="Recorder raised ValueError.'disk on fire'.") as warned:
        readings += train(optimizer, 4, first=2)
    assert len(warned) == 1
    assert optimizer.sinks.unsent == 4
    assert optimizer.sinks.dropped == 0
    assert bad.got == readings[:2]
    assert good.got == readings  # others are not held up
    assert bad.offered == [1, 2, 3, 3, 3, 3]  # the oldest first, again with each new one
    bad.fails = None
    readings += train(optimizer, 1, first=6)
    assert bad.got == good.got == readings
    assert [r.step for r in bad.got] == [1, 2, 3, 4, 5, 6, 7]
    assert optimizer.sinks.unsent == 0
    bad.fails = RuntimeError("again")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no second warning
        train(optimizer, 1, first=7)
    assert optimizer.sinks.unsent == 1
    for ours, theirs in zip(optimizer.param_groups, reference.param_groups, strict=True):
        assert torch.equal(ours["params"][0], theirs["params"][0])


def test_each_failing_sink_warns_once() -> None:
    one, two = Recorder(), Recorder()
    one.fails, two.fails = ValueError("one"), ValueError("two")
    optimizer = make_optimizer(one, two)
    with pytest.warns(RuntimeWarning) as warned:
        train(optimizer, 3)
    assert len(warned) == 2
    assert "'one'" in str(warned[0].message)
    assert "'two'" in str(warned[1].message)
    assert optimizer.sinks.unsent == 6


def test_flush_offers_what_waits_without_a_step() -> None:
    sink = Recorder()
    optimizer = make_optimizer(sink)
    sink.fails = OSError("full")
    with pytest.warns(RuntimeWarning, match="full"):
        readings = train(optimizer, 3)
    sink.fails = None
    optimizer.sinks.flush()
    assert sink.got == readings
    assert optimizer.sinks.unsent == 0


def test_too_long_a_wait_drops_the_oldest_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thermoopt.sinks.queue.MAX_UNSENT", 3)
    bad, good = Recorder(), Recorder()
    bad.fails = ValueError("gone")
    optimizer = make_optimizer(bad, good)
    with pytest.warns(RuntimeWarning, match="gone") as warned:
        train(optimizer, 7)
    assert len(warned) == 1
    assert (optimizer.sinks.unsent, optimizer.sinks.dropped) == (3, 4)
    bad.fails = None
    train(optimizer, 1, first=7)
    assert [r.step for r in bad.got] == [5, 6, 7, 8]
    assert [r.step for r in good.got] == list(range(1, 9))
    assert (optimizer.sinks.unsent, optimizer.sinks.dropped) == (0, 4)


def test_an_interrupt_is_no_failure() -> None:
    sink = Recorder()
    optimizer = make_optimizer(sink)
    sink.fails = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        train(optimizer, 1)
    sink.fails = None
    train(optimizer, 1, first=1)
    assert [r.step for r in sink.got] == [1, 2]  # nothing is lost


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("sink", [JSONLSink, CSVSink])
def test_a_full_disk(sink: type) -> None:
    if sink is CSVSink:
        with pytest.raises(OSError, match="No space left"):
            CSVSink("/dev/full")  # the header is written at once
        return
    optimizer = make_optimizer(JSONLSink("/dev/full", layers=False))
    train(optimizer, 3)
    with pytest.warns(RuntimeWarning, match="No space left") as warned:
        optimizer.sinks.flush()
    train(optimizer, 1, first=3)
    optimizer.sinks.flush()
    assert len(warned) == 1
    assert optimizer.sinks.unsent == 4


class _SmallDisk:
    """The os module on a disk that takes so many bytes more, and then none."""

    def __init__(self) -> None:
        self.room: int | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def write(self, fd: int, data: bytes) -> int:
        if self.room is None:
            return os.write(fd, data)
        if self.room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = os.write(fd, data[: self.room])
        self.room -= taken
        return taken


@pytest.mark.parametrize("name", ["run.jsonl", "run.jsonl.gz"])
def test_what_was_written_by_half_is_taken_back_and_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    disk = _SmallDisk()
    monkeypatch.setattr("thermoopt.sinks.append_file.os", disk)
    path = tmp_path / name
    optimizer = make_optimizer(JSONLSink(path, layers=False))
    train(optimizer, 1)
    optimizer.sinks.flush()
    before = path.read_bytes()
    disk.room = 40
    train(optimizer, 1, first=1)
    with pytest.warns(RuntimeWarning, match="No space left"):
        optimizer.sinks.flush()
    assert path.read_bytes() == before
    assert optimizer.sinks.unsent == 1
    disk.room = None
    train(optimizer, 1, first=2)
    optimizer.sinks.flush()
    assert optimizer.sinks.unsent == 0
    assert SavedRun.read(path).history.steps.tolist() == [1, 2, 3]


# -------------------------------------------------------------------- bad input


@pytest.mark.parametrize("sink", [JSONLSink, CSVSink])
def test_a_path_that_cannot_be_written_is_named(tmp_path: Path, sink: type) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    folder = tmp_path / "folder"
    folder.mkdir()
    p = Parameter(torch.ones(3))
    for path in (file / "run.log", folder):
        with pytest.raises(OSError, match=f"{sink.__name__}: path must be a writable file, got '{path}'"):
            ThermoAdamW([p], sinks=[sink(path)])
    assert file.read_text() == "kept"
    assert sorted(tmp_path.iterdir()) == [file, folder]
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [3, "run.jsonl", None, object(), {"log": print}, JSONLSink, Recorder],
    ids=["int", "str", "None", "object", "dict", "class of ours", "class of a user"],
)
def test_a_wrong_sink_is_named_before_anything_moves(wrong: Any) -> None:
    p = Parameter(torch.ones(3))
    with pytest.raises(
        TypeError, match=r"must be objects with write\(reading\) or log\(dict, step\)"
    ) as error:
        ThermoAdamW([p], sinks=[Recorder(), wrong])
    assert f"got {wrong!r}" in str(error.value)
    assert torch.equal(p, torch.ones(3))


# -------------------------------------------------------------------- copies


def test_copies_have_no_sinks_and_loading_keeps_them(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    optimizer = make_optimizer(JSONLSink(path))
    train(optimizer, 2)
    twin = copy.deepcopy(optimizer)
    assert not twin.sinks
    train(twin, 3, first=2)
    optimizer.sinks.flush()
    assert len(parse(path)) == 2
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.sinks
    train(optimizer, 1, first=2)
    optimizer.sinks.flush()
    assert steps_in(path) == [1, 2, 3]


def test_without_sinks_nothing_waits() -> None:
    optimizer = make_optimizer()
    train(optimizer, 2)
    assert not optimizer.sinks
    assert (optimizer.sinks.unsent, optimizer.sinks.dropped) == (0, 0)
