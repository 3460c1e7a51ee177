"""Records of long runs: what is kept of them, what a crash, a fork and a second process leave."""

from __future__ import annotations

import copy
import errno
import gzip
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
import warnings
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.sink_runs import make_optimizer, train
from thermoopt import JSONLSink, Reading
from thermoopt.account.reading import SKIP_CAUSES
from thermoopt.physics import QUANTITIES, Term
from thermoopt.record import SavedRun, reading_lines
from thermoopt.sinks import CSVSink, ParquetSink, SinkQueue
from thermoopt.sinks.append_file import AppendFile, close_member
from thermoopt.sinks.beside import CAPACITY, Pipe
from thermoopt.sinks.layer_rows import MAX_BYTES, MIN_ROWS, SUPERSEDED, Part, room

NAMES = ("a.weight", "b.weight", "c.bias")


def reading(step: int, *, loss: float | None = 2.0, gradient: float = 1.0, skipped: int = 0) -> Reading:
    """A reading whose terms are told by its step."""
    rng = np.random.default_rng(step)
    terms = rng.uniform(0.5, 1.5, (len(Term), len(NAMES)))
    terms[Term.GG] *= gradient
    terms[Term.NUMEL] = 100
    return Reading(
        step, NAMES, terms, np.array([0, 0, 1]), ("g", "h"), np.ones(3, dtype=bool),
        {**dict.fromkeys(SKIP_CAUSES, 0), "nonfinite": skipped}, loss=loss,
    )  # fmt: skip


def feed(sink: Any, steps: Any, **kind: Any) -> None:
    for step in steps:
        write(sink, reading(step, **kind))
    sink.flush()


def write(sink: Any, one: Reading) -> None:
    """Write without ever filling the queue."""
    if sink.unsent >= CAPACITY - 1:
        sink.flush()
    sink.write(one)


# -------------------------------------------------------------------- what is kept


@pytest.mark.parametrize("name", ["run.jsonl", "run.jsonl.gz", "run.parquet"])
def test_every_reading_and_a_bounded_number_of_rows_of_layers_are_kept(tmp_path: Path, name: str) -> None:
    sink = (ParquetSink if name.endswith("t") else JSONLSink)(tmp_path / name, max_rows=16)
    feed(sink, range(10, 3010, 10))
    run = SavedRun.read(tmp_path / name)
    history = run.history
    assert history.steps.tolist() == list(range(10, 3010, 10))
    *rows, newest = history.layer_steps.tolist()
    assert 8 <= len(rows) <= 16
    assert len(set(np.diff(rows))) == 1  # of the schedule, at equal distance
    assert rows[0] == 10
    assert newest == 3000
    assert run.losses.values.tolist() == [2.0] * 300
    for i, step in enumerate([*rows, newest]):
        want = reading(step)
        for quantity in ("sigma", "r", "param_norm", "R_ie"):
            np.testing.assert_allclose(
                history.layers(quantity)[i], want.layer_array(quantity), rtol=2e-4, err_msg=quantity
            )
    for i in (0, 77, 299):
        want = reading(10 * i + 10)
        for quantity in QUANTITIES:
            got = [history.total(quantity)[i], history.group(0, quantity)[i], history.group(1, quantity)[i]]
            truth = [getattr(scope, quantity) for scope in (want.total, *want.groups)]
            np.testing.assert_allclose(got, truth, rtol=6e-4, atol=1e-12, err_msg=quantity)


def test_what_happened_keeps_its_layers_and_is_noted(tmp_path: Path) -> None:
    sink = JSONLSink(tmp_path / "run.jsonl.gz", max_rows=8, max_events=8)
    skipped = 0
    for step in range(1, 601):
        if step == 300:
            sink.mark("restart", why="a new batch size")
        skipped += step == 400
        gradient = 50.0 if step == 200 else 1.0
        write(sink, reading(step, gradient=gradient, skipped=skipped, loss=9.0 if step == 501 else 2.0))
    sink.close()
    run = SavedRun.read(tmp_path / "run.jsonl.gz")
    assert run.history.events == [(200, "spike"), (300, "restart"), (400, "skip"), (501, "spike")]
    assert [(n["note"], n["step"]) for n in run.notes] == [(why, step) for step, why in run.history.events]
    assert run.notes[0]["of"] == "gradient"
    assert run.notes[1]["why"] == "a new batch size"
    assert run.notes[2]["nonfinite"] == 1
    assert run.notes[3]["of"] == "loss"
    both = run.history.with_events()
    assert {200, 300, 400, 501} <= set(both.layer_steps.tolist())
    np.testing.assert_allclose(
        both.layers("grad_norm")[both.layer_steps.tolist().index(200)],
        reading(200, gradient=50.0).layer_array("grad_norm"),
        rtol=1e-4,
    )


