"""The one-pass backend inside the optimizer: torch's fused bits, the same readings, torch for the rest."""

import copy
import os
import traceback
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import thermoopt
from tests.support.small_net import assert_same_bits, model, train
from thermoopt import ThermoAdamW
from thermoopt.adamw import backends as choice
from thermoopt.kernels import native, triton_checks
from thermoopt.physics.terms import Term

pytestmark = pytest.mark.skipif(
    not native.available() and os.environ.get("THERMOOPT_EXPECT_NATIVE") != "1",
    reason=f"native kernel: {native.unavailable_reason()}",
)

PACKAGE = Path(thermoopt.__file__).parent

# readings of float32 sums formed in another order
CLOSE = {"rtol": 2e-5, "atol": 1e-12}


def same_account(a, b, without=None):
    assert a.step == b.step
    assert a.names == b.names
    layers = [i for i, name in enumerate(a.names) if name != without]
    keep = [t for t in Term if t != Term.WORK_VAR]  # that one is a difference of nearly equal numbers
    ours, theirs = (reading.terms[keep][:, layers] for reading in (a, b))
    scale = np.abs(theirs).max(axis=1, keepdims=True).clip(1e-30)
    assert np.allclose(ours / scale, theirs / scale, **CLOSE, equal_nan=True)


def test_auto_is_native_and_measures_every_step():
    net = model()
    opt = ThermoAdamW(net.named_parameters())
    train(net, opt, 3)
    assert opt.backend == "native"
    assert opt.reading.step == 3


def test_four_frames_in_three_files_lead_from_step_to_the_c_call(monkeypatch):
    """Of ours, without the decorator that keeps torch.compile out (uncompiled.py)."""
    library, ways = native.LIBRARY, []

    def call(pointer):
        ways.append([(Path(frame.filename), frame.name) for frame in traceback.extract_stack()])
        return library.thermoopt_step(pointer)

    net = model()
    opt = ThermoAdamW(net.named_parameters())
    train(net, opt, 2)
    monkeypatch.setattr(native, "LIBRARY", SimpleNamespace(thermoopt_step=call))
    train(net, opt, 1)
    own = [
        (path.name, name)
        for path, name in ways[0]
        if path.is_relative_to(PACKAGE) and path.name != "uncompiled.py"
    ]
    assert own == [
        ("optimizer.py", "step"),
        ("optimizer.py", "_advance"),
        ("one_pass.py", "step"),
        ("native.py", "step"),
    ]


@pytest.mark.parametrize("flags", [{"foreach": False}, {"foreach": True}, {"fused": False}, {"fused": True}])
def test_flags_given_explicitly_win(flags):
    ours, theirs = model(), model()
    opt, ref = ThermoAdamW(ours.parameters(), **flags), torch.optim.AdamW(theirs.parameters(), **flags)
    assert opt.backend == "torch"
    train(ours, opt, 5)
    train(theirs, ref, 5)
    assert_same_bits(ours, opt, theirs, ref)


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"amsgrad": True},
        {"maximize": True},
        {"weight_decay": 0.0},
        {"lr": torch.tensor(3e-3)},
        {"eps": 1e-4, "betas": (0.8, 0.95)},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_of_fused_and_account_of_torch(flags, dtype):
    ours, theirs, other = model(dtype), model(dtype), model(dtype)
    options = {"measure_every": 1, "ema_steps": 5}
    opt = ThermoAdamW(ours.named_parameters(), **options, **flags)
    ref = torch.optim.AdamW(theirs.parameters(), fused=True, **flags)
    slow = ThermoAdamW(other.named_parameters(), backend="torch", fused=True, **options, **flags)
    for net, o in ((ours, opt), (theirs, ref), (other, slow)):
        train(net, o, 15)
    assert_same_bits(ours, opt, theirs, ref)
    same_account(opt.reading, slow.reading)


def test_measuring_changes_no_bit():
    nets = [model() for _ in range(3)]
    for net, every in zip(nets, (1, 4, 1000), strict=True):
        train(net, ThermoAdamW(net.parameters(), measure_every=every), 10)
    for net in nets[1:]:
        for p, q in zip(net.parameters(), nets[0].parameters(), strict=True):
            assert torch.equal(p, q)


