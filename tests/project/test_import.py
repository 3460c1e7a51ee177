"""What an import loads: torch, numpy and this package, nothing that takes seconds."""

from __future__ import annotations

import subprocess
import sys

import pytest

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


@pytest.mark.parametrize(
    "statement",
    ["import thermoopt", "from thermoopt import *", "import thermoopt.cli, thermoopt.controllers"],
)
def test_an_import_loads_nothing_heavy(statement):
    code = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        f"{statement}\n"
        f"print(*(name for name in {HEAVY!r} if name in sys.modules and name not in before))\n"
        "print('thermoopt' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"]


def test_a_function_left_alone_breaks_the_graph():
    code = (
        "import sys, torch\n"
        "from thermoopt.uncompiled import uncompiled\n"
        "@uncompiled\n"
        "def seen(x):\n"
        "    '''Words.'''\n"
        "    return torch.compiler.is_compiling()\n"
        "assert seen.__doc__ == 'Words.' and 'torch._dynamo' not in sys.modules\n"
        "f = torch.compile(lambda x: (x + 1, seen(x)), backend='eager')\n"
        "print(f(torch.ones(2))[1], f(torch.ones(2))[1], seen(1))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"] * 3