def test_events_have_a_bound_of_their_own(tmp_path: Path) -> None:
    sink = JSONLSink(tmp_path / "run.jsonl", max_rows=8, max_events=8)
    for step in range(1, 201):
        write(sink, reading(step, skipped=step))
    sink.close()
    lines = (tmp_path / "run.layers.jsonl").read_text().splitlines()
    whys = Counter(json.loads(line)["why"] for line in lines if "packed" in line)
    assert whys.pop("last") <= SUPERSEDED  # one each time that the writer caught up
    assert set(whys) == {"", "skip"}
    assert max(whys.values()) <= 8
    run = SavedRun.read(tmp_path / "run.jsonl")
    assert len(run.history.events) >= 4
    assert len(run.history.layer_steps) >= 5


@pytest.mark.parametrize("limit", [2, 3, 8, 255])
def test_a_part_is_never_full_and_its_rows_lie_at_equal_distance(limit: int) -> None:
    part, taken = Part(), []
    for step in range(1, 3001):
        if part.take(step, limit):
            taken.append(step)
        assert len(part.steps) < max(limit, 2)
        assert len(set(np.diff(part.steps))) <= 1
        assert step - part.steps[-1] <= 2 * max(part.gap, 1)
    assert len(taken) < limit * 14  # rows ever written: half a part for each doubling


def test_many_layers_have_fewer_rows() -> None:
    assert room(256, 148) == 256
    assert room(256, 3000) == MAX_BYTES // (128 * 3000)
    assert room(256, 10**6) == MIN_ROWS
    assert room(8, 10**6) == 8


def test_values_have_the_digits_they_deserve() -> None:
    terms = np.full((len(Term), 2), 1 / 3)
    terms[Term.NUMEL] = 123456789
    text = reading_lines([7], [2 / 3], [[0, 1]], [terms])
    held = json.loads(text)
    values = dict(zip(QUANTITIES, held["values"][1], strict=True))
    assert (held["step"], held["loss"], held["skipped"]) == (7, 0.6666667, [0, 1])
    assert values["sigma"] == 0.3333
    assert values["param_norm"] == 0.5773503
    assert values["numel"] == 123456789
    terms[Term.SIGMA] = [np.inf, np.nan]
    held = json.loads(reading_lines([7], [None], [[0, 0]], [terms]))
    assert (held["loss"], held["values"][1][0], held["values"][2][0]) == (None, None, None)


# -------------------------------------------------------------------- crashes


