"""The site: it builds without a warning, its reference is whole, its tables are the benchmarks'."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FACES = ("controllers", "sinks", "irreversibility", "landscape", "physics")
"""Packages whose faces are public beside thermoopt's own; of the others some names are."""

INTERNAL = {"thermoopt.sinks.SinkQueue", "thermoopt.sinks.flat_scalars", "thermoopt.sinks.Sink"}
"""What the library itself uses of these faces."""


@pytest.fixture(scope="module")
def results():
    spec = importlib.util.spec_from_file_location("results", ROOT / "docs" / "results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_those_of_the_benchmarks(results):
    page = results.PAGE.read_text(encoding="utf-8")
    assert page.count("<!-- table:") == len(results.MARK.findall(page)) >= 5
    assert results.refreshed(page, results.PAGE.parent) == page, "run python docs/results.py"


def test_a_table_that_is_gone_is_an_error(results, tmp_path):
    (tmp_path / "a.md").write_text("# One\n\n| x | y |\n| --- | --- |\n| 1 | 2 |\n\n# Two\n\nnothing\n")
    page = '<!-- table: a.md, "{}"{} -->\n<!-- /table -->'
    kept = results.refreshed(page.format("One", ", columns: y"), tmp_path)
    assert "| y |\n| --- |\n| 2 |" in kept
    assert results.refreshed(kept, tmp_path) == kept
    for heading, columns in (("Three", ""), ("Two", ""), ("One", ", columns: z")):
        with pytest.raises(LookupError, match=heading):
            results.refreshed(page.format(heading, columns), tmp_path)


def test_what_pages_import_is_there():
    missing, seen = [], 0
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        for name, things in re.findall(r"^ *from (thermoopt[\w.]*) import ([\w, ]+)$", text, re.MULTILINE):
            try:
                module = importlib.import_module(name)
            except ModuleNotFoundError as error:
                if not str(error.name).startswith("thermoopt"):
                    continue  # an extra that is not installed
                missing.append(f"{page.name}: {name}")
                continue
            seen += 1
            missing += [f"{page.name}: {name}.{x}" for x in things.split(", ") if not hasattr(module, x)]
    assert missing == []
    assert seen >= 10


def stands(name):
    """Whether a dotted name is a module, or an object or a declared attribute of one."""
    parts = name.split(".")
    for i in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:i]))
        except ModuleNotFoundError:
            continue
        for part in parts[i:]:
            if part in getattr(found, "__annotations__", {}):
                return True
            found = getattr(found, part, None)
        return found is not None
    return False


def test_what_docstrings_refer_to_is_there():
    wrong, seen = [], 0
    for folder in ("thermoopt", "controllers"):
        for file in (ROOT / folder).rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            for name in re.findall(r":(?:data|func|class|meth|mod|attr|exc):`~?(thermoopt[\w.]*)`", text):
                seen += 1
                wrong += [] if stands(name) else [f"{file.relative_to(ROOT)}: {name}"]
    assert wrong == []
    assert seen >= 100


@pytest.mark.slow
def test_the_site_builds_and_its_reference_is_whole(tmp_path):
    pytest.importorskip("mkdocstrings")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--quiet",
            "--site-dir",
            str(tmp_path / "site"),
        ],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    inventory = (tmp_path / "site" / "objects.inv").read_bytes().split(b"\n", 4)[4]
    documented = {line.split(" ", 1)[0] for line in zlib.decompress(inventory).decode().splitlines()}
    missing = []
    for face in ("thermoopt", *(f"thermoopt.{face}" for face in FACES)):
        package = importlib.import_module(face)
        for name in set(package.__all__) - {"__version__"}:
            # a function that its module is named after stands at its module
            home = f"{getattr(getattr(package, name), '__module__', face)}.{name}"
            if not {f"{face}.{name}", home} & documented:
                missing.append(f"{face}.{name}")
    assert sorted(set(missing) - INTERNAL) == []
    home = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert not re.search(r'(?:src|href)="https?://(?!squidfunk)', home)  # nothing is fetched from elsewhere
