"""The native body of the impulse sums against a float64 loop, and against torch's."""

import math

import numpy as np
import pytest
import torch

from thermoopt import ThermoAdamW, autotune
from thermoopt.kernels import TravelPlan, native
from thermoopt.physics.travel import Weights
from thermoopt.tensors import TravelProbe, travel_bucket
from thermoopt.tensors.sampling import sample

KEEP, WORK, IMPULSE = 0.9, 0.3, 0.7
SHAPES = [(7, 9), (1,), (40, 30), (3, 5, 2)]

pytestmark = pytest.mark.skipif(not native.available(), reason="the native kernel is not built")


def layers(dtype=torch.float32, seed=0):
    rng = torch.Generator().manual_seed(seed)
    params = [torch.nn.Parameter(torch.randn(s, generator=rng).to(dtype)) for s in SHAPES]
    params.append(torch.nn.Parameter(torch.randn(12, 20, generator=rng).to(dtype).t()))  # strided
    return params, rng


def buffers(params, share):
    samples = [sample(p.detach(), share) for p in params]
    start = torch.cat([s.reshape(-1) for s in samples]).clone()
    return samples, start, torch.zeros(len(start)), torch.zeros(len(params), dtype=torch.float64)


def put_grads(params, rng, dtype):
    for p in params:
        p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=rng).to(dtype))


