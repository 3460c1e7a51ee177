"""ThermoAdamW and Observer on a CUDA device: bits, accounts, graphs, and nothing that waits."""

import copy
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from tests.support.controllers import Follow
from thermoopt import Observer, ThermoAdamW, autotune
from thermoopt.adamw import backends
from thermoopt.kernels import Sum, reference_step
from thermoopt.kernels import triton as kernels
from thermoopt.physics.travel import Weights
from thermoopt.tensors import TravelProbe, travel_bucket

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
needs_triton = pytest.mark.skipif(not kernels.available(), reason=str(kernels.unavailable_reason()))

SIZES = [(300, 70), (5,), (64, 64), (1,), (4097,)]


def params(dtype=torch.float32, device="cuda"):
    rng = torch.Generator().manual_seed(0)
    out = [torch.nn.Parameter(torch.randn(s, generator=rng).to(device, dtype)) for s in SIZES]
    for p in out:
        p.grad = torch.zeros_like(p)
    return out


def named(ps):
    return [(f"layer{i}", p) for i, p in enumerate(ps)]


def give(ps, step):
    rng = torch.Generator().manual_seed(step)
    for p in ps:
        p.grad.copy_(torch.randn(p.shape, generator=rng))


def train(opt, ps, steps):
    for step in steps:
        give(ps, step)
        opt.step()


@contextmanager
def no_waiting():
    """Make operations that wait for the device fail. The mode's own warning must not: it would stay set."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        try:
            torch.cuda.set_sync_debug_mode("error")
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_auto_takes_triton_and_steps_as_fused(dtype):
    mine, theirs = params(dtype), params(dtype)
    ours, fused = ThermoAdamW(named(mine), lr=1e-2), torch.optim.AdamW(theirs, lr=1e-2, fused=True)
    train(ours, mine, range(1, 12))
    train(fused, theirs, range(1, 12))
    assert ours.backend == "triton"
    assert ours.measure_every == 1
    most = 1e-5 if dtype == torch.float32 else 2e-2
    apart = torch.cat(
        [((p - q).abs() > most + most * q.abs()).flatten() for p, q in zip(mine, theirs, strict=True)]
    )
    # in bfloat16 a moment rounded apart moves a weight apart now and then: torch's own two ways, 1 in 25,000
    assert apart.float().mean() <= (0 if dtype == torch.float32 else 1e-3)


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("flags", [{}, {"fused": True}, {"foreach": True}])
def test_torch_backends_carry_torchs_bits(flags, kernel, monkeypatch):
    if not kernel:
        monkeypatch.setattr(backends, "dry_kernel", lambda groups: None)
    mine, theirs = params(), params()
    ours = ThermoAdamW(named(mine), lr=1e-2, backend="torch", measure_every=2, **flags)
    train(ours, mine, range(1, 12))
    train(torch.optim.AdamW(theirs, lr=1e-2, **flags), theirs, range(1, 12))
    assert all(torch.equal(p, q) for p, q in zip(mine, theirs, strict=True))
    assert ours.reading.step == 10


@pytest.mark.parametrize("backend", [pytest.param("triton", marks=needs_triton), "torch", "flat"])
def test_readings_are_the_hosts(backend, monkeypatch):
    """The same steps on CPU, where the Python meter or the native kernel averages."""
    if backend == "flat":
        monkeypatch.setattr(backends, "dry_kernel", lambda groups: None)
    mine, theirs = params(), params(device="cpu")
    name = "torch" if backend == "flat" else backend
    ours = ThermoAdamW(named(mine), lr=1e-2, backend=name, measure_every=1, ema_steps=10)
    host = ThermoAdamW(named(theirs), lr=1e-2, backend="torch", measure_every=1, ema_steps=10)
    train(ours, mine, range(1, 16))
    train(host, theirs, range(1, 16))
    assert ours._ledger.table is not None
    assert ours.reading.step == host.reading.step == 15
    np.testing.assert_allclose(ours.reading.terms, host.reading.terms, rtol=1e-3, atol=1e-6)
    assert ours.history.steps.tolist() == host.history.steps.tolist()


@pytest.mark.parametrize("kernel", [True, False])
def test_an_observer_of_fused_adamw(kernel, monkeypatch):
    if not kernel:
        from thermoopt.observer import step_hooks

        monkeypatch.setattr(step_hooks, "dry_kernel", lambda groups: None)
    readings = []
    for device in ("cuda", "cpu"):
        ps = params(device=device)
        opt = torch.optim.AdamW(ps, lr=1e-2, fused=True)
        observer = Observer(None, opt, 2, ema_steps=8)
        train(opt, ps, range(1, 14))
        readings.append(observer.reading)
    assert readings[0].step == readings[1].step == 12
    np.testing.assert_allclose(readings[0].terms, readings[1].terms, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("tuned", [False, True], ids=["monitor", "autotune"])
@pytest.mark.parametrize("flags", [{}, {"fused": True}, {"backend": "torch"}])
def test_a_step_waits_for_nothing(flags, tuned):
    ps = params()
    opt = ThermoAdamW(named(ps), lr=1e-2, controller=autotune(5000) if tuned else None, **flags)
    for p in ps:
        p.grad.normal_()
    for _ in range(25):
        opt.step()
    with no_waiting():
        for _ in range(1000):
            opt.step()
    assert opt.steps == 1025


def captured(opt, lr=None):
    """Warm up on a side stream, as torch wants it, and capture a step, at another lr if one is given."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            opt.step()
    torch.cuda.current_stream().wait_stream(stream)
    opt.param_groups[0]["lr"] = opt.param_groups[0]["lr"] if lr is None else lr
    with torch.cuda.graph(graph):
        opt.step()
    return graph


