"""The doctor: what it says of this machine, and that it finds a kernel that is wrong."""

from __future__ import annotations

import platform

import numpy as np
import pytest
import torch

import thermoopt
from thermoopt.doctor import report, self_test
from thermoopt.kernels import native

CPU = torch.device("cpu")


def test_report_holds_what_a_bug_report_needs():
    lines: list[str] = []
    assert report(seconds=0.0, say=lines.append)
    text = "\n".join(lines)
    for needed in (thermoopt.__version__, torch.__version__, np.__version__, platform.python_version()):
        assert needed in text
    for line in (
        "system",
        "processor",
        "threads",
        "cuda",
        "ranks",
        "packages",
        "settings",
        "native",
        "triton",
    ):
        assert any(words.startswith(line) for words in lines), line
    assert any(words.split()[:3] == ["cpu", "torch", "ok:"] for words in lines)
    assert "WRONG" not in text


@pytest.mark.skipif(not native.available(), reason="needs the native kernel")
def test_a_wrong_kernel_is_found(monkeypatch):
    right = self_test("native", CPU, 0.0)
    assert right.agrees
    assert right.ratio > 0
    step = native.Plan.step

    def wrong(self, *args, **kwargs):
        out = step(self, *args, **kwargs)
        for p in self._params:
            p.data.mul_(1 + 1e-4)
        return out

    monkeypatch.setattr(native.Plan, "step", wrong)
    verdict = self_test("native", CPU, 0.0)
    assert not verdict.agrees
    assert verdict.refusal is None
    lines: list[str] = []
    assert not report(seconds=0.0, say=lines.append)
    assert any("native  WRONG" in line for line in lines)


def test_a_backend_that_does_not_run_says_why():
    """A kernel of another device too: there the step would be torch's, and called the kernel's."""
    verdict = self_test("triton", CPU, 0.0)
    assert verdict.refusal == "its kernel is for parameters on cuda"
    assert not verdict.agrees
    assert self_test("native", torch.device("cuda"), 0.0).refusal == "its kernel is for parameters on cpu"
