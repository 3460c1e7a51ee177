"""Devices that know no float64: the CPU stands in for one, on which nothing wider than float32 is made."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from thermoopt import ThermoAdamW, autotune
from thermoopt.adamw import backends
from thermoopt.physics.travel import Weights
from thermoopt.tensors import TravelProbe, precision, travel_bucket, widest

SHAPES = [(30, 7), (90,), (400, 60)]


class Narrow(TorchDispatchMode):
    """Raise where an operation makes float64, as on MPS."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor) and x.dtype == torch.float64:
                raise TypeError(f"{func}: no float64 here")
        return out


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setattr(precision, "WITHOUT_FLOAT64", frozenset(("mps", "cpu")))
    monkeypatch.setattr(travel_bucket, "travel_plan", lambda *_: None)


def test_mps_alone_is_narrow():
    assert widest(torch.device("mps")) == torch.float32
    assert widest(torch.device("cuda")) == widest(torch.device("cpu")) == torch.float64


@pytest.mark.parametrize("keep", [1.0, 0.9995])
def test_a_sum_in_float32_keeps_its_precision_over_100_000_steps(keep):
    """Against float64, to a rounding of the result; without compensation it is off by ten times that."""
    rng = np.random.default_rng(0)
    terms = rng.uniform(0.5, 1.5, (100_000, 4)).astype(np.float32)
    exact = np.zeros(4)
    total, lost, plain = (np.zeros(4, np.float32) for _ in range(3))
    forget = np.float32(1 - keep)
    for x in terms:
        exact = (1 - np.float64(forget)) * exact + x
        total, lost = precision.forgetful_sum(total, lost, forget, x)
        plain = np.float32(keep) * plain + x
    assert total.dtype == np.float32
    np.testing.assert_allclose(total, exact, rtol=1.2e-7)
    assert np.abs(plain / exact - 1).max() > 1e-6


@pytest.mark.parametrize("scaled", [False, True])
def test_forces_are_summed_without_float64(narrow, scaled):
    rng = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(s, generator=rng)) for s in SHAPES]
    with Narrow():
        probe = TravelProbe(["distance", "impulse"])
        probe.start(params)
    buckets = probe._buckets
    starts = [x.clone().double() for b in buckets for x in b.views(b.start)]
    s, n = [torch.zeros_like(x) for x in starts], np.zeros(len(params))
    keep, scaler = 0.97, {}
    if scaled:
        scaler = {"grad_scale": torch.tensor(8.0), "found_inf": torch.zeros(1)}
    for step in range(200):
        weights = Weights(keep, 0.3 + 0.001 * step, 1.0)
        rates = np.array([0.1, -0.2, 0.3])
        for p in params:
            p.grad = torch.randn(p.shape, generator=rng)
        samples = [x.clone().double() for b in buckets for x in b._samples(b.params)]
        forces = [x.clone().double() for b in buckets for x in b.views(b.forces(b.params, b.own_grads()))]
        for i, (x, x0, g) in enumerate(zip(samples, starts, forces, strict=True)):
            g = rates[i] * g / (8.0 if scaled else 1.0)
            n[i] = keep * n[i] - weights.work * float((g * (x - x0)).sum())
            s[i] = keep * s[i] + g
        lrs = rates if step % 2 else [*rates[:2], torch.tensor(rates[2])]
        with Narrow():
            probe.push(lrs, weights, **scaler)
        with torch.no_grad():
            for p in params:
                p.sub_(p.grad, alpha=0.01)
    with Narrow():
        pending = probe.measure()
    got = pending.travel()
    np.testing.assert_allclose(got.work, n * probe._scale, rtol=2e-5)
    np.testing.assert_allclose(got.impulse, [float(x.abs().sum()) for x in s] * probe._scale, rtol=1e-5)


def test_autotune_runs_there_as_elsewhere(narrow, monkeypatch):
    """Averages are the host's, in float64; the rates are those of a device with float64 to rounding."""
    monkeypatch.setattr(backends, "dry_kernel", lambda groups: None)

    def run():
        rng = torch.Generator().manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(s, generator=rng)) for s in SHAPES]
        opt = ThermoAdamW(params, controller=autotune(40), backend="torch", measure_every=1)
        for _ in range(20):
            for p in params:
                p.grad = p.detach() + 0.1 * torch.randn(p.shape, generator=rng)
            opt.step()
        (bucket,) = opt._loop.probe._buckets
        return [p.detach() for p in params], bucket.done.dtype, opt.controller.log

    mine, narrow_type, log = run()
    monkeypatch.setattr(precision, "WITHOUT_FLOAT64", frozenset())
    theirs, wide_type, other = run()
    assert (narrow_type, wide_type) == (torch.float32, torch.float64)
    assert [a.step for a in log] == [a.step for a in other] != []
    for p, q in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
