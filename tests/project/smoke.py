"""Of an installed wheel, torch only: README's first block gives a reading, and the native kernel is right.

``python tests/project/smoke.py``; cibuildwheel runs it (pyproject.toml).
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import torch

import thermoopt
from thermoopt.doctor import report
from thermoopt.kernels import report as kernels

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Run the block and the doctor; any error or a kernel that is missing or wrong is an exit status of 1."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    assert block is not None
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        names: dict[str, object] = {}
        exec(compile(block[1], "README.md", "exec"), names)
        optimizer = names["optimizer"]
        assert isinstance(optimizer, thermoopt.ThermoAdamW)
        assert optimizer.reading is not None
        print(
            f"backend {optimizer.backend}, torch {torch.__version__}, from {Path(thermoopt.__file__).parent}"
        )
        os.chdir(ROOT.anchor)
    assert re.search(r"^native available", kernels(), flags=re.MULTILINE), kernels()
    assert report(seconds=0.5)


if __name__ == "__main__":
    main()
