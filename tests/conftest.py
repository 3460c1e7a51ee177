"""What a run of the tests says at its end."""

from __future__ import annotations

from typing import Any

import torch


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many tests ran on a CUDA device, and how many were left out for want of one."""
    ran = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, ()) if _is_cuda(r)]
    left = [r for r in terminalreporter.stats.get("skipped", ()) if _is_cuda(r)]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    if ran or left:
        terminalreporter.write_line(f"CUDA tests ({device}): {len(ran)} ran, {len(left)} were skipped")


def _is_cuda(report: Any) -> bool:
    return "cuda" in getattr(report, "keywords", {})
