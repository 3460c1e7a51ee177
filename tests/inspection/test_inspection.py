"""``thermoopt inspect``: what it says, what it writes, what it refuses."""

from __future__ import annotations

import base64
import builtins
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from tests.support.pictures import png_size
from tests.support.saved_runs import record
from thermoopt import cli
from thermoopt.controllers import Action
from thermoopt.diagnosis.finding import Finding
from thermoopt.inspection import InputError
from thermoopt.inspection.command import Inspection, inspect_run
from thermoopt.inspection.run_tables import layer_table, total_table, type_table
from thermoopt.inspection.tables import Table

PICTURES = ["dashboard.png", "entropy_split.png", "layer_maps.png"]


def action(step: int, new: float) -> Action:
    return Action(step, "Thermostat(diffusion)", "all", "lr", 1.0, new, {"r": (1.4, 0.1)}, "drift <here>")


def write_actions(path: Path, *actions: Action) -> Path:
    path.write_text("".join(json.dumps(a.to_dict()) + "\n" for a in actions))
    return path


class Page(HTMLParser):
    """What stands on a page: tables as cells, images, addresses, text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.images: list[dict[str, str | None]] = []
        self.addresses: list[str | None] = []
        self.tags: list[str] = []
        self.text = ""
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        held = dict(attrs)
        self.tags.append(tag)
        self.addresses += [held[name] for name in ("src", "href", "action", "srcset") if name in held]
        if tag == "img":
            self.images.append(held)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._cell = True

    def handle_endtag(self, tag):
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data):
        self.text += data
        if self._cell:
            self.tables[-1][-1][-1] += data


@dataclass
class Done:
    """An inspection, the files around it and what it said."""

    folder: Path
    result: Inspection
    said: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Done:
    folder = tmp_path_factory.mktemp("inspect")
    record(folder / "run.jsonl", 24)
    moves = write_actions(folder / "moves.jsonl", action(5, 2.0), action(9, 3.0))
    said: list[str] = []
    result = inspect_run(
        folder / "run.jsonl", html=folder / "deep" / "page.html", actions=moves, say=said.append, width=200
    )
    return Done(folder, result, said)


def check(page: Page, tables: list[Table]) -> None:
    """The page holds these tables cell by cell, and pictures that decode to the PNGs of their width."""
    assert page.tables == [[list(t.head), *map(list, t.rows)] for t in tables]
    assert page.images
    for image in page.images:
        assert image["alt"]
        kind, data = image["src"].split(",", 1)
        assert kind == "data:image/png;base64"
        raw = base64.b64decode(data, validate=True)
        assert raw[:8] == b"\x89PNG\r\n\x1a\n"
        assert raw[-8:-4] == b"IEND"
        assert int.from_bytes(raw[16:20], "big") == 1600


def test_says_tables_diagnosis_and_actions(done):
    said = "\n".join(done.said)
    run = done.result.run
    for table in (total_table(run), type_table(run), layer_table(run)):
        assert "\n".join(table.lines(200)) in said
    assert str(done.result.report) in said
    assert "Actions of the controllers: 2" in said
    assert f"run         {done.folder / 'run.jsonl'}" in said
    assert "24 readings of 6 layers in 2 groups, steps 1 to 24" in said


def test_writes_pictures_beside_the_run_and_nothing_else(done):
    folder = done.folder / "run_inspect"
    assert [path.name for path in done.result.pictures] == [*PICTURES, "actions.png"]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*PICTURES, "actions.png"])
    assert all(png_size(path)[0] == 1600 for path in folder.iterdir())
    assert {path.name for path in done.folder.iterdir()} == {
        "run.jsonl",
        "run.layers.jsonl",
        "moves.jsonl",
        "run_inspect",
        "deep",
    }
    assert done.result.html == done.folder / "deep" / "page.html"


def test_the_page_holds_everything_and_asks_for_nothing(done):
    text = done.result.html.read_text(encoding="utf-8")
    page = Page(text)
    run = done.result.run
    check(page, [total_table(run), type_table(run), layer_table(run)])
    assert len(page.images) == 4
    assert all(address.startswith("data:") for address in page.addresses)
    assert "script" not in page.tags
    assert not re.search(r"https?:|@import|url\(", text)
    assert "default-src 'none'" in text
    assert done.result.report.summary in page.text
    assert "drift <here>" in page.text  # escaped, or the parser would have taken it for a tag
    embedded = [base64.b64decode(image["src"].split(",", 1)[1]) for image in page.images]
    assert embedded == [path.read_bytes() for path in done.result.pictures]


def test_findings_are_cards(done, tmp_path, monkeypatch):
    names = tuple(f"layer<{i}>" for i in range(11))
    found = Finding(
        "too_hot", "HIGH", "r is <low>.", "Lower & see.", "r", 0.1, 1.0, readings=12, layers=names
    )
    follows = Finding("other", "LOW", "m", "a", "r", 0.1, 1.0, follows_from="too_hot")
    report = done.result.report.__class__((found, follows), {"steps": 24, "readings": 24})
    monkeypatch.setattr("thermoopt.inspection.sources.diagnose", lambda run: report)
    monkeypatch.setattr("thermoopt.inspection.command._draw", lambda *arguments: [])
    html = tmp_path / "page.html"
    inspect_run(done.folder / "run.jsonl", tmp_path / "out", html, say=lambda line: None)
    text = html.read_text(encoding="utf-8")
    assert 'class="card HIGH"' in text
    page = Page(text).text
    for words in (
        "HIGH too hot: r is <low>.",
        "Lower & see.",
        "12 readings; layers: layer<0>",
        "layer<7> and 3 more",
        "follows from too hot",
    ):
        assert words in page, words


def test_files_of_the_demo_come_with_losses_and_actions(tmp_path):
    optimizer = record(tmp_path / "sink.jsonl", 20)
    folder = tmp_path / "autotuned"
    folder.mkdir()
    optimizer.history.export_jsonl(folder / "history.jsonl")
    write_actions(folder / "actions.jsonl", action(5, 2.0))
    with (folder / "loss.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["step", "train", "valid"], *([s, 5.0 / s, 3.0 if s == 20 else ""] for s in range(1, 21))]
        )
    said: list[str] = []
    result = inspect_run(folder / "history.jsonl", say=said.append)
    assert result.run.losses.steps.tolist() == list(range(1, 21))
    assert result.run.losses.values.tolist() == [5.0 / s for s in range(1, 21)]
    assert [path.name for path in result.pictures] == [*PICTURES, "actions.png"]
    assert "Actions of the controllers: 1" in said
    (folder / "loss.csv").write_text("step,train\n1,low\n")
    with pytest.raises(InputError, match=r"loss\.csv.*must be the demo's table of step, train and valid"):
        inspect_run(folder / "history.jsonl", say=said.append)


def test_torn_lines_and_skipped_steps_are_noted(done, tmp_path, monkeypatch):
    monkeypatch.setattr("thermoopt.inspection.command._draw", lambda *arguments: [])
    path = tmp_path / "run.jsonl"
    lines = (done.folder / "run.jsonl").read_text().splitlines()
    assert json.loads(lines.pop())["ended"]
    last = json.loads(lines[-1])
    last["skipped"][0] = 4
    path.write_text("\n".join([*lines[:-1], json.dumps(last), '{"step": 25, "to']))
    said: list[str] = []
    inspect_run(path, html=tmp_path / "page.html", say=said.append)
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8")).text
    for note in ("line 26 is torn: skipped", "measurements skipped: 4 × nonfinite"):
        assert f"            {note}" in said
        assert note in page


@pytest.mark.parametrize("steps", [1, 3])
def test_short_runs_and_runs_without_layers(tmp_path, steps):
    record(tmp_path / "run.jsonl", steps, layers=False)
    said: list[str] = []
    result = inspect_run(tmp_path / "run.jsonl", html=tmp_path / "page.html", say=said.append)
    assert "By layer, last reading: nothing on record" in said
    assert f"{steps} reading{'s' if steps > 1 else ''} of 0 layers in 2 groups, steps 1 to {steps}" in said[1]
    assert [path.name for path in result.pictures] == (PICTURES if steps > 1 else [])
    if steps == 1:
        assert any("no dashboard.png: a dashboard needs a history of at least 2 readings" in x for x in said)
    assert len(Page((tmp_path / "page.html").read_text(encoding="utf-8")).images) == len(result.pictures)


def test_without_matplotlib_there_are_no_pictures(done, tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    said: list[str] = []
    result = inspect_run(done.folder / "run.jsonl", tmp_path / "out", tmp_path / "p.html", say=said.append)
    assert result.pictures == []
    assert any("pip install thermoopt[viz]" in line for line in said)
    assert (tmp_path / "p.html").stat().st_size > 0


# -------------------------------------------------------------------- the command


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main(["inspect", *arguments])
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert not out
    assert "Traceback" not in err
    return err.splitlines()[-1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file or directory"),
        (b"", "the file is empty"),
        (b"step,sigma\n1,2\n", "none of 2 lines is JSON"),
        (b'{"step": 1}\n', "line 1: total is missing"),
        (b"\x00\xff\xfe", "none of 1 lines is JSON"),
    ],
)
def test_a_run_that_cannot_be_read(capsys, tmp_path, content, words):
    path = tmp_path / "run.jsonl"
    if content is not None:
        path.write_bytes(content)
    line = refused(capsys, str(path))
    assert f"argument RUN: {str(path)!r}: " in line
    assert words in line
    assert line.count(str(path)) == 1
    assert [p.name for p in tmp_path.iterdir()] == ([] if content is None else ["run.jsonl"])


def test_other_arguments_that_cannot_be_used(capsys, done, tmp_path):
    run = str(done.folder / "run.jsonl")
    before = sorted(done.folder.rglob("*"))
    file = tmp_path / "file"
    file.write_text("kept")
    assert f"argument --out: {str(file)!r}" in refused(capsys, run, "--out", str(file))
    assert f"argument --html: {str(tmp_path)!r}" in refused(capsys, run, "--html", str(tmp_path))
    assert f"argument --html: {str(file / 'a')!r}" in refused(capsys, run, "--html", str(file / "a"))
    line = refused(capsys, run, "--actions", run)
    assert f"argument --actions: {run!r}: line 1 is not an action; must be a JSONL" in line
    assert "No such file" in refused(capsys, run, "--actions", str(tmp_path / "none"))
    assert file.read_text() == "kept"
    assert sorted(done.folder.rglob("*")) == before


@pytest.mark.parametrize("arguments", [[], ["a", "--since", "-1"], ["a", "--follow", "--html", "b"]])
def test_bad_calls(capsys, arguments):
    refused(capsys, *arguments)


def test_arguments_arrive(monkeypatch):
    got = []
    monkeypatch.setattr(
        "thermoopt.inspection.inspect_run", lambda *given, **options: got.append((given, options))
    )
    assert cli.main(["inspect", "r", "--html", "h", "--out", "o", "--actions", "a"]) == 0
    assert cli.main(["inspect", "r"]) == 0
    assert cli.main(["inspect", "r", "s", "--since", "40", "--layers", "*.attn.*"]) == 0
    everything = {"since": None, "layers": None}
    assert got == [
        ((Path("r"), Path("o"), Path("h"), Path("a")), everything),
        ((Path("r"), None, None, None), everything),
        (([Path("r"), Path("s")], None, None, None), {"since": 40, "layers": "*.attn.*"}),
    ]


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_error(done, tmp_path):
    code = (
        "import sys, thermoopt.inspection.command as i; i._draw = lambda *a: []\n"
        "from thermoopt.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "inspect", str(done.folder / "run.jsonl"), "--out", str(tmp_path)]
    read, write = os.pipe()
    os.close(read)
    ran = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (ran.returncode, ran.stderr) == (141, "")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_chromium_renders_the_page_without_a_complaint(done, tmp_path):
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    ran = subprocess.run(
        [*command, f"--user-data-dir={tmp_path}", "--dump-dom", done.result.html.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    run = done.result.run
    page = Page(ran.stdout)
    check(page, [total_table(run), type_table(run), layer_table(run)])
    assert len(page.images) == 4
    assert "CONSOLE" not in ran.stderr, ran.stderr  # errors, and what the page's own policy refused
