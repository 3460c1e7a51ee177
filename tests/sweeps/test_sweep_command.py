"""``thermoopt bench``: what it refuses, and sweeps of real workers that are stopped in every way."""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("optuna")
pytest.importorskip("mnist1d")
pytest.importorskip("sklearn")

from tests.support.bench_command import start, toml
from tests.support.sweeps import changed
from thermoopt import cli
from thermoopt.benchmarks.harness.environment import environment, read_environment, record_environment
from thermoopt.benchmarks.report.table import read_rows, rows_file
from thermoopt.benchmarks.report.tally import Count, Tally, duration
from thermoopt.benchmarks.sweeps import actions
from thermoopt.benchmarks.sweeps.progress import Display
from thermoopt.benchmarks.sweeps.protocol import Cell, Protocol
from thermoopt.benchmarks.sweeps.storage import default_storage, open_storage
from thermoopt.benchmarks.sweeps.studies import Studies
from thermoopt.benchmarks.sweeps.sweep import Sweep

FEW = {"workloads": {"linear": [0]}, "seeds": [0, 1], "budget": 2, "design": 2}
PAIR = changed(**FEW, methods=["adamw linear", "adamw cosine"])


def bench(*arguments) -> int:
    return cli.main(["bench", *map(str, arguments)])


def refused(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as stop:
        bench(*arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize("workers", ["0", "-1", "two", "1.5"])
def test_bad_workers(capsys, tmp_path, workers):
    said = refused(capsys, "run", "--tier", "smoke", "--out", tmp_path / "o", f"--workers={workers}")
    assert f"--workers: {workers!r}: must be a whole number of at least 1" in said
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--tier", "smokey"], ["no tier 'smokey'", "'smoke'"]),
        (["--tier", "smoke", "--workloads", "linaer"], ["no workload 'linaer'", "'linear'", "tier 'smoke'"]),
        (["--tier", "smoke", "--methods", "adam linear"], ["no method 'adam linear'", "'adamw linear'"]),
        (["--tier", "smoke", "--protocol", "/none.toml"], ["/none.toml cannot be read"]),
        (["--tier", "smoke", "--storage", "study.db"], ["'study.db' is not an SQLAlchemy URL"]),
        (["--tier", "smoke", "--storage", "sqlite:////none/study.db"], ["/none/study.db does not answer"]),
    ],
)
def test_what_cannot_be_run_leaves_nothing_behind(capsys, tmp_path, more, words):
    said = refused(capsys, "run", "--out", tmp_path / "o", *more)
    for word in words:
        assert word in said
    assert "Traceback" not in said
    assert not (tmp_path / "o").exists()


