"""Trials in a storage: taken by one, in order, none lost and none run twice."""

import contextlib
import os
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("optuna")
pytest.importorskip("mnist1d")
pytest.importorskip("sklearn")

import optuna
from optuna.trial import TrialState

from tests.support.sweeps import changed
from tests.support.sweeps import row as plain_row
from thermoopt.benchmarks.harness.room import DiskFull
from thermoopt.benchmarks.report.table import read_rows, read_table, rows_file
from thermoopt.benchmarks.report.tally import Tally
from thermoopt.benchmarks.sweeps import storage as storage_module
from thermoopt.benchmarks.sweeps import studies as module
from thermoopt.benchmarks.sweeps import worker as worker_module
from thermoopt.benchmarks.sweeps.design import design
from thermoopt.benchmarks.sweeps.protocol import Protocol
from thermoopt.benchmarks.sweeps.storage import StorageError, default_storage, masked, open_storage
from thermoopt.benchmarks.sweeps.studies import Item, Studies, Taken
from thermoopt.benchmarks.sweeps.worker import Worker

PROTOCOL = Protocol.of("t", changed(workloads={"linear": [0], "mlp": [0]}, budget=3, design=3, seeds=[0, 1]))


def made(tmp_path, protocol=PROTOCOL, rows=(), **options) -> Studies:
    url = default_storage(tmp_path)
    studies = Studies(open_storage(url, **options), protocol, url)
    studies.make(rows)
    return studies


@pytest.fixture(autouse=True)
def leave_no_connection(monkeypatch):
    """Close what the tests open, whichever thread did."""
    storages = []

    def open_and_keep(*arguments, **options):
        storages.append(open_storage_itself(*arguments, **options))
        return storages[-1]

    open_storage_itself = open_storage
    monkeypatch.setitem(globals(), "open_storage", open_and_keep)
    yield
    for storage in storages:
        storage.engine.dispose()


def row_of(spec, valid=1.0):
    tunables = list(module.METHODS[spec.method].tunables)
    given = {k: v for k, v in spec.__dict__.items() if k not in ("evaluations", "log_every")}
    return plain_row(valid=valid) | given | {"tunables": tunables, "peak_mb": 100.0, "seconds": 0.1}


def gone() -> int:
    """Id of a process that is no more."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def take_and_die(studies, item, monkeypatch) -> Taken:
    """Take a trial as a process that is gone afterwards."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "os", SimpleNamespace(getpid=gone, readlink=os.readlink))
        taken = studies.take(item)
    assert isinstance(taken, Taken)
    return taken


def states(studies) -> Counter:
    return Counter(t.state.name for order in studies.cells for t in studies.trials(order))


def test_every_method_gets_the_design_and_the_smallest_k_come_first(tmp_path):
    studies = made(tmp_path)
    plan = studies.plan()
    assert len(plan) == 2 * 2 * 2 * 3
    assert [i.k for i in plan] == sorted(i.k for i in plan)
    assert [i.order for i in plan] == [*range(8)] * 3
    for order, cell in studies.cells.items():
        for trial, point in zip(studies.trials(order), design(PROTOCOL, cell.seed), strict=True):
            wanted = point if cell.method == "adamw linear" else {"decay": point["decay"]}
            assert trial.params == pytest.approx(wanted, rel=1e-12)
    studies.make()  # once more changes nothing
    assert studies.plan() == plan


def test_a_stop_at_any_moment_leaves_equal_budgets(tmp_path):
    studies = made(tmp_path)
    done = Counter()
    for item in studies.plan():
        taken = studies.take(item)
        assert studies.finish(taken.trial_id, row_of(taken.spec))
        done[item.order] += 1
        counts = [done[order] for order in studies.cells]
        assert max(counts) - min(counts) <= 1
    assert states(studies) == {"COMPLETE": 24}
    assert studies.plan() == []


def test_four_at_a_time_take_every_trial_once(tmp_path):
    """SQLite would let two take one trial if a transaction began at its first write."""
    url = default_storage(tmp_path)
    plan = made(tmp_path).plan()
    barrier = threading.Barrier(4)
    taken: list[Item] = []

    def take():
        studies = Studies(open_storage(url), PROTOCOL, url)
        barrier.wait()
        for item in plan:
            if isinstance(studies.take(item), Taken):
                taken.append(item)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == plan