@pytest.mark.parametrize("backend", [pytest.param("triton", marks=needs_triton), "torch"])
def test_replays_are_measured(backend):
    mine, theirs = params(), params()
    make = {"lr": torch.tensor(1e-2, device="cuda"), "capturable": True, "backend": backend, "ema_steps": 10}
    opt, eager = ThermoAdamW(named(mine), **make), ThermoAdamW(named(theirs), measure_every=1, **make)
    give(mine, 0)
    graph = captured(opt)
    train(eager, theirs, [0, 0, 0])
    for step in range(1, 20):
        give(mine, step)
        graph.replay()
        train(eager, theirs, [step])
    torch.cuda.synchronize()
    for p, q in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p, q)
    assert opt.steps == eager.steps == 22
    assert opt.reading.step == 22
    np.testing.assert_allclose(opt.reading.terms, eager.reading.terms, rtol=1e-5, atol=1e-9)


@needs_triton
def test_replays_that_are_queued_up_take_each_its_own_rate(monkeypatch):
    """A graph copies its rates from the host: the next ones must not overtake them, nor wait for them."""
    mine, theirs = params(), params()
    graphed, eager = (ThermoAdamW(named(ps), lr=1e-2, capturable=True) for ps in (mine, theirs))
    for ps in (mine, theirs):
        give(ps, 0)
    graph = captured(graphed, lr=2e-2)
    lrs = [1e-2 / k for k in range(1, 9)]
    for lr in [1e-2] * 3 + lrs:
        eager.param_groups[0]["lr"] = lr
        eager.step()
    with monkeypatch.context() as patch, no_waiting():
        patch.setattr(torch.cuda, "synchronize", lambda device=None: pytest.fail("it waits"))
        torch.cuda._sleep(50_000_000)
        for lr in lrs:
            graphed.param_groups[0]["lr"] = lr
            graphed.before_replay()
            graph.replay()
    assert graphed.steps == eager.steps == 11
    assert all(torch.equal(p, q) for p, q in zip(mine, theirs, strict=True))


@needs_triton
@pytest.mark.parametrize("controller", [Follow, lambda: autotune(60)], ids=["follow", "autotune"])
def test_replays_take_the_controllers_rates(controller):
    mine, theirs = params(), params()
    opts = [
        ThermoAdamW(named(ps), lr=1e-2, capturable=True, controller=controller(), ema_steps=10)
        for ps in (mine, theirs)
    ]
    graphed, eager = opts
    give(mine, 0)
    graph = captured(graphed)
    train(eager, theirs, [0, 0, 0])
    for step in range(1, 40):
        give(mine, step)
        graphed.before_replay()
        graph.replay()
        train(eager, theirs, [step])
    torch.cuda.synchronize()
    assert all(torch.equal(p, q) for p, q in zip(mine, theirs, strict=True))
    for name in ("seen", "log"):
        if hasattr(eager.controller, name):
            assert getattr(graphed.controller, name) == getattr(eager.controller, name)
    assert graphed.history.steps.tolist() == eager.history.steps.tolist() != []


