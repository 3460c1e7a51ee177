"""What a run of the tests says at its end."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from typing import Any

import pytest
import torch

from tests.support.kept_signals import FOLDER, keep_signals

ON_KERNELS = "test_triton"
"""Begins the names of the files whose tests run Triton's kernels: on a CUDA device where there is one."""


def pytest_configure(config: Any) -> None:
    """Make the folder of what all processes of the run share."""
    if FOLDER not in os.environ:
        os.environ[FOLDER] = config.kept_signals = tempfile.mkdtemp()


def pytest_unconfigure(config: Any) -> None:
    """Remove it, in the process that made it."""
    if hasattr(config, "kept_signals"):
        shutil.rmtree(config.kept_signals, ignore_errors=True)
        del os.environ[FOLDER]


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Count the tests of Triton's kernels among those that run on a CUDA device, where they do."""
    if torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        for item in items:
            if item.path.name.startswith(ON_KERNELS):
                item.add_marker(pytest.mark.cuda)


def pytest_collection_finish() -> None:
    """Leave all that was imported and collected to no garbage collection.

    It is a million objects, which one takes half a second to look through; a transformers.Trainer starts one
    at the end of every training.
    """
    keep_signals()
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many tests ran on a CUDA device, and how many were left out for want of one."""
    ran = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, ()) if _is_cuda(r)]
    left = [r for r in terminalreporter.stats.get("skipped", ()) if _is_cuda(r)]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    if ran or left:
        terminalreporter.write_line(f"CUDA tests ({device}): {len(ran)} ran, {len(left)} were skipped")


def _is_cuda(report: Any) -> bool:
    return "cuda" in getattr(report, "keywords", {})