def test_two_that_make_the_studies_at_the_same_time_make_no_point_twice(tmp_path):
    url = default_storage(tmp_path)
    open_storage(url)
    barrier = threading.Barrier(2)
    runs = Counter()

    def make():
        studies = Studies(open_storage(url), PROTOCOL, url)
        barrier.wait()
        studies.make()
        barrier.wait()
        for item in studies.plan():
            if isinstance(taken := studies.take(item), Taken):
                runs[taken.item.order, taken.item.k] += 1
                studies.finish(taken.trial_id, row_of(taken.spec))

    threads = [threading.Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert runs == {(order, k): 1 for order in range(8) for k in range(3)}


def test_of_twins_the_second_does_not_run(tmp_path):
    studies = made(tmp_path)
    real = studies.trials(0)[1]
    twin = optuna.trial.create_trial(
        state=TrialState.WAITING,
        params=real.params,
        distributions=real.distributions,
        user_attrs=real.user_attrs,
    )
    studies.study(0).add_trial(twin)
    first, second = (Item(1, 0, n) for n in (1, 3))
    assert studies.take(second) is TrialState.FAIL
    taken = studies.take(first)
    studies.finish(taken.trial_id, row_of(taken.spec))
    assert [t.user_attrs["k"] for t in studies.trials(0)] == [0, 1, 2]
    studies.make()
    assert len(studies.trials(0)) == 3


def test_a_trial_whose_worker_died_is_put_back_once(tmp_path, monkeypatch):
    studies = made(tmp_path)
    item = studies.plan()[0]
    first = take_and_die(studies, item, monkeypatch)
    assert studies.plan()[0] == item  # still counts as running
    studies.make()
    again = studies.plan()[0]
    assert (again.k, again.order) == (0, 0)
    assert again.number == 3
    second = take_and_die(studies, again, monkeypatch)
    assert (second.spec.lr, second.spec.decay) == (first.spec.lr, first.spec.decay)
    assert (first.spec.retried, second.spec.retried) == (False, True)
    studies.make()
    assert not studies.open(item)
    tally = Tally.of(studies)
    assert (tally.total.failed, tally.total.waiting) == (1, 23)
    assert [(f.cell, f.k, f.why) for f in tally.failures] == [(studies.cells[0], 0, "its worker died")]
    studies.make(again=True)
    third = studies.take(studies.plan()[0])
    assert studies.finish(third.trial_id, row_of(third.spec))
    assert Tally.of(studies).total.failed == 0


def test_a_worker_that_is_a_zombie_is_dead(tmp_path, monkeypatch):
    studies = made(tmp_path)
    process = subprocess.Popen(["true"])
    with monkeypatch.context() as patch:
        patch.setattr(module, "os", SimpleNamespace(getpid=lambda: process.pid, readlink=os.readlink))
        studies.take(studies.plan()[0])
    stat = f"/proc/{process.pid}/stat"
    if not os.path.exists(stat):
        pytest.skip("no /proc")
    while ") Z" not in Path(stat).read_text():
        time.sleep(0.01)
    assert studies.lose_dead(0) == 1
    process.wait()


def test_a_trial_that_is_released_counts_no_attempt(tmp_path):
    studies = made(tmp_path)
    item = studies.plan()[0]
    for _ in range(3):
        taken = studies.take(item)
        assert not taken.spec.retried
        assert studies.take(item) is TrialState.RUNNING
        studies.release(taken.trial_id)
    assert len(studies.trials(0)) == 3


def test_a_silent_trial_of_another_machine_is_put_back(tmp_path, monkeypatch):
    studies = made(tmp_path, heartbeat=1, grace=1)
    item, other = studies.plan()[:2]
    monkeypatch.setattr(module, "machine", lambda: "elsewhere")
    dead = studies.take(item)
    monkeypatch.undo()
    assert studies.after(item) == item
    alive = studies.take(other)
    with worker_module.Heartbeat(studies.storage) as life:
        life.trial = alive.trial_id
        time.sleep(3.2)
        assert studies.after(other) == other
        left = studies.after(item)
    assert left == Item(0, 0, 3)
    assert not studies.finish(dead.trial_id, row_of(dead.spec))  # it comes late
    assert studies.take(left).spec.retried


def test_a_trial_that_was_finished_but_for_its_state_is_not_run_again(tmp_path, monkeypatch):
    studies = made(tmp_path)
    taken = take_and_die(studies, studies.plan()[0], monkeypatch)
    studies.storage.set_trial_user_attr(taken.trial_id, "row", row_of(taken.spec, 0.25))
    studies.make()
    assert studies.trials(0)[0].state is TrialState.COMPLETE
    assert studies.trials(0)[0].value == 0.25


def test_rows_of_the_file_stand_for_a_storage_that_is_lost(tmp_path, monkeypatch):
    studies = made(tmp_path)
    rows = []
    for item in studies.plan()[:10]:
        taken = studies.take(item)
        rows.append(row_of(taken.spec, valid=item.order + 0.5))
        studies.finish(taken.trial_id, rows[-1])
    foreign = [row | {"protocol": "other"} for row in rows]
    died = take_and_die(studies, studies.plan()[0], monkeypatch)
    rows.append(row_of(died.spec, valid=7.0))
    studies.make(rows)
    assert states(studies) == {"COMPLETE": 11, "WAITING": 13}
    (tmp_path / "fresh").mkdir()
    again = made(tmp_path / "fresh", rows=rows + foreign)
    assert states(again) == {"COMPLETE": 11, "WAITING": 13}
    key = lambda r: (r["workload"], r["method"], r["seed"], r["k"])  # noqa: E731
    assert sorted(read_table(default_storage(tmp_path / "fresh"), None), key=key) == sorted(rows, key=key)
    assert [i for i in again.plan()] == [i for i in studies.plan()]


def test_another_protocol_is_refused_and_another_tier_is_not(tmp_path):
    made(tmp_path)
    url = default_storage(tmp_path)
    other = Protocol.of("t", PROTOCOL.content | {"evaluations": 6})
    with pytest.raises(StorageError) as error:
        Studies(open_storage(url), other, url).make()
    for word in (url, other.hash[:12], PROTOCOL.hash[:12], "t/linear-500/adamw linear/0"):
        assert word in str(error.value)
    made(tmp_path, Protocol.of("u", other.content))
    assert len(read_table(url, None)) == 0
    assert len(optuna.get_all_study_names(open_storage(url))) == 16


def test_points_beyond_the_design_are_drawn_by_tpe_and_not_repeated_after_a_stop(tmp_path):
    protocol = Protocol.of(
        "t",
        changed(
            workloads={"linear": [0]}, methods=["adamw linear"], seeds=[0], design=2, budget=6, sampler="tpe"
        ),
    )
    points = []
    for _ in range(6):  # a new process every time, as far as the sampler can tell
        studies = made(tmp_path, protocol)
        taken = studies.take(studies.plan()[0])
        points.append((taken.spec.lr, taken.spec.decay))
        studies.finish(taken.trial_id, row_of(taken.spec, valid=taken.spec.lr))
    assert len({*points}) == 6
    for point, drawn in zip(points[:2], design(protocol, 0), strict=True):
        assert point == pytest.approx((drawn["lr"], drawn["decay"]))
    low, high = protocol.lr
    assert all(low * 0.999 <= lr <= high * 1.001 for lr, _ in points)
    assert [t.params["lr"] for t in studies.trials(0)] == [lr for lr, _ in points]


# ------------------------------------------------------------------ workers


def work(studies, tmp_path, run, stopped=lambda: False):
    told = []
    Worker(studies, studies.plan(), tmp_path, told.append, stopped, run).work()
    return Counter(event["event"] for event in told)


def test_a_worker_runs_everything_and_keeps_it_twice(tmp_path):
    studies = made(tmp_path)
    assert work(studies, tmp_path, lambda spec, *_: row_of(spec)) == {"start": 24, "done": 24}
    rows = read_rows(rows_file(tmp_path), pytest.fail)
    assert len(rows) == 24
    assert read_table(default_storage(tmp_path), None) == read_table(None, tmp_path)


def test_a_trial_that_raises_fails_and_is_told_with_its_error(tmp_path):
    studies = made(tmp_path)

    def run(spec, *_):
        if (spec.workload, spec.k) == ("mlp", 1):
            raise RuntimeError("shapes do not match")
        return row_of(spec)

    assert work(studies, tmp_path, run) == {"start": 24, "done": 20, "failed": 4}
    studies.make()  # an error of its own would come again
    tally = Tally.of(studies)
    assert (tally.total.done, tally.total.failed) == (20, 4)
    assert {f.why for f in tally.failures} == {"RuntimeError: shapes do not match"}
    assert tally.peak_mb == 100
    assert "!2" in "\n".join(tally.table("t").lines(100))


def test_a_worker_that_is_told_to_stop_puts_its_trial_back(tmp_path):
    studies = made(tmp_path)
    ran = []

    def run(spec, logs, stopped):
        if len(ran) == 5:
            raise worker_module.Stopped
        ran.append(spec)
        return row_of(spec)

    assert work(studies, tmp_path, run, lambda: len(ran) == 5 and states(studies)["RUNNING"] == 0) in (
        {"start": 5, "done": 5},
        {"start": 6, "done": 5, "released": 1},
    )
    assert states(studies) == {"COMPLETE": 5, "WAITING": 19}


@pytest.mark.parametrize("where", ["log", "rows"])
def test_a_full_disk_stops_a_worker_and_loses_nothing(tmp_path, monkeypatch, where):
    studies = made(tmp_path)
    full = OSError(28, "No space left on device")

    def run(spec, *_):
        if where == "log":
            raise full
        return row_of(spec)

    def append(path, row):
        raise DiskFull(28, f"no room for {path}")

    if where == "rows":
        monkeypatch.setattr(worker_module, "append_row", append)
    with pytest.raises(DiskFull, match="no room for"):
        work(studies, tmp_path, run)
    # with a log that cannot be written the trial is put back, with a row it is kept in the storage
    assert states(studies) == ({"WAITING": 24} if where == "log" else {"COMPLETE": 1, "WAITING": 23})
    monkeypatch.undo()
    work(studies, tmp_path, lambda spec, *_: row_of(spec))
    assert states(studies) == {"COMPLETE": 24}


def test_a_row_survives_a_storage_that_went_away(tmp_path, monkeypatch):
    studies = made(tmp_path)
    monkeypatch.setattr(worker_module, "PATIENCE", (0.01, 0.01))
    asked = []

    def finish(trial_id, row):
        asked.append(row)
        raise optuna.exceptions.StorageInternalError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(studies, "finish", finish)
        with pytest.raises(optuna.exceptions.StorageInternalError):
            work(studies, tmp_path, lambda spec, *_: row_of(spec))
    assert len(asked) == 3
    rows = read_rows(rows_file(tmp_path), pytest.fail)
    assert len(rows) == 1
    assert states(studies) == {"RUNNING": 1, "WAITING": 23}


def test_a_worker_waits_for_a_trial_elsewhere_and_runs_it_if_that_dies(tmp_path, monkeypatch):
    studies = made(tmp_path, heartbeat=1, grace=1)
    monkeypatch.setattr(worker_module, "POLL", 0.2)
    monkeypatch.setattr(module, "machine", lambda: "elsewhere")
    studies.take(studies.plan()[3])
    monkeypatch.setattr(module, "machine", lambda: "here")
    assert work(studies, tmp_path, lambda spec, *_: row_of(spec))["done"] == 24
    rows = read_rows(rows_file(tmp_path), pytest.fail)
    assert [(r["k"], r["method"]) for r in rows if r["retried"]] == [(0, "autotune")]


def test_a_storage_that_is_none_or_silent(tmp_path):
    with pytest.raises(StorageError, match=r"'runs/study.db' is not an SQLAlchemy URL.*sqlite:///"):
        open_storage("runs/study.db")
    with pytest.raises(StorageError, match=r"storage nosuch://h/d: its driver is missing"):
        open_storage("nosuch://h/d")
    with pytest.raises(StorageError, match="does not answer: unable to open database file"):
        open_storage(f"sqlite:///{tmp_path}/none/study.db")
    torn = tmp_path / "torn.db"
    torn.write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    with pytest.raises(StorageError, match=r"torn\.db does not answer"):
        open_storage(f"sqlite:///{torn}")
    assert masked("postgresql://me:secret@h/d") == "postgresql://me:***@h/d"


def test_an_error_of_a_database_on_a_full_disk_says_that_it_is_full(tmp_path, monkeypatch):
    storage = open_storage(default_storage(tmp_path))
    with storage.engine.connect() as connection:
        connection.exec_driver_sql("DROP TABLE trial_heartbeats")  # an operational error from now on
        connection.commit()
    with pytest.raises(optuna.exceptions.StorageInternalError):
        storage.record_heartbeat(1)
    monkeypatch.setattr(storage_module, "is_full", lambda path: path == tmp_path / "study.db")
    with pytest.raises(DiskFull, match=r"^no room for .*study\.db$"):
        storage.record_heartbeat(1)


def test_a_fresh_file_can_be_opened_while_another_process_writes_to_it(tmp_path):
    """SQLite answers "locked" at once, whatever its timeout, where the journal is to become another."""
    storage = open_storage(default_storage(tmp_path))
    other = sqlite3.connect(tmp_path / "study.db", isolation_level=None, check_same_thread=False)
    assert other.execute("PRAGMA journal_mode").fetchall() == [("delete",)]
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.5, other.execute, ["COMMIT"])
    timer.start()
    assert storage.get_all_studies() == []
    timer.join()
    other.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "study.db")) as now:
        assert now.execute("PRAGMA journal_mode").fetchall() == [("wal",)]


def test_a_server_that_takes_a_call_and_says_nothing(tmp_path):
    import socket

    pytest.importorskip("psycopg")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        start = time.monotonic()
        with pytest.raises(StorageError) as error:
            open_storage(f"postgresql+psycopg://me:secret@127.0.0.1:{port}/d", answer=2)
        assert time.monotonic() - start < 10
    assert "does not answer" in str(error.value)
    assert "secret" not in str(error.value)