@pytest.mark.parametrize("kernel", [pytest.param(True, marks=needs_triton), False])
@pytest.mark.parametrize("sizes", [SIZES, [(40, 30), (7,)]], ids=["sampled", "whole"])
def test_the_sums_of_forces_are_the_hosts(sizes, kernel, monkeypatch):
    if not kernel:
        monkeypatch.setattr(travel_bucket, "travel_plan", lambda *_: None)
    sums = []
    for device in ("cuda", "cpu"):
        rng = torch.Generator().manual_seed(0)
        ps = [torch.nn.Parameter(torch.randn(s, generator=rng).to(device)) for s in sizes]
        probe = TravelProbe(["distance", "impulse"])
        probe.start(ps)
        for step in range(4):
            for p in ps:
                p.grad = torch.randn(p.shape, generator=rng).to(device)
            probe.push([0.1 * (i + 1) for i in range(len(ps))], Weights(0.9, 0.3, 1.5**step))
            with torch.no_grad():
                for p in ps:
                    p.sub_(p.grad, alpha=0.1)
        sums.append(probe.measure().travel())
    for name in ("distance2", "work", "impulse"):
        np.testing.assert_allclose(getattr(sums[0], name), getattr(sums[1], name), rtol=1e-4)


@needs_triton
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_a_capture_must_be_warm_and_capturable():
    ps = params()
    opt = ThermoAdamW(named(ps), capturable=True)
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="warm up"), torch.cuda.graph(graph):
        opt.step()


def test_state_travels():
    mine, theirs = params(), params()
    one, other = (ThermoAdamW(named(ps), lr=1e-2, controller=autotune(400)) for ps in (mine, theirs))
    train(one, mine, range(1, 8))
    with torch.no_grad():
        for p, q in zip(theirs, mine, strict=True):
            p.copy_(q)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    np.testing.assert_array_equal(one.reading.terms, other.reading.terms)
    train(one, mine, range(8, 20))
    train(other, theirs, range(8, 20))
    assert all(torch.equal(p, q) for p, q in zip(mine, theirs, strict=True))


def test_a_scaler_that_finds_infinities():
    ps = params()
    opt = ThermoAdamW(named(ps), lr=1e-2)
    scaler = torch.amp.GradScaler("cuda", init_scale=4.0, growth_interval=1000)
    for step in range(1, 6):
        give(ps, step)
        for p in ps:
            p.grad.mul_(scaler.scale(torch.ones((), device="cuda")))
        if step == 3:
            ps[0].grad[0, 0] = torch.inf
        scaler.step(opt)
        scaler.update()
    assert opt.reading is not None
    assert opt.skipped["nonfinite"] == 0
    assert all(torch.isfinite(p).all() for p in ps)


@needs_triton
def test_two_runs_give_the_same_bits_and_readings():
    runs = []
    for _ in range(2):
        ps = params()
        opt = ThermoAdamW(named(ps), lr=1e-2)
        train(opt, ps, range(1, 8))
        runs.append(([p.detach().clone() for p in ps], opt.reading.terms))
    assert all(torch.equal(p, q) for p, q in zip(runs[0][0], runs[1][0], strict=True))
    np.testing.assert_array_equal(runs[0][1], runs[1][1])


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_are_those_of_float64(dtype):
    """Tensors longer than a chunk, one that begins off 16 bytes, and a maximum under amsgrad."""
    rng = torch.Generator().manual_seed(0)
    shapes = [(1 << 17,), (4097,), (5,)]
    p, g, m = ([torch.randn(s, generator=rng).to("cuda", dtype) for s in shapes] for _ in range(3))
    p[1], g[1] = (torch.cat([x[1][:1], x[1]])[1:] for x in (p, g))
    v = [x.square() for x in m]
    top = [2 * x for x in v]
    steps = [torch.full((), 3.0, device="cuda") for _ in p]
    cpu = [[x.cpu().clone() for x in column] for column in (p, g, m, v, top, steps)]
    size = [[x.abs() for x in column] for column in cpu]
    numbers = {"lr": 1e-2, "weight_decay": 0.1, "eps": 1e-8, "maximize": False}
    plan = kernels.Plan(p, m, v, top, steps)
    sums = plan.step(g, **numbers, beta1=0.9, beta2=0.99).cpu()
    true, absolute = (reference_step(*x, betas=(0.9, 0.99), **numbers) for x in (cpu, size))
    assert ((sums - true).abs() <= 1e-6 * absolute).all()
    for x, y in zip((*p, *m, *v, *top), (*cpu[0], *cpu[2], *cpu[3], *cpu[4]), strict=True):
        close = {"rtol": 2e-6, "atol": 2e-6} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 1e-2}
        torch.testing.assert_close(x.cpu(), y, **close)


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available() and torch.cuda.mem_get_info()[0] < 40 << 30, reason="40 GB")
def test_more_elements_than_32_bits_count():
    n = (1 << 31) + 5
    p, g, m, v = (torch.full((n,), x, dtype=torch.bfloat16, device="cuda") for x in (1.0, 1.0, 0.0, 0.0))
    steps = [torch.zeros((), device="cuda")]
    numbers = {"lr": 0.5, "weight_decay": 0.0, "beta1": 0.9, "beta2": 0.999, "eps": 0.0, "maximize": False}
    sums = kernels.Plan([p], [m], [v], [None], steps).step([g], **numbers)
    assert sums[0, Sum.D].item() == n
    assert sums[0, Sum.GG].item() == pytest.approx(n, rel=1e-6)
    for k in (0, 1 << 30, (1 << 31) - 1, 1 << 31, n - 1):
        assert p[k].item() == 0.5


