"""The overhead benchmark runs and its arithmetic is right; what it measures is not asserted."""

import json
import sys

import numpy as np
import pytest

from thermoopt.benchmarks.overhead import cpu


@pytest.fixture
def overhead():
    return cpu


def test_rows_from_times(overhead):
    times = {
        "torch foreach": np.array([4.0, 4.0, 4.0]),
        "torch fused": np.array([1.0, 2.0, 4.0]),
        "ThermoAdamW foreach, every 10": np.array([5.0, 5.0, 5.0]),
        "ThermoAdamW native, every step": np.array([1.0, 1.0, 2.0]),
    }
    rows = {r["method"]: r for r in overhead.table_of("x", times, elements=1_000_000, bandwidth=28e9)}
    native = rows["ThermoAdamW native, every step"]
    assert native["ms"] == 1.0
    assert native["ratio"] == 0.5  # the median of the rounds' ratios 1, 1/2, 1/2
    assert native["gb_per_s"] == pytest.approx(28.0)
    assert native["of_bound"] == pytest.approx(1.0)
    assert rows["ThermoAdamW foreach, every 10"]["of_own"] == 1.25
    lines = overhead.markdown(list(rows.values()), {"torch foreach": 0.0}).splitlines()
    assert len({line.count("|") for line in lines}) == 1


def test_parameter_sets_are_as_large_as_they_say(overhead):
    for name, shapes in overhead.SETS.items():
        size = sum(int(np.prod(s)) for s in shapes) / 1e6
        assert size == pytest.approx(float(name.split()[1]), rel=0.35 if size < 1 else 0.02)


@pytest.mark.slow
def test_runs_and_writes(overhead, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(overhead, "bandwidths", lambda: (1e10, 2e10))
    monkeypatch.setattr(overhead.torch, "set_num_threads", lambda n: None)
    arguments = ["--sets", "10 x 1 K, 1 group", "--rounds", "1", "--seconds", "0", "--memory-of", ""]
    monkeypatch.setattr(sys, "argv", ["overhead.py", *arguments, "--out", str(tmp_path)])
    overhead.main()
    rows = json.loads((tmp_path / "overhead.json").read_text())["rows"]
    ratios = {row["method"]: row["ratio"] for row in rows}
    assert ratios["torch fused"] == 1.0
    assert "ThermoAdamW foreach, every 10" in ratios
    assert str(tmp_path) in capsys.readouterr().out.splitlines()[-1]


def test_unknown_set_is_named(overhead, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["overhead.py", "--sets", "GPT 7 M"])
    with pytest.raises(SystemExit) as stop:
        overhead.main()
    assert stop.value.code == 2
    assert "GPT 7 M" in capsys.readouterr().err
