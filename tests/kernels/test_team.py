"""A build without OpenMP, as on macOS: threads that are started for one call."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from thermoopt.kernels import native, native_library

SOURCES = Path(native_library.__file__).parent
COMPILER = shutil.which("cc")
pytestmark = pytest.mark.skipif(
    COMPILER is None or sys.platform == "win32" or not native.available(), reason="needs a C compiler"
)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    home = tmp_path_factory.mktemp("built")
    flags = "-O3 -ffp-contract=off -fno-math-errno -Wno-psabi -shared -fPIC".split()
    sources = map(str, sorted(SOURCES.glob("*.c")))
    out = "-o", str(home / "_native.so"), "-lm"
    subprocess.run([COMPILER, *flags, '-DTHERMOOPT_SOURCES="none"', *sources, *out], check=True)
    loaded, reason = native_library._load(home)
    assert loaded is not None, reason
    assert not loaded.thermoopt_openmp()
    return loaded


@pytest.fixture(autouse=True)
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def made():
    """A plan of 2 M elements, its state, and a function that takes a step with some threads."""
    random = torch.Generator().manual_seed(0)
    shapes = [(1200, 1700), (33,), (5, 7)]
    p, g, m = ([torch.randn(s, generator=random) for s in shapes] for _ in range(3))
    v = [x.square() for x in m]
    plan = native.Plan(p, m, v, [None] * 3, [torch.tensor(4.0) for _ in p])
    hyper = {"lr": 1e-3, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8}
    return [*p, *m, *v], lambda num_threads: plan.step(g, **hyper, num_threads=num_threads)


def stepped(num_threads):
    state, step = made()
    sums = step(num_threads)
    return [*state, torch.from_numpy(sums)]


def test_started_threads_give_the_same_bits(library, monkeypatch):
    expected = stepped(1)
    monkeypatch.setattr(native, "LIBRARY", library)
    monkeypatch.setattr(native_library, "LIBRARY", library)
    for threads in (1, 2, 4):
        assert all(map(torch.equal, stepped(threads), expected)), threads


def elsewhere(step, num_threads):
    """Processor time that other threads than this one take for a step."""
    start = time.process_time() - time.thread_time()
    step(num_threads)
    return time.process_time() - time.thread_time() - start


def test_started_threads_take_a_part_of_the_work(library, monkeypatch):
    """Until they have had 5 ms more than with one thread: on a busy machine, most start when all is done."""
    monkeypatch.setattr(native, "LIBRARY", library)
    monkeypatch.setattr(native_library, "LIBRARY", library)
    _, step = made()
    more, end = 0.0, time.monotonic() + 30
    while more < 0.005 and time.monotonic() < end:
        alone = elsewhere(step, 1)
        more += elsewhere(step, 4) - alone
    assert more >= 0.005


def test_a_thread_is_started_for_many_elements_only(library, monkeypatch):
    monkeypatch.setattr(native_library, "LIBRARY", library)
    least = native_library.ELEMENTS_A_STARTED_THREAD
    assert [native_library.most_threads(n, 16) for n in (0, 1, 2 * least - 1, 2 * least, 9 * least)] == [
        1,
        1,
        1,
        2,
        9,
    ]
