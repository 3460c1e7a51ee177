"""Launches that repeat: what is launched is what Triton would have launched; a stand-in compiles nothing."""

import os
import subprocess
import sys

import pytest

from tests.support.triton_world import needs_triton
from thermoopt.kernels import triton_launch
from thermoopt.kernels.triton_launch import Launch


class Compiled:
    """A compiled kernel, which takes all arguments in order."""

    def __init__(self, log):
        self.log = log

    def __getitem__(self, grid):
        return lambda *args: self.log.append(("again", grid, args))


class Kernel:
    """A function made by ``triton.jit``."""

    def __init__(self, log):
        self.log = log

    def __getitem__(self, grid):
        def launch(*args, **constants):
            self.log.append(("new", grid, (*args, *constants.values())))
            return Compiled(self.log)

        return launch


@pytest.fixture
def log(monkeypatch):
    monkeypatch.setattr(triton_launch, "KEEPS", True)
    return []


def kinds(log):
    return [entry[0] for entry in log]


def test_the_same_arguments_are_not_looked_at_again(log):
    launch, kernel, a, n = Launch(), Kernel(log), object(), 10**6
    for _ in range(3):
        launch(kernel, (5, 1, 1), (a, n), {"BLOCK": 64}, num_warps=1)
    assert kinds(log) == ["new", "again", "again"]
    assert log[1][1:] == log[2][1:] == ((5, 1, 1), (a, n, 64))
    assert log[0][2][:3] == (a, n, 64)


@pytest.mark.parametrize("change", ["argument", "constant", "kernel", "number", "a user's"])
def test_anything_else_is(log, change):
    launch, kernel, a, n = Launch(), Kernel(log), object(), 10**6
    given = {"kernel": kernel, "args": (a, n), "constants": {"BLOCK": 64}, "owned": True}
    launch(given["kernel"], (5, 1, 1), given["args"], given["constants"])
    given |= {
        "argument": {"args": (object(), n)},
        "constant": {"constants": {"BLOCK": 128}},
        "kernel": {"kernel": Kernel(log)},
        "number": {"args": (a, n + 1)},
        "a user's": {"owned": False},
    }[change]
    launch(given["kernel"], (5, 1, 1), given["args"], given["constants"], owned=given["owned"])
    assert kinds(log) == ["new", "new"]
    assert log[1][2][:3] == (*given["args"], given["constants"]["BLOCK"])


def test_a_users_tensor_is_looked_at_every_time(log):
    """It may come to lie elsewhere and stay the same object."""
    launch, kernel, a = Launch(), Kernel(log), object()
    for owned in (False, False, True, True):
        launch(kernel, (1, 1, 1), (a,), {}, owned=owned)
    assert kinds(log) == ["new", "new", "new", "again"]


def test_versions_that_take_no_constants_are_left_alone(log, monkeypatch):
    monkeypatch.setattr(triton_launch, "KEEPS", False)
    launch, kernel, a = Launch(), Kernel(log), object()
    for _ in range(2):
        launch(kernel, (1, 1, 1), (a,), {})
    assert kinds(log) == ["new", "new"]


SCRIPT = """
import types
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from thermoopt.kernels.triton_kernels import reduce_kernel
from thermoopt.kernels.triton_launch import Launch

seen = []
utils = types.SimpleNamespace(
    load_binary=lambda *a: (1, 2, 0, 0, 1024), get_device_properties=lambda d: {"max_shared_mem": 1 << 18}
)
driver.set_active(types.SimpleNamespace(
    utils=utils,
    get_current_target=lambda: GPUTarget("cuda", 80, 32),
    get_current_device=lambda: 0,
    get_current_stream=lambda device: 7,
    launcher_cls=lambda source, metadata: lambda *args: seen.append(args),
))
partials, first, last = torch.zeros(64), *torch.zeros(2, 4, dtype=torch.int64)
out, settings = torch.zeros(4, 14, dtype=torch.float64), torch.zeros(4, 16, dtype=torch.float64)
launch, args = Launch(), (partials, first, last, out, settings, None, 30401)
for _ in range(2):
    launch(reduce_kernel, (4, 14, 1), args, {"COLUMNS": 14, "BLOCK": 1024})
assert launch._compiled is not None
one, other = ([x for i, x in enumerate(call) if i != 6] for call in seen)  # the seventh describes the launch
assert len(one) == len(other) > len(args)
assert all(x is y or x == y for x, y in zip(one, other)), (one, other)
"""


@needs_triton
def test_tritons_own_launch_is_repeated(tmp_path):
    """A kernel compiled for 8.0 and a driver that only takes note: all that would be launched is the same."""
    if tuple(map(int, pytest.importorskip("triton").__version__.split(".")[:2])) < (3, 4):
        pytest.skip("drivers of older versions are made otherwise")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
