"""What an import loads: torch, numpy and this package, nothing that takes seconds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEAVY = (
    "torch._dynamo",
    "torch._inductor",
    "sympy",
    "matplotlib",
    "scipy",
    "optuna",
    "transformers",
    "triton",
)


def run(code):
    """Words that a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_an_import_loads_nothing_heavy_and_a_function_left_alone_breaks_the_graph():
    """One after the other in one process: the first of these that loads something heavy is named."""
    statements = (
        "import thermoopt",
        "from thermoopt import *",
        "import thermoopt.cli, thermoopt.controllers",
    )
    code = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        f"for statement in {statements!r}:\n"
        "    exec(statement)\n"
        f"    loaded = [name for name in {HEAVY!r} if name in sys.modules and name not in before]\n"
        "    assert not loaded, f'{statement} loads {loaded}'\n"
        "assert 'thermoopt' in sys.modules\n"
        "from thermoopt.uncompiled import uncompiled\n"
        "@uncompiled\n"
        "def seen(x):\n"
        "    '''Words.'''\n"
        "    return torch.compiler.is_compiling()\n"
        "assert seen.__doc__ == 'Words.' and 'torch._dynamo' not in sys.modules\n"
        "f = torch.compile(lambda x: (x + 1, seen(x)), backend='eager')\n"
        "print(f(torch.ones(2))[1], f(torch.ones(2))[1], seen(1))\n"
    )
    assert run(code) == ["False"] * 3


def test_saved_runs_are_read_without_torch():
    """Loading it takes longer than to read and draw most records."""
    code = "import sys, thermoopt.cli, thermoopt.inspection; print('torch' in sys.modules)"
    assert run(code) == ["False"]


def test_every_package_is_installed():
    """A wheel holds the packages that pyproject.toml lists, an editable install all that lie there."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^packages = \[(.*?)\]$", text, flags=re.DOTALL | re.MULTILINE)
    assert listed is not None
    there = set()
    for folder, name in (
        ("thermoopt", "thermoopt"),
        ("controllers", "thermoopt.controllers"),
        ("benchmarks", "thermoopt.benchmarks"),
    ):
        for path in (ROOT / folder).rglob("__init__.py"):
            there.add(".".join((name, *path.parent.relative_to(ROOT / folder).parts)))
    assert set(re.findall(r'"([\w.]+)"', listed[1])) == there