def test_missing_packages_are_named_before_anything_starts(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(actions.importlib.util, "find_spec", lambda name: None if name == "prodigyopt" else 1)
    said = refused(capsys, "run", "--tier", "smoke", "--out", tmp_path / "o")
    assert "method 'prodigy' needs prodigyopt: not installed. pip install prodigyopt" in said
    assert not (tmp_path / "o").exists()


def test_folders_that_hold_a_sweep_or_none(capsys, tmp_path):
    out = tmp_path / "o"
    for action in ("resume", "status", "report"):
        assert "holds no sweep; `thermoopt bench run` starts one" in refused(capsys, action, "--out", out)
    folder = actions.Folder.make(out, Protocol.of("t", PAIR), None)
    assert actions.Folder.open(out) == folder
    said = refused(capsys, "run", "--tier", "smoke", "--out", out)
    assert "holds a sweep already (sweep.json); resume with: thermoopt bench resume" in said
    assert "study.db is missing; `resume` makes it again" in refused(capsys, "status", "--out", out)
    assert "no finished trials yet" in refused(capsys, "report", "--out", out)
    kept = json.loads((out / "sweep.json").read_text())
    kept["content"]["budget"] = kept["content"]["design"] = 3
    (out / "sweep.json").write_text(json.dumps(kept))
    said = refused(capsys, "resume", "--out", out)
    assert folder.protocol.hash[:12] in said
    assert Protocol.of("t", kept["content"]).hash[:12] in said
    kept["content"]["methods"] = ["gone"]
    (out / "sweep.json").write_text(json.dumps(kept))
    assert "no method 'gone'" in refused(capsys, "resume", "--out", out)
    (out / "sweep.json").write_text("{")
    assert "sweep.json cannot be read" in refused(capsys, "resume", "--out", out)
    (tmp_path / "file").write_text("")
    said = refused(capsys, "run", "--tier", "smoke", "--out", tmp_path / "file" / "o")
    assert "cannot be made and written: Not a directory" in said


def test_a_password_is_not_kept(tmp_path):
    url = "postgresql+psycopg://me:secret@host/db"
    actions.Folder.make(tmp_path, Protocol.of("t", PAIR), url)
    assert "secret" not in (tmp_path / "sweep.json").read_text()
    with pytest.raises(actions.FolderError, match="keeps no password; give --storage"):
        actions.Folder.open(tmp_path)
    assert actions.Folder.open(tmp_path, url).storage == url


def test_a_storage_of_another_protocol_is_refused(capsys, tmp_path):
    url = default_storage(tmp_path)
    other = Protocol.of("t", PAIR | {"evaluations": 3})
    Studies(open_storage(url), other, url).make()
    arguments = ["--protocol", toml(tmp_path, PAIR), "--tier", "t", "--out", tmp_path / "o", "--storage", url]
    assert f"of protocol {other.hash[:12]}" in refused(capsys, "run", *arguments)
    assert not (tmp_path / "o").exists()


# ------------------------------------------------------------------ what is shown


def test_list_shows_everything(capsys):
    assert bench("list") == 0
    out = capsys.readouterr().out
    for word in (
        *actions.WORKLOADS,
        *actions.METHODS,
        "smoke",
        "quick",
        "full",
        "needs prodigyopt",
        "lr, decay",
    ):
        assert f"  {word}" in out or word in out
    assert Protocol.load("smoke").hash[:12] in out


def test_the_tally_estimates_from_like_trials():
    tally = Tally()
    slow, fast, new = (Cell(w, 500, "autotune", 0) for w in ("gpt", "mlp", "cnn"))
    tally.counts = {slow: Count(1, 0, 3), fast: Count(2, 2, 1), new: Count(0, 0, 2)}
    assert tally.seconds_left(2) is None
    tally.took(slow, 10)
    tally.took(fast, 1)
    tally.took(fast, 3)
    assert tally.seconds_left(2) == pytest.approx((3 * 10 + 2 * 2 + 2 * 6) / 2)
    assert tally.total == Count(3, 2, 6)
    text = "\n".join(tally.table("title").lines(80))
    assert "2+2/5" in text
    assert [duration(s) for s in (5, 65, 3700)] == ["5 s", "1 min 05 s", "1 h 01 min"]


EVENT = {"workload": "mlp", "steps": 500, "method": "autotune", "seed": 0, "k": 1, "lr": None, "decay": 0.01}


def test_the_display_counts_what_workers_tell(capsys):
    cell = Cell("mlp", 500, "autotune", 0)
    display = Display(Tally(counts={cell: Count(waiting=5)}), 2, live=False)
    with display:
        for event in ("start", "start", "start", "start"):
            display.take(EVENT | {"event": event})
        display.take(
            EVENT | {"event": "done", "valid": 0.5, "diverged": False, "seconds": 2.0, "peak_mb": 9.0}
        )
        display.take(EVENT | {"event": "failed", "why": "KeyError: 'x'"})
        display.take(EVENT | {"event": "lost", "why": "killed by SIGKILL", "again": True})
        display.take(EVENT | {"event": "released"})
    assert display.tally.counts[cell] == Count(done=1, running=0, waiting=3, failed=1)
    done, failed, lost = capsys.readouterr().out.splitlines()
    assert done.startswith("1/5  mlp 500  autotune  seed 0  k 1  decay 1.00e-02  0.5000  2.0 s")
    assert failed.endswith("failed: KeyError: 'x'")
    assert lost.endswith("its worker died: killed by SIGKILL")


def test_the_display_draws_on_a_terminal(capsys):
    pytest.importorskip("rich")
    display = Display(Tally(counts={Cell("mlp", 500, "autotune", 0): Count(waiting=2)}), 2, live=True)
    with display:
        display.take(EVENT | {"event": "start"})
        display.take(
            EVENT | {"event": "done", "valid": 0.5, "diverged": True, "seconds": 2.0, "peak_mb": 9.0}
        )
    out = capsys.readouterr().out
    assert "1/2 trials" in out
    assert "diverged" in out


def test_the_environment_is_written_once_and_what_differs_is_added(tmp_path, monkeypatch):
    path = tmp_path / "environment.json"
    assert read_environment(path) is None
    record_environment(path, 2)
    first = read_environment(path)
    now = environment(2)
    assert first | {"date": now["date"]} == now
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    if commit.returncode == 0:
        assert first["commit"] == commit.stdout.strip()
        assert isinstance(first["dirty"], bool)
    assert first["versions"]["torch"] == __import__("torch").__version__
    record_environment(path, 3)
    again = read_environment(path)
    assert {k: v for k, v in again.items() if k != "resumed"} == first
    assert again["resumed"][0]["workers"] == 3
    assert "cpu" not in again["resumed"][0]


# ------------------------------------------------------------------ real workers


def running(out: Path, protocol: Protocol, count: int = 1, timeout: float = 120) -> list[int]:
    """Wait until so many trials run; ids of the processes that have them."""
    end = time.monotonic() + timeout
    while not (out / "study.db").exists():
        assert time.monotonic() < end
        time.sleep(0.1)
    url = default_storage(out)
    studies = Studies(open_storage(url), protocol, url)
    while time.monotonic() < end:
        trials = [t for order in studies.made() for t in studies.trials(order)]
        pids = [
            t.user_attrs["worker"][1]
            for t in trials
            if t.state.name == "RUNNING" and t.user_attrs.get("worker")
        ]
        if len(pids) >= count:
            return pids
        time.sleep(0.02)
    raise AssertionError("no trial runs")


def judge(out: Path, protocol: Protocol, retried: int) -> None:
    """Every point of the design was finished once, in the storage and in the file."""
    url = default_storage(out)
    studies = Studies(open_storage(url), protocol, url)
    trials = {order: studies.trials(order) for order in studies.cells}
    done = {
        order: sorted(t.user_attrs["k"] for t in ts if t.state.name == "COMPLETE")
        for order, ts in trials.items()
    }
    assert done == {o: list(range(protocol.points(c.method))) for o, c in studies.cells.items()}
    states = Counter(t.state.name for ts in trials.values() for t in ts)
    assert states["FAIL"] == retried
    assert states["RUNNING"] == states["WAITING"] == 0
    rows = read_rows(rows_file(out), pytest.fail)
    assert len(rows) == states["COMPLETE"]
    assert sum(row["retried"] for row in rows) == retried
    assert {row["protocol"] for row in rows} == {protocol.hash}


@pytest.mark.slow
def test_a_killed_worker_a_ctrl_c_and_a_killed_sweep_lose_nothing(tmp_path):
    """One sweep, stopped in three ways; then what it left is shown and reported."""
    protocol = Protocol.of("t", PAIR)
    out = tmp_path / "o"
    sweep = start(
        tmp_path, "run", "--protocol", toml(tmp_path, PAIR), "--tier", "t", "--out", out, "--workers", 2
    )
    for pid in running(out, protocol)[:1]:
        os.kill(pid, signal.SIGKILL)
    sweep.wait_for("its worker died: killed by SIGKILL")
    running(out, protocol)
    os.kill(sweep.pid, signal.SIGINT)
    stopped = sweep.end(60)
    assert stopped.code == 130, stopped
    assert f"stopped; resume with: thermoopt bench resume --out {out}" in stopped.output + stopped.errors
    assert "Traceback" not in stopped.output + stopped.errors
    url = default_storage(out)
    studies = Studies(open_storage(url), protocol, url)
    assert Tally.of(studies).total.running == 0  # everything was put back

    sweep = start(tmp_path, "resume", "--out", out, "--workers", 1)
    pid = running(out, protocol)[0]
    os.kill(sweep.pid, signal.SIGKILL)
    assert sweep.end().code == -signal.SIGKILL
    end = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() and ") Z" not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < end, "a worker outlives its sweep"
        time.sleep(0.05)

    done = start(tmp_path, "resume", "--out", out, "--workers", 1).end()
    assert done.code == 0, done
    assert "8 of 8 trials are done, 0 failed, 0 are left" in done.output
    judge(out, protocol, retried=1)
    assert bench("status", "--out", out) == 0
    assert read_environment(out / "environment.json")["resumed"]
    assert len([*(out / "logs").rglob("seed*.jsonl")]) == 8


@pytest.mark.slow
def test_a_disk_that_fills_up_stops_the_sweep_and_a_resume_ends_it(tmp_path):
    """On a file system of its own, two megabytes large, that a file fills; root only."""
    # not in pytest's own folders: it could not clear them if this test was killed
    disk = Path(tempfile.mkdtemp())
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(disk)], capture_output=True
    )
    if mounted.returncode:
        disk.rmdir()
        pytest.skip("cannot mount")
    try:
        table = changed(**FEW, methods=["adamw linear"])
        out = disk / "o"
        protocol = toml(tmp_path, table)
        sweep = start(tmp_path, "run", "--protocol", protocol, "--tier", "t", "--out", out, "--workers", 1)
        sweep.wait_for("\n1/4")
        with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"x" * 4096):
                pass
        stopped = sweep.end(60)
        assert stopped.code == 1, stopped
        said = stopped.output + stopped.errors
        assert "the sweep had to stop: no room for " in said
        assert "disk is full" in said or "no room for" in said or "No space left" in said
        assert "Traceback" not in said
        (disk / "filler").unlink()
        done = start(tmp_path, "resume", "--out", out, "--workers", 1).end(120)
        assert done.code == 0, done
        rows = read_rows(rows_file(out), lambda line: None)
        assert sorted((r["seed"], r["k"]) for r in rows) == [(s, k) for s in (0, 1) for k in range(2)]
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
        disk.rmdir()


def test_workers_that_cannot_start_are_told_and_end_the_sweep(tmp_path, monkeypatch):
    protocol = Protocol.of("t", changed(workloads={"linear": [0]}, methods=["autotune"], seeds=[0]))
    url = default_storage(tmp_path)
    studies = Studies(open_storage(url), protocol, url)
    studies.make()
    display = Display(Tally.of(studies), 2, live=False)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "optuna.py").write_text("raise RuntimeError('this optuna is broken')")
    sweep = Sweep(studies, url, tmp_path, 2, display, 10, 120)
    sweep.run()
    assert (
        sweep.trouble == ["a worker could not start: exit status 1: RuntimeError: this optuna is broken"] * 2
    )
    assert Tally.of(studies).total.waiting == 4