def mixed_params():
    torch.manual_seed(0)
    return {
        "plain": torch.nn.Parameter(torch.randn(40, 3)),
        "wide": torch.nn.Parameter(torch.randn(7, dtype=torch.float64)),
        "complex": torch.nn.Parameter(torch.randn(5, dtype=torch.complex64)),
        "turned": torch.nn.Parameter(torch.randn(6, 4).t()),
        "strided": torch.nn.Parameter(torch.randn(6, 8)[:, ::2]),
        "empty": torch.nn.Parameter(torch.randn(0)),
        "half": torch.nn.Parameter(torch.randn(9).half()),
    }


def test_what_the_kernel_cannot_take_goes_to_torch_tensor_by_tensor():
    a, b = mixed_params(), mixed_params()
    opt = ThermoAdamW(list(a.items()), lr=1e-2, eps=1e-4, measure_every=1, ema_steps=3)
    ref = torch.optim.AdamW(list(b.items()), lr=1e-2, eps=1e-4)
    slow_params = mixed_params()
    slow = ThermoAdamW(
        list(slow_params.items()), lr=1e-2, eps=1e-4, measure_every=1, ema_steps=3, backend="torch"
    )
    for step in range(8):
        for name in a:
            rng = torch.Generator().manual_seed(step)
            g = torch.randn(a[name].shape, generator=rng).to(a[name].dtype)
            for p in (a[name], b[name], slow_params[name]):
                p.grad = g.clone() if not (name == "plain" and step == 4) else None
        for o in (opt, ref, slow):
            o.step()
    for name in ("wide", "complex", "strided"):
        assert torch.equal(a[name], b[name]), name  # torch's own step, bit for bit
    for name, rtol in (("plain", 1e-5), ("turned", 1e-5), ("half", 4e-3)):  # a float16 ulp is 1e-3
        assert torch.allclose(a[name].float(), b[name].float(), rtol=rtol, atol=1e-5), name
    # in float16 the fused and the looped step go apart by roundings that a reading sees
    same_account(opt.reading, slow.reading, without="half")


def test_groups_scales_and_factors():
    def build(cls, net, **kw):
        groups = [
            {"params": list(net[0].named_parameters("first")), "lr": 1e-2, "weight_decay": 0.3},
            {"params": list(net[2].named_parameters("second")), "betas": (0.7, 0.9), "amsgrad": True},
        ]
        return cls(groups, lr=2e-3, **kw)

    ours, theirs = model(), model()
    opt = build(ThermoAdamW, ours, measure_every=1)
    opt.param_groups[0]["thermo"]["lr_scale"] = 0.5
    opt.param_groups[0]["thermo"]["wd_scale"] = 0.1
    opt.set_layer_factors({"second.bias": 2.0})
    ref = torch.optim.AdamW(
        [
            {"params": list(theirs[0].parameters()), "lr": 1e-2 * 0.5, "weight_decay": 0.3 * 0.1},
            {"params": [theirs[2].weight], "betas": (0.7, 0.9), "amsgrad": True},
            {"params": [theirs[2].bias], "betas": (0.7, 0.9), "amsgrad": True, "lr": 2e-3 * 2.0},
        ],
        lr=2e-3,
        fused=True,
    )
    train(ours, opt, 8)
    train(theirs, ref, 8)
    assert_same_bits(ours, opt, theirs, ref)
    assert opt.reading.layers["second.bias"].lr_eff == pytest.approx(4e-3)
    assert opt.reading.groups[0].wd_eff == pytest.approx(0.03)


def test_gradients_that_come_and_go():
    """Layers without a gradient stand still; which ones changes from step to step."""
    ours, theirs = model(), model()
    opt, ref = ThermoAdamW(ours.parameters()), torch.optim.AdamW(theirs.parameters(), fused=True)
    for step in range(12):
        rng = torch.Generator().manual_seed(step)
        for i, (p, q) in enumerate(zip(ours.parameters(), theirs.parameters(), strict=True)):
            g = torch.randn(p.shape, generator=rng)
            p.grad, q.grad = (None, None) if (step + i) % 3 == 0 else (g, g.clone())
        opt.step()
        ref.step()
    assert_same_bits(ours, opt, theirs, ref)


