"""The Triton body of the impulse sums, on CUDA or interpreted, against a float64 loop and torch's."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.support.triton_world import DEVICE, INTERPRETED, needs_kernels
from thermoopt.kernels import travel_plans
from thermoopt.kernels.triton_travel import BLOCK, DeviceTravelPlan
from thermoopt.physics.travel import Weights
from thermoopt.tensors import TravelProbe, travel_bucket
from thermoopt.tensors.sampling import sample

pytestmark = needs_kernels

KEEP, WORK, IMPULSE = 0.9, 0.3, 0.7
SHAPES = [(7, 9), (1,), (40, 30), (BLOCK + 1,), (), (3, 5, 2)]


def layers(dtype=torch.float32):
    rng = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(s, generator=rng).to(DEVICE, dtype)) for s in SHAPES]
    params.append(torch.nn.Parameter(torch.randn(12, 30, generator=rng).to(DEVICE, dtype).t()))  # strided
    return params, rng


def plan_of(params, share=1):
    params = [p for p in params if sample(p.detach(), share).numel()]
    samples = [sample(p.detach(), share) for p in params]
    start = torch.cat([s.reshape(-1) for s in samples]).clone()
    impulse = torch.zeros(len(start), device=DEVICE)
    done = torch.zeros(len(params), dtype=torch.float64, device=DEVICE)
    assert DeviceTravelPlan.takes(params, samples)
    return DeviceTravelPlan(params, samples, start, impulse, done), params, samples, start, impulse, done


def put_grads(params, rng):
    for p in params:
        p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=rng))


def host(x):
    return x.detach().reshape(-1).double().cpu().numpy()


@pytest.mark.parametrize("share", [1, 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sums_are_those_of_a_float64_loop(dtype, share):
    params, rng = layers(dtype)
    plan, params, samples, start, impulse, done = plan_of(params, share)
    rates = np.array([0.1, -0.2, 0.3, 0.05, 1.0, 0.7, 0.4][: len(params)])
    s, n = np.zeros(len(start)), np.zeros(len(params))
    scale = torch.tensor(4.0, device=DEVICE)
    for step in range(3):
        put_grads(params, rng)
        params[1].grad = None if step == 1 else params[1].grad
        params[0].grad[0, 0], params[0].grad[1, 1] = math.inf, math.nan
        at = 0
        for i, (p, x) in enumerate(zip(params, samples, strict=True)):
            x0 = host(start[at : at + x.numel()])
            g = np.zeros(x.numel())
            if p.grad is not None:
                g = host(sample(p.grad, share)) / 4
                g = np.where(np.isfinite(g), g, 0.0)
            s[at : at + x.numel()] = KEEP * s[at : at + x.numel()] + IMPULSE * rates[i] * g
            n[i] = KEEP * n[i] - WORK * float(rates[i] * g @ (host(x) - x0))
            at += x.numel()
        # a rate on the device multiplies
        base = torch.tensor(0.5, device=DEVICE) if step else None
        assert plan.push(rates if base is None else 2 * rates, KEEP, WORK, IMPULSE, scale, None, base)
        with torch.no_grad():
            for p in params:
                p.add_(torch.randn(p.shape, generator=rng).to(p), alpha=0.1)
    np.testing.assert_allclose(host(impulse), s, rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(host(done), n, rtol=1e-5, atol=1e-6)
    cuts = np.cumsum([0, *(x.numel() for x in samples)])
    got, away = host(plan.measure()).reshape(-1, 2), np.concatenate([host(x) for x in samples]) - host(start)
    for i, (a, b) in enumerate(pairwise(cuts)):
        assert got[i] == pytest.approx([(away[a:b] ** 2).sum(), np.abs(s[a:b]).sum()], rel=1e-5)


def test_a_step_that_a_scaler_skips_adds_nothing_and_forgets_nothing():
    params, rng = layers()
    plan, *_, impulse, done = plan_of(params)
    put_grads(params, rng)
    with torch.no_grad():
        for p in params:
            p.add_(1.0)
    rates = np.ones(len(params))
    for flag, moves in ((1.0, False), (0.0, True), (1.0, False)):
        before = impulse.clone(), done.clone()
        assert plan.push(rates, KEEP, WORK, IMPULSE, found_inf=torch.tensor(flag, device=DEVICE))
        assert (not torch.equal(impulse, before[0])) is moves
        assert (not torch.equal(done, before[1])) is moves


def test_what_it_cannot_read_is_left_to_torch():
    p = torch.nn.Parameter(torch.randn(6, 4, device=DEVICE))
    plan, *_, impulse, _ = plan_of([p])
    p.grad = torch.randn(4, 6, device=DEVICE).t()
    assert plan.push(np.ones(1), KEEP, WORK, IMPULSE) is False
    assert not impulse.any()
    assert plan.stands
    p.data = torch.randn(6, 4, device=DEVICE)
    assert not plan.stands


def test_a_replay_takes_the_rates_that_were_put_last(monkeypatch):
    """What a graph captures of a push is its launch; rates and weights lie on the device."""
    ours, rng = layers()
    one, ours, *_, impulse, done = plan_of(ours)
    put_grads(ours, rng)
    with torch.no_grad():
        for p in ours:
            p.add_(0.5)
    rates = np.linspace(0.1, 0.7, len(ours))
    assert one.push(rates, KEEP, WORK, IMPULSE)
    kept = impulse.clone(), done.clone()
    one.put(0.5 * rates, 0.8, 2.0, 3.0)
    one._launch(None, None, None)
    replayed = impulse.clone(), done.clone()
    impulse.copy_(kept[0])
    done.copy_(kept[1])
    assert one.push(0.5 * rates, 0.8, 2.0, 3.0)
    assert torch.equal(impulse, replayed[0])
    assert torch.equal(done, replayed[1])


@pytest.mark.parametrize("sizes", [[(50, 40), (30,)], [(300, 400), (70, 9), (11,)]])
def test_the_probe_measures_the_same_with_and_without_it(sizes, monkeypatch):
    def run(plan):
        monkeypatch.setattr(travel_bucket, "travel_plan", plan)
        rng = torch.Generator().manual_seed(1)
        params = [torch.nn.Parameter(torch.randn(s, generator=rng).to(DEVICE)) for s in sizes]
        probe = TravelProbe(["distance", "impulse"])
        probe.start(params)
        lrs = np.array([0.1 * (i + 1) for i in range(len(params))])
        for k in range(4):
            put_grads(params, rng)
            if k == 2:
                params[0].data = params[0].data.clone()  # a plan is made anew
            probe.push(lrs, Weights(KEEP, WORK, IMPULSE))
            with torch.no_grad():
                for p in params:
                    p.sub_(p.grad, alpha=0.1)
        return probe.measure().travel()

    by_kernel = run(DeviceTravelPlan if INTERPRETED else travel_plans.travel_plan)
    by_torch = run(lambda *_: None)
    for name in ("distance2", "work", "impulse"):
        np.testing.assert_allclose(getattr(by_kernel, name), getattr(by_torch, name), rtol=1e-5)


def test_a_lazily_negated_gradient_is_not_read():
    """Its memory holds the numbers with the other sign."""
    params, rng = layers()
    plan, params, _, _, impulse, _ = plan_of(params)
    put_grads(params, rng)
    params[0].grad = torch._neg_view(params[0].grad)
    assert params[0].grad.is_contiguous()
    assert not plan.push(np.ones(len(params)), KEEP, WORK, IMPULSE)
    assert not impulse.any()
