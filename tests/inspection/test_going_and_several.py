"""Several runs at once, a run that is still going, the progress of a long read, spikes in long pictures."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.saved_runs import record
from tests.support.sink_runs import make_optimizer, train
from thermoopt.inspection import InputError, follow_run, inspect_run
from thermoopt.inspection.reading_bar import reading_bar
from thermoopt.inspection.sources import read_run
from thermoopt.sinks import ParquetSink

SMALL = {"layers": False}


def test_runs_side_by_side(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name, steps in (("a", 12), ("b", 20)):
        record(tmp_path / "runs" / name / "run.jsonl", steps, **SMALL)
    (tmp_path / "runs" / "empty.jsonl").write_text("")
    said: list[str] = []
    html = tmp_path / "page.html"
    runs = inspect_run(tmp_path / "runs", html=html, since=5, say=said.append, width=200)
    assert isinstance(runs, list)
    assert [one.name for one in runs] == ["a/run", "b/run"]
    assert [one.run.steps for one in runs] == [12, 20]
    assert all(one.run.history.steps[0] == 5 for one in runs)
    text = "\n".join(said)
    assert re.search(r"^  a/run +12 ", text, re.MULTILINE)
    assert re.search(r"^  b/run +20 ", text, re.MULTILINE)
    assert "empty.jsonl: left out: the file is empty" in text
    assert (tmp_path / "runs" / "inspect" / "comparison.png").stat().st_size > 10_000
    page = html.read_text(encoding="utf-8")
    assert "<h2>a/run</h2>" in page
    assert "<h2>b/run</h2>" in page
    with pytest.raises(InputError, match="belongs to one run, but several are given"):
        inspect_run([*tmp_path.rglob("run.jsonl")], actions=tmp_path / "x", say=said.append)


@pytest.mark.filterwarnings("ignore:.*holds a run already:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:.*it holds another run:RuntimeWarning")
def test_a_view_follows_a_growing_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look finds more: no file, still none, a run of 10 readings, no change, 15 more readings."""
    path = tmp_path / "run.jsonl"
    looks = iter(
        [
            lambda: None,  # as before: no new view
            lambda: record(path, 10, **SMALL),
            lambda: None,  # unchanged: no new view
            lambda: record(path, 25, **SMALL),
        ]
    )
    monkeypatch.setattr("thermoopt.inspection.follow.time.sleep", lambda seconds: next(looks)())
    views: list[str] = []
    follow_run(path, say=views.append, views=3, width=120)
    assert views[0] == f"waiting for {path}"
    assert "10 readings to step 10" in views[1]
    assert "25 readings to step 25" in views[2]
    assert "All parameters" in views[2]
    assert next(looks, None) is None


def test_a_view_follows_readings_that_are_not_in_a_row_group_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "run.parquet"
    sink = ParquetSink(path)
    optimizer = make_optimizer(sink)

    def look(seconds: float) -> None:
        train(optimizer, 5, optimizer.steps)
        sink.flush()

    monkeypatch.setattr("thermoopt.inspection.follow.time.sleep", look)
    views: list[str] = []
    follow_run(path, say=views.append, views=3)
    assert "it holds no reading yet" in views[0]
    assert "5 readings to step 5" in views[1]
    assert "10 readings to step 10" in views[2]
    assert not path.exists()


def test_what_cannot_be_read_ends_the_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.parquet"
    path.write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        InputError, match=r"run.parquet': Parquet needs pyarrow: pip install thermoopt\[record\]"
    ):
        follow_run(path, say=print)


def test_a_terminal_is_redrawn_within_its_height(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.jsonl"
    record(path, 10, **SMALL)
    monkeypatch.setattr("sys.stdout", Terminal())
    views: list[str] = []
    follow_run(path, say=views.append, views=1, height=7)
    assert views[0].startswith("\x1b[H\x1b[2J")
    lines = views[0].split("\n")
    assert len(lines) == 7
    assert "10 readings to step 10" in lines[0]
    assert lines[1].startswith("LOW    weight decay irrelevant")  # before what a low window cuts off
    assert re.fullmatch(r"\(\d+ more lines in a taller window\)", lines[-1])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_what_was_noted_is_named_with_its_steps(tmp_path: Path) -> None:
    def mark(step: int, optimizer: Any) -> None:
        if step in (3, 7):
            optimizer.sinks.mark("spike", of="loss", ratio=4.0)
        if step == 7:
            optimizer.sinks.mark("restart")

    path = tmp_path / "run.jsonl"
    record(path, 10, each=mark, **SMALL)
    _, notes = read_run(path, None, None, None)
    assert notes == ["events: 2 × spike of loss (step 4, 8), 1 × restart (step 8)"]
    views: list[str] = []
    follow_run(path, say=views.append, views=1)
    assert "events: spike of loss at step 4, spike of loss at step 8, restart at step 8" in views[0]


def test_progress_names_the_time_left_and_is_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("thermoopt.inspection.reading_bar.time.monotonic", lambda: clock[0])
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        clock[0] = 100.0
        with reading_bar("run.jsonl", stream) as progress:
            progress(10, 100)  # at once: nobody wonders yet
            assert stream.getvalue() == ""
            clock[0] = 104.0
            progress(25, 100)  # a quarter in 4 s: 12 s are left
    shown = terminal.getvalue()
    assert "reading run.jsonl  " in shown
    assert " 25 %  12 s left" in shown
    assert shown.endswith("\r" + " " * len(shown.split("\r")[1]) + "\r")
    assert file.getvalue() == ""


def test_a_spike_of_one_reading_stays_visible_among_100000() -> None:
    pytest.importorskip("matplotlib")
    from thermoopt.plots.panels import BINS, binned, blank, line

    steps = np.arange(0, 1_000_000, 10)
    values = np.full(len(steps), 2.0)
    values[70_123] = 50.0
    values[70_500] = np.nan
    x, low, mean, high = binned(steps, values)
    parts = np.array_split(values, BINS)
    np.testing.assert_allclose(low, [np.nanmin(part) for part in parts])
    np.testing.assert_allclose(mean, [np.nanmean(part) for part in parts])
    np.testing.assert_allclose(high, [np.nanmax(part) for part in parts])
    assert abs(x[np.argmax(high)] - steps[70_123]) <= 1_000_000 / BINS
    figure = blank(4)
    ax = figure.subplots()
    line(ax, steps, values, color="black")
    (band,) = ax.collections
    assert band.get_paths()[0].vertices[:, 1].max() == 50.0
    assert len(ax.lines[0].get_xdata()) <= BINS
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[:, :, 0]
    top = int(ax.transData.transform((0, 30.0))[1])  # rows of the picture count from above
    left, right = (int(ax.transData.transform((s, 0))[0]) for s in (690_000, 712_000))
    assert pixels[pixels.shape[0] - top, left:right].min() < 255