def test_a_gradient_that_changes_its_layout_in_mid_run():
    torch.manual_seed(0)
    p, q = (torch.nn.Parameter(torch.ones(6, 4)) for _ in range(2))
    other, twin = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
    opt = ThermoAdamW([p, other], measure_every=1, ema_steps=1)
    ref = torch.optim.AdamW([q, twin])
    for step in range(6):
        g = torch.randn(6, 4)
        p.grad = g.t().contiguous().t() if step >= 3 else g.clone()
        q.grad = g
        other.grad = torch.randn(5)
        twin.grad = other.grad.clone()
        opt.step()
        ref.step()
    assert torch.allclose(p, q, rtol=1e-6)
    assert torch.allclose(other, twin, rtol=1e-6)
    assert opt.reading.layers["group0.0"].grad_norm == pytest.approx(float(g.norm()), rel=1e-5)


def test_data_that_moves_and_state_that_is_replaced():
    ours, theirs = model(), model()
    opt, ref = ThermoAdamW(ours.parameters()), torch.optim.AdamW(theirs.parameters(), fused=True)
    for step in range(8):
        train(ours, opt, 1, start=step)
        train(theirs, ref, 1, start=step)
        if step == 3:
            ours[0].weight.data = ours[0].weight.data.clone()
        if step == 5:
            state = opt.state[ours[2].weight]
            state["exp_avg"] = state["exp_avg"].clone()
    assert_same_bits(ours, opt, theirs, ref)


def test_checkpoints_interchange_with_fused_adamw_in_mid_run():
    theirs = model()
    ref = torch.optim.AdamW(theirs.parameters(), fused=True)
    train(theirs, ref, 5)
    ours = copy.deepcopy(theirs)
    opt = ThermoAdamW(ours.parameters())
    opt.load_state_dict(copy.deepcopy(ref.state_dict()))
    # the checkpoint's groups say fused=True, and that is then given explicitly; take the kernel all the same
    opt.param_groups[0]["fused"] = None
    train(ours, opt, 5, start=5)
    train(theirs, ref, 5, start=5)
    assert_same_bits(ours, opt, theirs, ref)
    back = copy.deepcopy(ours)
    again = torch.optim.AdamW(back.parameters(), fused=True)
    again.load_state_dict(copy.deepcopy(opt.state_dict()))
    again.param_groups[0]["fused"] = True
    train(back, again, 5, start=10)
    train(theirs, ref, 5, start=10)
    assert_same_bits(back, again, theirs, ref)


def test_resume_is_bit_for_bit():
    whole = model()
    opt = ThermoAdamW(whole.named_parameters(), lr=3e-3)
    train(whole, opt, 6)
    saved, weights = copy.deepcopy(opt.state_dict()), copy.deepcopy(whole.state_dict())
    train(whole, opt, 6, start=6)
    other = model(seed=3)
    other.load_state_dict(weights)
    resumed = ThermoAdamW(other.named_parameters(), lr=3e-3)
    resumed.load_state_dict(saved)
    train(other, resumed, 6, start=6)
    assert_same_bits(whole, opt, other, resumed)
    assert np.array_equal(opt.reading.terms, resumed.reading.terms, equal_nan=True)


def test_fused_grad_scaler_protocol_on_the_kernel():
    """backend="native" with fused=True takes grad_scale and found_inf as torch's fused step does."""
    ours, theirs = model(), model()
    opt = ThermoAdamW(ours.parameters(), fused=True, backend="native", measure_every=1)
    ref = torch.optim.AdamW(theirs.parameters(), fused=True)
    assert opt._step_supports_amp_scaling
    for step in range(6):
        rng = torch.Generator().manual_seed(step)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.grad = 64 * torch.randn(p.shape, generator=rng)
            q.grad = p.grad.clone()
        for o in (opt, ref):
            o.grad_scale, o.found_inf = torch.tensor(64.0), torch.tensor(float(step == 3))
            o.step()
    assert_same_bits(ours, opt, theirs, ref)
    assert opt.reading.skipped["found_inf"] == 1
    assert opt.reading.total.grad_norm == pytest.approx(12.0, rel=0.25)  # 143 elements, unscaled


def test_tensors_that_share_storage_are_refused_by_name():
    base = torch.randn(20)
    a, b = torch.nn.Parameter(base[:12]), torch.nn.Parameter(base[8:])
    named = [("left", a), ("right", b)]

    def steps(opt, n=2):
        for _ in range(n):
            a.grad, b.grad = torch.ones(12), torch.ones(12)
            opt.step()

    with pytest.raises(ValueError, match=r"left.*right"):
        steps(ThermoAdamW(named, backend="native"))
    auto = ThermoAdamW(named)
    with pytest.warns(RuntimeWarning, match=r"left.*right.*share memory"):
        steps(auto)
    steps(auto)  # said once
    assert auto.reading is not None


