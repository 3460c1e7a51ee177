"""How much a step launches on a device without one of our kernels: the CPU stands in for it."""

import collections

import numpy as np
import pytest
import torch

from tests.support.launches import WAITS, Launches
from thermoopt import Observer, ThermoAdamW, autotune
from thermoopt.adamw import backends, torch_backend, torch_sums
from thermoopt.kernels import flat_pass
from thermoopt.observer import step_hooks
from thermoopt.tensors import travel_bucket

ELEMENTS = 2 * flat_pass.ROW


@pytest.fixture
def unaided(monkeypatch):
    """Let the CPU be a CUDA device for which there is no kernel."""
    monkeypatch.setattr(backends, "dry_kernel", lambda groups: None)
    monkeypatch.setattr(step_hooks, "dry_kernel", lambda groups: None)
    monkeypatch.setattr(torch_backend, "one_device", lambda optimizer, ledger: torch.device("cpu"))
    monkeypatch.setattr(torch_sums, "is_on_device", lambda x: isinstance(x, torch.Tensor))
    monkeypatch.setattr(travel_bucket, "travel_plan", lambda *_: None)
    monkeypatch.setattr(travel_bucket, "BATCHED", frozenset(("cpu",)))


def parameters(count):
    """As many matrices and vectors; every fifth has no gradient."""
    rng = torch.Generator().manual_seed(0)
    shapes = [(ELEMENTS,) if i % 2 else (ELEMENTS // 64, 64) for i in range(count)]
    params = [torch.nn.Parameter(torch.randn(shape, generator=rng)) for shape in shapes]
    for i, p in enumerate(params):
        p.grad = None if i % 5 == 4 else 0.1 * torch.randn(p.shape, generator=rng)
    return params


def controlled(params):
    return ThermoAdamW(params, backend="torch", fused=True, measure_every=1, controller=autotune(1000))


def observed(params):
    optimizer = torch.optim.AdamW(params, fused=True)
    optimizer.observer = Observer(None, optimizer, 1)
    return optimizer


@pytest.mark.parametrize("make", [controlled, observed])
def test_launches_do_not_grow_with_tensors(unaided, monkeypatch, make):
    """Of 40 and of 400 tensors: measuring, averaging, forces, readings and the step; none is waited for."""
    counts = []
    for n in (40, 400):
        optimizer = make(parameters(n))
        for _ in range(3):
            optimizer.step()
        with Launches() as launches:
            for _ in range(5):  # one of them has a reading
                optimizer.step()
        counts.append(collections.Counter(launches.names))
    more = counts[1] - counts[0]
    # torch hands tensors with and without a gradient before to its fused step apart
    assert more.total() <= 10, more
    assert not WAITS & set(counts[1]), counts[1]
    assert 0 < counts[1].total() < 1500


def test_forces_put_together_in_few_launches_are_the_same(unaided, monkeypatch):
    """Against samples copied one by one."""
    found = []
    for kinds in (frozenset(("cpu",)), frozenset()):
        monkeypatch.setattr(travel_bucket, "BATCHED", kinds)
        params = parameters(50)
        optimizer = controlled(params)
        for step in range(8):
            for i, p in enumerate(params):
                p.grad = None if (i + step) % 4 == 3 else p.detach() * 0.3 + 0.01 * i
            optimizer.step()
        travel = optimizer._loop.probe.measure().travel()
        found.append(torch.from_numpy(np.stack([travel.distance2, travel.work, travel.impulse])))
    assert (found[0][[0, 2]] > 0).all()
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-9)
