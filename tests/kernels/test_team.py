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


def stepped(num_threads, steps=1):
    """State and sums after steps of 2 M elements, and the processor time that other threads took for them."""
    random = torch.Generator().manual_seed(0)
    shapes = [(1200, 1700), (33,), (5, 7)]
    p, g, m = ([torch.randn(s, generator=random) for s in shapes] for _ in range(3))
    v = [x.square() for x in m]
    plan = native.Plan(p, m, v, [None] * 3, [torch.tensor(4.0) for _ in p])
    start = time.process_time() - time.thread_time()
    for _ in range(steps):
        sums = plan.step(
            g, lr=1e-3, weight_decay=0.1, beta1=0.9, beta2=0.99, eps=1e-8, num_threads=num_threads
        )
    return [*p, *m, *v, torch.from_numpy(sums)], time.process_time() - time.thread_time() - start


def test_started_threads_give_the_same_bits(library, monkeypatch):
    expected, _ = stepped(1)
    monkeypatch.setattr(native, "LIBRARY", library)
    monkeypatch.setattr(native_library, "LIBRARY", library)
    for threads in (1, 2, 4):
        assert all(map(torch.equal, stepped(threads)[0], expected)), threads


def test_started_threads_take_a_part_of_the_work(library, monkeypatch):
    monkeypatch.setattr(native, "LIBRARY", library)
    monkeypatch.setattr(native_library, "LIBRARY", library)
    alone = stepped(1, steps=20)[1]
    assert stepped(4, steps=20)[1] > alone + 0.005


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