def test_sparse_gradients_are_torchs_error():
    embedding = torch.nn.Embedding(10, 3, sparse=True)
    dense = torch.nn.Parameter(torch.ones(3))
    opt = ThermoAdamW([dense, *embedding.parameters()])
    (embedding(torch.tensor([1, 2])) * dense).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        opt.step()
    assert torch.equal(dense, torch.ones(3))


def test_a_kernel_that_is_not_there(monkeypatch):
    monkeypatch.setattr(native, "available", lambda: False)
    monkeypatch.setattr(native, "unavailable_reason", lambda: "no compiler was found")
    monkeypatch.setattr(choice, "_told", set())
    with pytest.raises(RuntimeError, match=r"'native'.*no compiler was found"):
        ThermoAdamW(model().parameters(), backend="native")
    with pytest.warns(UserWarning, match="no compiler was found"):
        opt = ThermoAdamW(model().parameters())
    assert opt.backend == "torch"
    ThermoAdamW(model().parameters())  # told once


def test_auto_leaves_other_devices_to_torch():
    """The Triton kernel is chosen by name only; nothing but CPU parameters gets a kernel by itself."""
    p = torch.nn.Parameter(torch.empty(3, device="meta"))
    assert ThermoAdamW([p]).backend == "torch"


def test_triton_says_why_not():
    if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("triton may be available here")
    with pytest.raises(RuntimeError, match="triton"):
        ThermoAdamW(model().parameters(), backend="triton")


def meets_triton(monkeypatch):
    """Let the CPU ask for Triton's kernels, as CUDA does."""
    monkeypatch.setitem(choice._KINDS, "cpu", "triton")
    monkeypatch.setattr(choice, "_told", set())
    net = model()
    with pytest.warns(UserWarning, match="the triton backend is not available") as caught:
        opt = ThermoAdamW(net.parameters())
    ThermoAdamW(model().parameters())  # told once
    with pytest.raises(RuntimeError, match="backend 'triton' is not available"):
        ThermoAdamW(model().parameters(), backend="triton")
    train(net, opt, 12)
    assert (opt.backend, opt.reading.step) == ("torch", 10)  # torch's step, and measuring goes on
    (warning,) = caught
    return str(warning.message)


def test_a_device_of_too_low_capability(monkeypatch):
    kernels, checks = pytest.importorskip("thermoopt.kernels.triton"), triton_checks
    if kernels.IMPORT_ERROR:
        pytest.skip("triton is not installed")
    checks._incapable.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(checks, "INTERPRETED", False)
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        patch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        patch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
        reason = kernels.unavailable_reason()
    checks._incapable.cache_clear()
    assert reason == "Tesla T4 has compute capability 7.5, below 8.0"
    monkeypatch.setattr(kernels, "available", lambda: False)
    monkeypatch.setattr(kernels, "unavailable_reason", lambda: reason)
    assert reason in meets_triton(monkeypatch)


def test_kernels_that_do_not_compile(monkeypatch):
    kernels = pytest.importorskip("thermoopt.kernels.triton")

    def read_only(*args, **kwargs):
        raise OSError("[Errno 30] Read-only file system: '/root/.triton'\nmore")

    monkeypatch.setattr(kernels, "INTERPRETED", True)  # the trial's tensors lie on the CPU
    monkeypatch.setattr(kernels, "available", lambda: True)
    monkeypatch.setattr(kernels, "Plan", read_only)
    kernels.trial.cache_clear()
    message = meets_triton(monkeypatch)
    kernels.trial.cache_clear()
    assert (
        "its kernels do not compile: OSError: [Errno 30] Read-only file system: '/root/.triton')" in message
    )


@pytest.mark.parametrize("flags", [{"foreach": True}, {"fused": False}])
def test_a_kernel_and_a_flag_against_it(flags):
    with pytest.raises(ValueError, match="native"):
        ThermoAdamW(model().parameters(), backend="native", **flags)


def test_pickled_auto_is_auto_again(monkeypatch):
    net = model()
    opt = ThermoAdamW(net.parameters())
    train(net, opt, 2)
    monkeypatch.setattr(native, "available", lambda: False)
    monkeypatch.setattr(choice, "_told", {"native"})
    assert copy.deepcopy(opt).backend == "torch"