@needs_triton
def test_gradients_of_real_backward_passes():
    """New tensors in every step, a layer without one now and then, channels last: as torch's fused AdamW."""
    nets, opts = [], []
    for cls in (ThermoAdamW, torch.optim.AdamW):
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Conv2d(3, 10, 3),
            torch.nn.Flatten(),
            torch.nn.Linear(10 * 36, 10),
            torch.nn.Linear(10, 1),
        )
        nets.append(net.cuda().to(memory_format=torch.channels_last))
        fused = {} if cls is ThermoAdamW else {"fused": True}
        opts.append(cls(nets[-1].parameters(), lr=1e-3, **fused))
    for step in range(30):
        x = torch.randn(16, 3, 8, 8, device="cuda").to(memory_format=torch.channels_last)
        for net, opt in zip(nets, opts, strict=True):
            opt.zero_grad()
            out = net[:3](x) if step % 7 == 3 else net(x)
            out.square().mean().backward()
            opt.step()
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)
    assert opts[0].steps == 30
    assert opts[0].backend == "triton"


@needs_triton
def test_steps_on_another_stream():
    """What a step sends to the device is ordered with its kernels on the stream that is current."""
    mine, theirs = params(), params()
    ours, other = ThermoAdamW(named(mine), lr=1e-2), ThermoAdamW(named(theirs), lr=1e-2)
    stream = torch.cuda.Stream()
    for step in range(1, 12):
        give(mine, step)
        give(theirs, step)
        for opt in (ours, other):
            opt.param_groups[0]["lr"] = 1e-2 / step
        ours.step()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(1_000_000)
            other.step()
        torch.cuda.current_stream().wait_stream(stream)
    assert all(torch.equal(p, q) for p, q in zip(mine, theirs, strict=True))
    np.testing.assert_array_equal(ours.reading.terms, other.reading.terms)


@needs_triton
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one device")
@pytest.mark.parametrize("both", [False, True])
def test_parameters_of_another_device_than_the_current_one(both):
    mine, theirs = params(device="cuda:1"), params()
    if both:
        mine[1] = torch.nn.Parameter(mine[1].detach().to("cuda:0"))
        mine[1].grad = torch.zeros_like(mine[1])
    ours, other = ThermoAdamW(named(mine), lr=1e-2), ThermoAdamW(named(theirs), lr=1e-2)
    for step in range(1, 6):
        give(mine, step)
        give(theirs, step)
        ours.step()
        other.step()
    assert torch.cuda.current_device() == 0
    for p, q in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p.cpu(), q.cpu())
    np.testing.assert_allclose(ours.reading.terms, other.reading.terms, rtol=1e-6)


def test_a_triton_that_does_not_compile(monkeypatch):
    """One warning; torch's step, and measuring goes on."""
    monkeypatch.setattr(kernels, "trial", lambda: "its kernels do not compile: OSError: read-only cache")
    monkeypatch.setattr(kernels, "available", lambda: True)
    monkeypatch.setattr(backends, "_told", set())
    ps = params()
    with pytest.warns(UserWarning, match="triton backend is not available .*read-only cache"):
        opt = ThermoAdamW(named(ps), lr=1e-2)
    train(opt, ps, range(1, 12))
    assert opt.backend == "torch"
    assert opt.reading.step == 10
