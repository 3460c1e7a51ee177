"""The command: what it refuses, with which status, and that it runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from thermoopt import cli, doctor


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "rhyme.txt"
    path.write_bytes(b"the cat sat on the mat and the rat ate the hat; " * 300)
    return path


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert not out
    assert "Traceback" not in err
    return err.splitlines()[-1]


@pytest.mark.parametrize("value", ["0", "-3", "1.5", "many", ""])
def test_bad_steps(capsys, value):
    line = refused(capsys, "demo", f"--steps={value}")
    assert "--steps" in line
    assert repr(value) in line
    assert "at least 1" in line


@pytest.mark.parametrize("value", ["-1", "x", str(2**63)])
def test_bad_seed(capsys, value):
    line = refused(capsys, "demo", f"--seed={value}")
    assert "--seed" in line
    assert repr(value) in line


def test_bad_text(capsys, tmp_path):
    missing = tmp_path / "none.txt"
    line = refused(capsys, "demo", "--text", str(missing), "--out", str(tmp_path / "o"))
    assert "--text" in line
    assert str(missing) in line
    assert "no such file" in line
    assert line.count(str(missing)) == 1
    assert not (tmp_path / "o").exists()


def test_bad_out(capsys, text):
    line = refused(capsys, "demo", "--steps=1", "--text", str(text), "--out", str(text / "o"))
    assert "--out" in line
    assert str(text / "o") in line
    assert "must be a writable folder" in line


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["demo", "--nothing"]])
def test_bad_command(capsys, arguments):
    refused(capsys, *arguments)


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["demo", "--help"], ["doctor", "--help"]])
def test_words_about_itself(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 0
    assert "thermoopt" in capsys.readouterr().out


def test_help_states_defaults(capsys):
    with pytest.raises(SystemExit):
        cli.main(["demo", "--help"])
    out = capsys.readouterr().out
    for word in ("--steps", "--text", "--out", "--seed", "runs/demo", "(default:"):
        assert word in out
    assert "None" not in out


def test_arguments_arrive(monkeypatch, tmp_path):
    got = []
    monkeypatch.setattr("thermoopt.demo.run_demo", lambda *arguments: got.append(arguments))
    assert cli.main(["demo", "--steps", "7", "--text", "a", "--out", "b", "--seed", "5"]) == 0
    assert cli.main(["demo"]) == 0
    assert got == [(7, Path("a"), Path("b"), 5), (cli.DEFAULT_STEPS, None, Path("runs/demo"), 0)]


def test_stopped_by_the_keyboard(monkeypatch, capsys):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("thermoopt.demo.run_demo", stop)
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr().err == "stopped\n"


@pytest.mark.parametrize(("well", "status"), [(True, 0), (False, 1)])
def test_doctor_prints_its_report(monkeypatch, capsys, well, status):
    monkeypatch.setattr(doctor, "report", lambda say: say("seen") or well)
    assert cli.main(["doctor"]) == status
    assert capsys.readouterr().out == "seen\n"


def test_as_a_module(text, tmp_path):
    out = tmp_path / "o"
    ran = subprocess.run(
        [sys.executable, "-m", "thermoopt", "demo", "--steps", "2", "--text", str(text), "--out", str(out)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == f"results     {out}/"
    assert (out / "dashboard.png").stat().st_size > 0
    assert {path.name for path in tmp_path.iterdir()} == {"o", "rhyme.txt"}  # nothing elsewhere