@pytest.mark.parametrize("share", [1, 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sums_are_those_of_a_float64_loop(dtype, share):
    params, rng = layers(dtype)
    samples, start, impulse, done = buffers(params, share)
    assert TravelPlan.takes(params, samples)
    plan = TravelPlan(params, samples, start, impulse, done)
    rates = [0.1, -0.2, 0.3, 0.05, 1.0]
    s = [np.zeros(x.numel()) for x in samples]
    n = np.zeros(len(params))
    scale = torch.tensor(4.0)
    for step in range(3):
        put_grads(params, rng, dtype)
        params[1].grad = None if step == 1 else params[1].grad
        params[0].grad[0, 0], params[0].grad[1, 1] = math.inf, math.nan
        at = 0
        for i, p in enumerate(params):
            x = sample(p.detach(), share).reshape(-1).double().numpy()
            x0 = start[at : at + x.size].double().numpy()
            at += x.size
            g = np.zeros(x.size)
            if p.grad is not None:
                g = sample(p.grad, share).reshape(-1).double().numpy() / 4
                g = np.where(np.isfinite(g), g, 0.0)
            s[i] = KEEP * s[i] + IMPULSE * rates[i] * g
            n[i] = KEEP * n[i] - WORK * float(rates[i] * g @ (x - x0))
        assert plan.push(rates, KEEP, WORK, IMPULSE, grad_scale=scale)
        with torch.no_grad():
            for p in params:
                p.add_(torch.randn(p.shape, generator=rng).to(dtype), alpha=0.1)
    far = [
        ((sample(p.detach(), share).reshape(-1).double() - x0.double()) ** 2).sum()
        for p, x0 in zip(params, start.split([len(x) for x in s]), strict=True)
    ]
    sums = plan.measure().numpy()
    np.testing.assert_allclose(sums[:, 0], far, rtol=1e-6)
    np.testing.assert_allclose(sums[:, 1], [np.abs(x).sum() for x in s], rtol=2e-6)
    np.testing.assert_allclose(impulse.numpy(), np.concatenate(s), rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(done.numpy(), n, rtol=1e-5, atol=1e-6)


def test_a_step_that_a_scaler_skips_adds_nothing():
    params, rng = layers()
    samples, start, impulse, done = buffers(params, 1)
    plan = TravelPlan(params, samples, start, impulse, done)
    put_grads(params, rng, torch.float32)
    assert plan.push([1.0] * 5, KEEP, WORK, IMPULSE, found_inf=torch.tensor(1.0))
    assert not impulse.any()
    assert plan.push([1.0] * 5, KEEP, WORK, IMPULSE, found_inf=torch.tensor(0.0))
    assert impulse.any()


@pytest.mark.parametrize(
    "other",
    [lambda g: g.double(), lambda g: g.to_sparse(), lambda g: g.t().contiguous().t()],
    ids=["dtype", "sparse", "strides"],
)
def test_a_gradient_that_it_cannot_read_is_left_to_torch(other):
    p = torch.nn.Parameter(torch.randn(6, 4))
    samples, start, impulse, done = buffers([p], 1)
    plan = TravelPlan([p], samples, start, impulse, done)
    grad = other(torch.randn(6, 4))
    if grad.dtype is p.dtype:
        p.grad = grad
    else:
        plan._params = [type("P", (), {"grad": grad})()]  # torch lets no such gradient be set
    assert plan.push([1.0], KEEP, WORK, IMPULSE) is False
    assert not impulse.any()


def test_moved_parameters_are_noticed():
    p = torch.nn.Parameter(torch.randn(6, 4))
    plan = TravelPlan([p], *buffers([p], 1))
    assert plan.stands
    p.data = torch.randn(6, 4)
    assert not plan.stands


@pytest.mark.parametrize("sizes", [[(50, 40), (30,)], [(300, 400), (70, 9), (11,)]])
def test_the_probe_measures_the_same_with_and_without_it(sizes, monkeypatch):
    def run():
        rng = torch.Generator().manual_seed(1)
        params = [torch.nn.Parameter(torch.randn(s, generator=rng)) for s in sizes]
        probe = TravelProbe(["distance", "impulse"])
        probe.start(params)
        for k in range(4):
            put_grads(params, rng, torch.float32)
            if k == 2:
                params[0].data = params[0].data.clone()  # a plan is made anew
            probe.push([0.1 * (i + 1) for i in range(len(params))], Weights(KEEP, WORK, IMPULSE))
            with torch.no_grad():
                for p in params:
                    p.sub_(p.grad, alpha=0.1)
        return probe.measure().travel()

    by_kernel = run()
    monkeypatch.setattr(TravelPlan, "takes", staticmethod(lambda *_: False))
    by_torch = run()
    for name in ("distance2", "work", "impulse"):
        np.testing.assert_allclose(getattr(by_kernel, name), getattr(by_torch, name), rtol=1e-5)


@pytest.mark.parametrize("late", [False, True], ids=["every gradient", "one without a gradient"])
def test_an_optimizers_step_hands_over_the_addresses_it_has_checked(late, monkeypatch):
    """The sums are those of a push of its own, also where a parameter has moved or one has no gradient."""

    def run(shared):
        rng = torch.Generator().manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(s, generator=rng)) for s in ((30, 4), (7,), (5, 5))]
        opt = ThermoAdamW(params, controller=autotune(30), measure_every=1)
        looked = []
        true = TravelPlan.grads_at
        with monkeypatch.context() as patch:
            patch.setattr(TravelPlan, "grads_at", lambda *given: (looked.append(1), true(*given))[1])
            if not shared:
                patch.setattr(travel_bucket.Bucket, "_meet", lambda self, at: None)
            for step in range(1, 9):
                put_grads(params, rng, torch.float32)
                if late and step in (4, 5):
                    params[1].grad = None
                if step == 6:
                    params[2].data = params[2].data.clone()
                opt.step()
        return opt.state_dict()["param_groups"][0]["thermo"], params, len(looked)

    (one, mine, looked), (other, theirs, each) = run(True), run(False)
    assert each == 8
    # the first step is torch's, and a plan is made where tensors are new
    assert looked <= 2
    for key in ("travel_impulse", "travel_work"):
        assert torch.equal(one[key], other[key])
        assert one[key].any()
    assert all(torch.equal(p, q) for p, q in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("shapes", [[(300, 192), (20_001,), (7, 9, 11), (40, 60)], [(3, 100), (11,), (1,)]])
@pytest.mark.parametrize(
    ("dtype", "threads"),
    [(torch.float32, 1), (torch.float32, 2), (torch.bfloat16, 2), (torch.float16, 1)],
)
def test_a_step_forms_the_same_sums_on_its_way_as_a_pass_of_its_own(dtype, shapes, threads, monkeypatch):
    """Rows that chunks cut, tables with short rows, layers without a gradient, ascent, a scaler."""
    monkeypatch.setattr(native, "SERIAL_BELOW", 0)

    def run(carried):
        rng = torch.Generator().manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(s, generator=rng).to(dtype)) for s in shapes]
        params[0].data = params[0].data.t()  # as it lies in memory
        groups = [{"params": params[:2]}, {"params": params[2:], "maximize": True}]
        opt = ThermoAdamW(groups, controller=autotune(400), backend="native")
        told = []
        with monkeypatch.context() as patch:
            if not carried:
                patch.setattr(TravelProbe, "is_carried", lambda *_: False)
            true = type(opt.controller).update
            patch.setattr(
                type(opt.controller),
                "update",
                lambda self, reading, step: (told.append(reading), true(self, reading, step))[1],
            )
            for step in range(1, 8):
                put_grads(params, rng, dtype)
                if step in (3, 4, 5):
                    params[1].grad = None
                if step > 4:  # step 5 is skipped
                    opt.grad_scale, opt.found_inf = torch.tensor(4.0), torch.tensor(float(step == 5))
                opt.step()
        out = opt.state_dict()["param_groups"]
        return [group["thermo"] for group in out], params, [r.travel for r in told if r is not None]

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        (one, mine, told), (other, theirs, same) = run(True), run(False)
    finally:
        torch.set_num_threads(before)
    # of steps 1, 3, 6 (5 is skipped), before they move and with their forces; the first is torch's
    assert [bool(travel.distance2.any()) for travel in told] == [False, True, True]
    for travel, way in zip(told, same, strict=True):
        for name in ("distance2", "impulse", "work"):
            np.testing.assert_array_equal(getattr(travel, name), getattr(way, name))
    for a, b in zip(one, other, strict=True):
        for key in ("travel_impulse", "travel_work"):
            assert torch.equal(a[key], b[key])
            assert a[key].any()
    assert all(torch.equal(p, q) for p, q in zip(mine, theirs, strict=True))
