"""Launches that repeat: what is launched is what Triton would have launched; a stand-in compiles nothing."""

import pytest

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
