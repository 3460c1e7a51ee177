"""The file of rows: whole lines or none, whatever is wrong with it or the disk."""

import errno
import json
import os
import threading

import pytest

pytest.importorskip("optuna")
pytest.importorskip("mnist1d")
pytest.importorskip("sklearn")

from tests.support.sweeps import row
from thermoopt.benchmarks.harness.room import DiskFull, disk_full
from thermoopt.benchmarks.report import table
from thermoopt.benchmarks.report.table import append_row, read_rows, read_table


def test_rows_come_back_as_they_went(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [row(k, valid=1 / 3 + k) for k in range(3)]
    for r in rows:
        append_row(path, r)
    said = []
    assert read_rows(path, said.append) == rows
    assert not said
    assert read_rows(tmp_path / "none", said.append) == []


def test_lines_that_are_no_rows_are_named_and_passed_over(tmp_path):
    path = tmp_path / "rows.jsonl"
    good = json.dumps(row(0))
    lines = [
        good,
        "{not json",
        "",
        "[1, 2]",
        json.dumps({k: v for k, v in row(1).items() if k != "valid"}),
        json.dumps(row(2, valid="low")),
        json.dumps(row(3)).replace("1.0", "NaN"),
        json.dumps(row(4) | {"k": True}),
        good,
        json.dumps(row(5))[:40],
    ]
    path.write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n" + json.dumps(row(6)).encode()[:-9])
    said = []
    assert read_rows(path, said.append) == [row(0)]
    assert [line.split(" is passed over: ")[0] for line in said] == [
        f"{path}, line {n}" for n in (2, 4, 5, 6, 7, 8, 10, 11, 12)
    ]
    assert said[1].endswith("it is not an object")
    assert said[2].endswith("valid is missing")
    assert said[3].endswith("valid is 'low'")
    assert "NaN" in said[4]
    assert said[5].endswith("k is True")


def test_a_torn_last_line_stays_alone(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_row(path, row(0))
    with path.open("a") as file:
        file.write(json.dumps(row(1))[:30])
    append_row(path, row(2))
    said = []
    assert read_rows(path, said.append) == [row(0), row(2)]
    assert len(said) == 1
    assert "line 2" in said[0]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch, code):
    path = tmp_path / "rows.jsonl"
    append_row(path, row(0))
    before = path.read_bytes()
    real, room = os.write, [20]  # bytes that still fit

    def write(file, data):
        if not room[0]:
            raise OSError(code, os.strerror(code))
        taken = real(file, data[: room[0]])
        room[0] -= taken
        return taken

    with monkeypatch.context() as patch:
        patch.setattr(table.os, "write", write)
        with pytest.raises(DiskFull, match=r"no room for .*rows\.jsonl"):
            append_row(path, row(1))
    assert path.read_bytes() == before
    append_row(path, row(1))
    assert len(read_rows(path, pytest.fail)) == 2


def test_a_disk_that_really_is_full():
    """/dev/full takes nothing."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    with pytest.raises(OSError, match="No space left") as error:
        with open("/dev/full", "w") as file:
            file.write("x")
    assert disk_full(error.value)
    wrapped = RuntimeError("a commit failed")
    wrapped.__cause__ = error.value
    assert disk_full(wrapped)
    assert not disk_full(RuntimeError("something else"))
    assert not disk_full(OSError(errno.EACCES, "no"))


def test_writers_at_the_same_time_do_not_mix(tmp_path):
    path = tmp_path / "rows.jsonl"

    def write(worker):
        for k in range(50):
            append_row(path, row(k, seed=worker, curve=[[i, 0.5] for i in range(300)]))

    threads = [threading.Thread(target=write, args=(w,)) for w in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = read_rows(path, pytest.fail)
    assert {(r["seed"], r["k"]) for r in rows} == {(w, k) for w in range(4) for k in range(50)}


def test_a_table_without_a_storage_is_the_file(tmp_path):
    for r in (row(1), row(0), row(0, protocol="q"), row(0, workload="cnn")):
        append_row(tmp_path / "rows.jsonl", r)
    assert read_table(None, tmp_path, "p") == [row(0, workload="cnn"), row(0), row(1)]
    assert len(read_table(None, tmp_path)) == 4