@pytest.mark.parametrize("cut", [1, 2, 5, 9, 40])
def test_a_gzip_record_that_was_cut_off_is_read_mended_and_gone_on_with(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "run.jsonl.gz"
    file = AppendFile(path, "test")
    lines = [reading_text(step) for step in range(1, 7)]
    for text in lines:
        file.append(text)
    whole = path.read_bytes()
    assert zlib.decompressobj(31).decompress(whole).decode() == "".join(lines)  # open, and all there
    path.write_bytes(whole[:-cut])
    AppendFile(path, "test").append("after\n")
    kept = 3 if cut == 40 else 5  # lines whose last byte was there
    assert unzipped(path) == "".join(lines[:kept]) + "after\n"


def reading_text(step: int) -> str:
    return f"line {step} of some length, {step**9}\n"


def unzipped(path: Path) -> str:
    out, data = b"", path.read_bytes()
    while data:
        member = zlib.decompressobj(31)
        out += member.decompress(data)
        data = member.unused_data
    return out.decode()


def test_a_settled_record_is_what_gzip_takes(tmp_path: Path) -> None:
    sink = JSONLSink(tmp_path / "run.jsonl.gz")
    feed(sink, range(1, 100))
    feed(sink, range(100, 200))
    for name in ("run.jsonl.gz", "run.layers.jsonl.gz"):
        with gzip.open(tmp_path / name, "rt") as file:
            assert all(json.loads(line) for line in file)


def test_nothing_holds_of_what_is_no_gzip() -> None:
    assert close_member(b"nothing of the kind") == (0, b"")


def test_damage_in_the_middle_costs_its_member_alone(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl.gz"
    sink = JSONLSink(path, layers=False)
    sizes = []
    for start in (1, 41, 81):
        feed(sink, range(start, start + 40))
        sizes.append(path.stat().st_size)
    data = bytearray(path.read_bytes())
    at = sizes[0] + 300
    data[at : at + 40] = b"\xff" * 40
    path.write_bytes(data)
    with pytest.warns(RuntimeWarning, match=r"torn: skipped"):
        steps = SavedRun.read(path).history.steps.tolist()
    assert steps[:40] == list(range(1, 41))
    assert steps[-40:] == list(range(81, 121))
    assert len(steps) < 120


def test_a_resumed_record_forgets_rows_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl.gz"
    first = JSONLSink(path, max_rows=16)
    feed(first, range(1, 301))
    first.close()
    second = JSONLSink(path, max_rows=16)
    feed(second, range(101, 401))
    history = SavedRun.read(path).history
    assert history.steps.tolist() == list(range(1, 401))
    *rows, newest = history.layer_steps.tolist()
    assert newest == 400
    assert rows == sorted(set(rows))
    assert {r for r in rows if r <= 100}
    assert {r for r in rows if r > 100}


def test_a_disk_that_fills_while_rows_are_halved_loses_no_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    sink = JSONLSink(tmp_path / "run.jsonl", max_rows=8)
    feed(sink, range(1, 7))
    with monkeypatch.context() as patched:
        patched.setattr("thermoopt.sinks.layer_rows.os.fsync", full)
        with pytest.warns(RuntimeWarning, match="rows of layers could not be written .*No space left"):
            feed(sink, range(7, 20))
    feed(sink, range(20, 60))
    history = SavedRun.read(tmp_path / "run.jsonl").history
    assert history.steps.tolist() == list(range(1, 60))
    assert len(history.layer_steps) <= 17
    assert not list(tmp_path.glob("*.new"))


# -------------------------------------------------------------------- processes


def _child(sink: Any, answer: Any) -> None:
    sink.flush()  # has nothing of its own
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        feed(sink, range(15, 25))
    answer.put((sink.dropped, sink.unsent, [str(w.message) for w in caught]))
    sink.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("name", ["run.jsonl.gz", "run.jsonl", "run.parquet", "run.csv"])
@pytest.mark.parametrize("begun", [True, False])
def test_a_forked_worker_writes_nothing_twice(tmp_path: Path, name: str, begun: bool) -> None:
    """Of a file that its parent has begun a child writes nothing, whatever it does with the sink."""
    path = tmp_path / name
    sink = {"t": ParquetSink, "v": CSVSink}.get(name[-1], JSONLSink)(path)
    for step in range(1, 21) if begun else ():
        sink.write(reading(step))
    fork = multiprocessing.get_context("fork")
    answer = fork.SimpleQueue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads, from Python 3.12 on
        worker = fork.Process(target=_child, args=(sink, answer))
        worker.start()
    dropped, unsent, said = answer.get()
    worker.join()
    assert worker.exitcode == 0
    assert unsent == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sink.close()
    assert dropped == (10 if begun else 0)
    assert len(said) == begun
    assert all(f"belongs to process {os.getpid()}, from which this one was forked" in what for what in said)
    want = list(range(1, 21) if begun else range(15, 25))
    if name == "run.csv":
        steps = [int(line.split(",")[0]) for line in path.read_text().splitlines()[1:]]
        assert steps == [step for step in want for _ in range(3)]
        return
    run = SavedRun.read(path)
    assert run.history.steps.tolist() == want
    assert run.history.layer_steps.tolist() == want
    if name == "run.jsonl.gz":
        assert unzipped(path).count('"values":') == len(want)


@pytest.mark.parametrize("name", ["run.jsonl.gz", "run.jsonl", "run.parquet", "run.csv", "run.csv.gz"])
def test_a_pickled_sink_touches_nothing_until_it_is_used(tmp_path: Path, name: str) -> None:
    """A spawned worker gets it with whatever it is part of, while the original goes on."""
    path = tmp_path / name
    kind = {"t": ParquetSink, "v": CSVSink}.get(name.removesuffix(".gz")[-1], JSONLSink)
    sink = kind(path, **({} if kind is CSVSink else {"max_rows": 8}))
    feed(sink, range(1, 4))
    sink.write(reading(4))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    twins = [pickle.loads(pickle.dumps(sink)), copy.deepcopy(sink)]
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        feed(sink, range(5, 9))
        sink.close()
    assert [twin.unsent for twin in twins] == [0, 0]
    feed(twins[0], range(9, 12))
    twins[0].close()
    del twins[1]
    if kind is CSVSink:
        text = unzipped(path) if name.endswith(".gz") else path.read_text()
        assert [int(line.split(",")[0]) for line in text.splitlines()[1::3]] == list(range(1, 12))
    else:
        history = SavedRun.read(path).history
        assert history.steps.tolist() == list(range(1, 12))
        assert history.layer_steps[-1] == 11


@pytest.mark.parametrize("name", ["run.jsonl", "run.jsonl.gz"])
def test_two_processes_in_one_record_are_named_and_one_is_shown_whole(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    one, two = JSONLSink(path, layers=False), JSONLSink(path, layers=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for start in range(1, 100, 10):
            feed(one, range(start, start + 10), loss=1.0)
            feed(two, range(start, start + 5), loss=5.0)
    with pytest.warns(RuntimeWarning, match="steps occur twice: two processes wrote at once"):
        run = SavedRun.read(path)
    assert run.history.steps.tolist() == list(range(1, 101))
    assert set(run.losses.values) == {1.0}


@pytest.mark.slow
def test_everything_is_on_file_at_exit(tmp_path: Path) -> None:
    code = (
        "import sys; from tests.sinks.test_record_sinks import *\n"
        "sink = JSONLSink(sys.argv[1], max_rows=8)\n"
        "for step in range(1, 41): write(sink, reading(step))"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run.jsonl")], check=True, cwd=root)
    history = SavedRun.read(tmp_path / "run.jsonl").history
    assert history.steps.tolist() == list(range(1, 41))
    assert history.layer_steps[-1] == 40


def test_a_sink_that_is_gone_has_written(tmp_path: Path) -> None:
    sink = JSONLSink(tmp_path / "run.jsonl")
    sink.write(reading(1))
    del sink
    assert SavedRun.read(tmp_path / "run.jsonl").history.steps.tolist() == [1]
    assert not [t for t in threading.enumerate() if "run.jsonl" in t.name and t.is_alive()]


# -------------------------------------------------------------------- the queue


class Slow:
    """Writes blocks as slowly as it is told to."""

    def __init__(self) -> None:
        self.news: list[str] = []
        self.gate = threading.Event()
        self.got: list[int] = []

    def write(self, items: list[int]) -> None:
        self.gate.wait(20)
        self.got += items

    def settle(self) -> None: ...

    def end(self) -> None: ...

    def restart(self) -> None: ...


def test_a_full_queue_waits_and_says_so() -> None:
    writer = Slow()
    pipe = Pipe(writer, "Slow")
    for i in range(CAPACITY):
        pipe.put(i)
    threading.Timer(0.2, writer.gate.set).start()
    with pytest.warns(RuntimeWarning, match="writes more slowly than readings come: training has waited"):
        pipe.put(CAPACITY)
    assert pipe.waited > 0.1
    pipe.flush()
    assert writer.got == list(range(CAPACITY + 1))
    pipe.close()


def test_what_is_given_up_is_counted_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thermoopt.sinks.beside.MAX_UNSENT", 70)
    writer = Slow()
    writer.write = lambda items: (_ for _ in ()).throw(OSError("gone"))  # type: ignore[method-assign]
    pipe = Pipe(writer, "Gone")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for i in range(40):
            pipe.put(i)
        pipe.flush()
        for i in range(40, 80):
            pipe.put(i)
    assert [str(w.message)[:16] for w in caught] == ["sink Gone raised", "sink Gone has fa"]
    assert (pipe.unsent, pipe.dropped) == (70, 10)
    del writer.write
    writer.gate.set()
    pipe.flush()
    assert writer.got == list(range(10, 80))
    pipe.close()


def test_actions_of_a_controller_and_marks_reach_the_record(tmp_path: Path) -> None:
    from thermoopt.controllers import Thermostat

    path = tmp_path / "run.jsonl"
    optimizer = make_optimizer(JSONLSink(path), controller=Thermostat("angular", total_steps=100))
    optimizer.sinks.mark("restart")
    train(optimizer, 40)
    optimizer.sinks.flush()
    notes = SavedRun.read(path).notes
    assert notes[0]["note"] == "restart"
    logged = [action.step for action in optimizer.controller.log]
    acted = [n["step"] for n in notes if n["note"] == "action"]
    assert acted == logged[: len(acted)]
    assert len(acted) >= len(logged) - 1
    queue = SinkQueue([])
    queue.mark("nobody listens")
    for wrong in ("", "last"):
        with pytest.raises(ValueError, match="kind must be a word other than 'last'"):
            optimizer.sinks.mark(wrong)


# -------------------------------------------------------------------- Parquet


def test_row_groups_close_and_pandas_reads_them(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    path = tmp_path / "run.parquet"
    sink = ParquetSink(path, every=32, max_rows=8)
    feed(sink, range(1, 101))
    frame = pandas.read_parquet(path)
    closed = frame.step.max()
    assert closed >= 64
    assert SavedRun.read(path).history.steps.tolist() == list(range(1, 101))
    sink.close()
    frame = pandas.read_parquet(path)
    assert list(frame.columns) == ["step", "scope", "loss", *QUANTITIES]
    total = frame[frame.scope == "total"]
    assert total.step.tolist() == list(range(1, 101))
    np.testing.assert_allclose(total.sigma, [reading(s).total.sigma for s in range(1, 101)], rtol=2e-4)
    layers = pandas.read_parquet(tmp_path / "run.layers.parquet")
    assert set(layers.layer) == set(NAMES)
    assert layers.step.max() == 100
    assert not list(tmp_path.glob("*.new"))


def test_a_killed_parquet_record_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "run.parquet"
    first = ParquetSink(path, every=32, max_rows=8)
    feed(first, range(1, 81))
    first._finish.detach()  # as if it had been killed
    feed(ParquetSink(path, every=32, max_rows=8), range(61, 101))
    run = SavedRun.read(path)
    assert run.history.steps.tolist() == list(range(1, 101))


def test_a_disk_that_fills_while_a_row_group_closes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.parquet"
    sink = ParquetSink(path, every=32, max_rows=8)
    feed(sink, range(1, 41))
    before = path.read_bytes()

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("thermoopt.sinks.parquet.os.fsync", full)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            feed(sink, range(41, 81))
    assert any("no row group could be closed ([Errno 28] No space" in str(w.message) for w in caught)
    assert path.read_bytes() == before
    assert SavedRun.read(path).history.steps.tolist() == list(range(1, 81))
    sink.close()
    assert SavedRun.read(path).history.steps.tolist() == list(range(1, 81))


def test_a_disk_that_fills_when_the_last_row_group_closes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "run.parquet"
    sink = ParquetSink(path, max_rows=8)
    feed(sink, range(1, 41))
    with monkeypatch.context() as patched:
        patched.setattr("thermoopt.sinks.parquet.os.fsync", full)
        with pytest.warns(RuntimeWarning, match=r"last row group .* \(\[Errno 28\] .* run.journal.jsonl.gz"):
            sink.close()
    assert not path.exists()
    run = SavedRun.read(path)
    assert run.history.steps.tolist() == list(range(1, 41))
    assert len(run.history.layer_steps) > 2
    ParquetSink(path).close()
    assert path.exists()
    assert SavedRun.read(path).history.steps.tolist() == list(range(1, 41))


def test_all_records_of_one_name_lie_side_by_side(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("run.jsonl.gz", "run.parquet", "run.jsonl", "run.csv")]
    sinks = [JSONLSink(paths[0]), ParquetSink(paths[1]), JSONLSink(paths[2]), CSVSink(paths[3])]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for sink in sinks:
            feed(sink, range(1, 6))
            sink.close()
        for path in paths[:3]:
            assert SavedRun.read(path).history.layer_steps.tolist() == [1, 2, 3, 4, 5]
    assert len(list(tmp_path.iterdir())) == 2 + 4 + 2 + 1


def test_what_stands_in_the_journal_of_a_damaged_parquet_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "run.parquet"
    sink = ParquetSink(path, every=32)
    for step in range(1, 41):
        feed(sink, [step])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.warns(
        RuntimeWarning, match=r"incomplete, or not a Parquet file \(.*: only the readings in run.journal"
    ):
        run = SavedRun.read(path)
    assert run.history.steps.tolist() == run.history.layer_steps.tolist() == list(range(33, 41))
    sink._finish.detach()


def test_damaged_and_foreign_parquet_is_named(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = tmp_path / "run.parquet"
    sink = ParquetSink(path, every=32, layers=False)
    for step in range(1, 301):
        write(sink, reading(step))
    sink.close()
    groups = pq.ParquetFile(path).metadata
    assert groups.num_row_groups > 1
    data = bytearray(path.read_bytes())
    at = groups.row_group(1).column(3).data_page_offset
    data[at : at + 60] = b"\xff" * 60
    path.write_bytes(data)
    with pytest.warns(RuntimeWarning, match=r"row group 2 of \d+ is damaged"):
        run = SavedRun.read(path)
    assert 0 < len(run.history) < 300
    path.write_bytes(data[:-100])
    with pytest.raises(ValueError, match=r"incomplete, or not a Parquet file \([^\n]*\)$"):
        SavedRun.read(path)
    for name in ("run.parquet", "run.jsonl"):
        sink = (ParquetSink if name.endswith("t") else JSONLSink)(tmp_path / "sub" / name)
        feed(sink, range(1, 3))
        sink.close()
        with pytest.raises(
            ValueError, match="holds the layers of a record; its readings are in the file beside it"
        ):
            SavedRun.read(tmp_path / "sub" / name.replace("run", "run.layers"))
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"a": [1]}), other)
    with pytest.raises(ValueError, match="not one of readings"):
        SavedRun.read(other)
    with pytest.raises(ValueError, match=r"must be a new file or a record, got .* which has other columns"):
        ParquetSink(other)


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install thermoopt\[record\]"):
        ParquetSink(tmp_path / "run.parquet")


# -------------------------------------------------------------------- bad input


@pytest.mark.parametrize("kind", [JSONLSink, ParquetSink])
def test_wrong_limits_are_named(tmp_path: Path, kind: type) -> None:
    with pytest.raises(ValueError, match="max_rows must be an integer >= 2, got 1"):
        kind(tmp_path / "a", max_rows=1)
    with pytest.raises(TypeError, match=r"max_events must be an integer >= 2, got 2\.5"):
        kind(tmp_path / "a", max_events=2.5)
    assert not list(tmp_path.iterdir())


def test_a_record_of_another_version_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text('{"thermoopt": 3, "session": "a"}\n')
    with pytest.raises(ValueError, match="line 1: a record of version 3; this thermoopt reads 1 and 2"):
        SavedRun.read(path)


def test_since_and_layers_leave_out_the_rest(tmp_path: Path) -> None:
    sink = JSONLSink(tmp_path / "run.jsonl", max_rows=64)
    feed(sink, range(1, 51))
    run = SavedRun.read(tmp_path / "run.jsonl", since=20, layers="*.weight, nothing")
    assert run.history.steps.tolist() == list(range(20, 51))
    assert run.history.layer_names == ["a.weight", "b.weight"]
    assert run.history.layers("r").shape == (31, 2)
    assert set(run.start_norms) == set(NAMES)  # those of the start, wherever one begins to look
    np.testing.assert_allclose(run.start_norms["a.weight"], reading(1).terms[Term.TT, 0], rtol=2e-5)
    with pytest.raises(ValueError, match="no reading since step 51; the newest is of step 50"):
        SavedRun.read(tmp_path / "run.jsonl", since=51)
    with pytest.raises(ValueError, match=r"no layer matches 'x\*'; it has 3: a.weight, b.weight, c.bias$"):
        SavedRun.read(tmp_path / "run.jsonl", layers="x*")


def test_a_record_is_read_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl.gz"
    sink = JSONLSink(path, layers=False)
    for step in range(1, 200):
        write(sink, reading(step))
    deadline = time.monotonic() + 20
    while len(SavedRun.read(path).history) < 160 and time.monotonic() < deadline:
        time.sleep(0.05)
    got = SavedRun.read(path).history.steps.tolist()
    assert got == list(range(1, len(got) + 1))
    assert len(got) >= 160
