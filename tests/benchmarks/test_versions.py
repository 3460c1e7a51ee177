"""The race of two versions: intervals of a median by hand, and one version against itself."""

import json
import sys

import pytest

from thermoopt.benchmarks.overhead import versions


@pytest.mark.parametrize(("count", "k"), [(6, 1), (10, 2), (20, 6), (31, 10)])
def test_interval_is_that_of_the_tables(count, k):
    """Ranks of the sign test at 5 %, two-sided, as printed in tables of its critical values."""
    values = [float((7 * i) % count) for i in range(count)] if count % 7 else list(range(count))
    assert versions.interval(values) == (k - 1, count - k)


def test_too_few_values_have_no_interval():
    with pytest.raises(ValueError, match="values must be at least 6, got 5"):
        versions.interval([1.0] * 5)
    with pytest.raises(SystemExit):
        versions.main(["--before", "a", "--after", "b", "--rounds", "5"])


@pytest.mark.slow
def test_a_version_against_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(versions, "SETS", {"3 x 64": (3, 64)})
    monkeypatch.setattr(versions, "SECONDS", 0.001)
    both = ["--before", sys.executable, "--after", sys.executable, "--methods", "every step, diffusion"]
    versions.main([*both, "--rounds", "6", "--out", str(tmp_path)])
    (row,) = map(json.loads, (tmp_path / "versions.jsonl").read_text().splitlines())
    assert row["rounds"] == 6
    assert 0 < row["low"] <= row["ratio"] <= row["high"]
    assert "| 3 x 64 | every step, diffusion |" in (tmp_path / "versions.md").read_text()
