"""The README's Python blocks run, in order, in one session."""

import re
from pathlib import Path

import torch

from thermoopt import physics
from thermoopt.inspection import inspect_run

README = Path(__file__).parents[2] / "README.md"
QUANTITIES = README.parent / "docs" / "quantities.md"


def test_python_blocks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) >= 4
    namespace = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)
    assert "sigma" in capsys.readouterr().out
    assert (tmp_path / "history.csv").stat().st_size > 0
    assert (tmp_path / "watched.jsonl").stat().st_size > 0


def test_the_quickstart_runs_and_the_run_that_it_saves_can_be_inspected(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    page = (README.parent / "docs" / "quickstart.md").read_text(encoding="utf-8")
    namespace = {}
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(compile(block, "quickstart.md", "exec"), namespace)
    assert "[HIGH] learning rate too high" in capsys.readouterr().out
    assert float(namespace["loss"].detach()) < 0.1
    said = []
    inspect_run("run.jsonl", html=tmp_path / "report.html", say=said.append)
    assert any("nothing wrong was found" in line for line in said)
    assert (tmp_path / "report.html").stat().st_size > 0


def test_every_quantity_is_in_the_table():
    text = QUANTITIES.read_text(encoding="utf-8")
    missing = [name for name in physics.QUANTITIES if f"`{name}`" not in text]
    assert missing == []


def test_links_to_files_exist():
    for path in re.findall(r"\]\(([\w/.-]+)(?:#[\w-]+)?\)", README.read_text(encoding="utf-8")):
        assert (README.parent / path).exists(), path
