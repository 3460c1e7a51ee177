"""The whole way on the command line, as CI runs it: the smoke tier, its status, its report."""

import json

import pytest

from tests.support.processes import run_script

pytest.importorskip("optuna")
pytestmark = pytest.mark.slow


def bench(*arguments):
    done = run_script("thermoopt", "bench", *arguments)
    assert done.code == 0, done.errors
    return done.output


def test_smoke(tmp_path):
    out = tmp_path / "smoke"
    few = ["--workloads", "linear"]  # the data of the others take as long as all else
    assert "8/8" in bench("run", "--tier", "smoke", *few, "--out", out, "--workers", 1)
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == len({(r["workload"], r["method"], r["seed"], r["k"]) for r in rows}) == 8
    assert len({r["protocol"] for r in rows}) == 1
    # the design is one for all methods
    points = {(r["k"], r["lr"]) for r in rows if "lr" in r["tunables"]}
    assert len(points) == 2
    assert "8" in bench("status", "--out", out)

    # that the same table gives the same bytes: test_bench_report.py
    bench("report", "--out", out, "--to", tmp_path / "report")
    files = {path.name for path in (tmp_path / "report").rglob("*") if path.is_file()}
    assert {"report.md", "report.html"} <= files

    # nothing is left to do
    bench("resume", *few, "--out", out)
    assert len((out / "rows.jsonl").read_text().splitlines()) == 8
