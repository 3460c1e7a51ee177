"""The averages that the Triton kernels keep, against the Python meter: on a CUDA device, or interpreted.

``test_triton.py`` runs this file under Triton's interpreter.
"""

import inspect

import numpy as np
import pytest
import torch

from tests.support.triton_world import (
    BLOCK,
    DEVICE,
    HYPER,
    INTERPRETED,
    clone,
    everything,
    needs_kernels,
    needs_triton,
    plan,
    world,
)
from thermoopt.account.meter import STATE_ROWS, Meter
from thermoopt.account.reading import SKIP_CAUSES
from thermoopt.kernels import Sum
from thermoopt.kernels import triton_account as account_code
from thermoopt.kernels import triton_kernels as device_code

SIZES = [5, BLOCK + 1, 3 * BLOCK]
NUMBERS = {key: value for key, value in HYPER.items() if key != "maximize"}
LAYER = np.array([3, 0, 2])


def bound(w, ema_steps=7.0, **kw):
    """A plan of a world with a table of four layers."""
    stepper = plan(w, **kw)
    table = torch.zeros(STATE_ROWS, 4, dtype=torch.float64, device=DEVICE)
    run = torch.zeros(8, dtype=torch.float64, device=DEVICE)
    run[7] = 1 - 1 / ema_steps
    stepper.average_into(table, run, LAYER)
    return stepper, table, run


def meter(ema_steps=7.0):
    out = Meter(ema_steps)
    out.add_group("group0", list("abcd"), [1] * 4)
    return out


@needs_kernels
@pytest.mark.parametrize(("beta1", "ema_steps"), [(0.9, 7.0), (0.0, 1.0)])
def test_averages_are_the_meters(beta1, ema_steps):
    """Of steps some are not measured; rates and step counts are each tensor's own."""
    w = world(SIZES, step=1)
    twin = clone(w)
    w.steps[0].zero_()
    twin.steps[0].zero_()
    (stepper, table, run), other = bound(w, ema_steps), plan(twin)
    reference = meter(ema_steps)
    for number, measured in enumerate([True, True, False, False, True], start=1):
        lr, wd = [1e-3 * number, 2e-3, 0.0], [0.0, 0.1, 0.2]
        given = {**HYPER, "lr": lr, "weight_decay": wd, "beta1": beta1, "measure": measured}
        stepper.step(w.grads, **given, number=number)
        sums = other.step(twin.grads, **given)
        if measured:
            constants = {
                "lr": np.array(lr),
                "wd": np.array(wd),
                "beta1": np.full(3, beta1),
                "beta2": np.full(3, 0.999),
            }
            t = np.array([float(s) for s in twin.steps])
            assert reference.update(number, LAYER, sums.cpu().numpy().T, t, constants) is None
        np.testing.assert_allclose(table.cpu().numpy(), reference._state, rtol=1e-11, atol=1e-300)
    assert run.tolist() == [5, 3, 5, 0, 0, 0, 0, 1 - 1 / ema_steps]
    assert all(torch.equal(x, y) for x, y in zip(everything(w), everything(twin), strict=True))


@needs_kernels
def test_what_is_skipped():
    """Sums not finite, found_inf, lr and gradients 0: no average moves, each is counted on the device."""
    w = world(SIZES)
    stepper, table, run = bound(w)
    stepper.step(w.grads, **HYPER, number=1)
    before = table.clone()
    zeros = [torch.zeros_like(g) for g in w.grads]
    bad = [w.grads[0], w.grads[1].clone(), w.grads[2]]
    bad[1][3] = torch.nan
    flag = torch.ones((), device=DEVICE)
    stepper.step(bad, **HYPER, number=2, found_inf=flag)
    stepper.step(zeros, **{**HYPER, "lr": 0.0}, number=3)
    assert torch.equal(table, before)
    assert run.tolist()[:7] == [2, 1, 1, 0, 1, 1, 0]  # a dry step is no step
    stepper.step(zeros, **HYPER, number=3, found_inf=torch.zeros((), device=DEVICE))
    assert run.tolist()[:7] == [3, 2, 3, 0, 1, 1, 0]
    before = table.clone()
    stepper.step(bad, **HYPER, number=4)
    assert torch.equal(table, before)
    counts = dict(zip(SKIP_CAUSES, run.tolist()[3:7], strict=True))
    assert counts == {"nonfinite": 1, "found_inf": 1, "dry": 1, "no_gradients": 0}


@needs_kernels
@pytest.mark.parametrize("host", [False, True])
def test_dry_steps_write_nothing(host):
    """The sums of a step to come; step counts may lie on the host."""
    w = world(SIZES, amsgrad=True)
    kept = everything(w)
    given = clone(w)
    if host:
        given.steps = [s.cpu().double() for s in w.steps]
        given.params, given.exp_avgs, given.exp_avg_sqs = w.params, w.exp_avgs, w.exp_avg_sqs
        given.maxima = w.maxima
    stepper, table, run = bound(given if host else w, dry=True)
    for number in (1, 2):
        sums = stepper.step(w.grads, **HYPER, number=number).clone()
        assert all(torch.equal(x, y) for x, y in zip(everything(w), kept, strict=True))
        if host:
            for step in given.steps:
                step.add_(1)
    wet = clone(w)
    if host:
        for step in wet.steps:
            step.add_(1)
    assert torch.equal(plan(wet).step(wet.grads, **HYPER), sums)
    assert run[:3].tolist() == [2, 2, 2]
    assert table[Sum.D].tolist() != [0, 0, 0, 0]


@needs_kernels
def test_tables_that_do_not_fit():
    w = world(SIZES)
    stepper = plan(w)
    table, run = torch.zeros(STATE_ROWS, 4, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)
    with pytest.raises(ValueError, match="table must be contiguous float64"):
        stepper.average_into(table.float().to(DEVICE), run.to(DEVICE), LAYER)
    with pytest.raises(ValueError, match="run must hold 8"):
        stepper.average_into(table.to(DEVICE), run[:3].to(DEVICE), LAYER)


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kernel", ["settings_kernel", "adamw_kernel", "reduce_kernel", "account_kernel"])
def test_every_kernel_compiles(tmp_path, monkeypatch, kernel, capability):
    """To machine code, no GPU needed; types and optional pointers as the plan hands them over."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if "constexprs" not in inspect.signature(ASTSource).parameters:
        pytest.skip("this triton names constants differently")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    tl = triton.language
    fn = getattr(device_code, kernel, None) or getattr(account_code, kernel)
    types = dict.fromkeys(("addresses", "numels", "first_chunk", "last_chunk"), "*i64")
    types |= dict.fromkeys(
        ("settings", "out", "lr", "factor", "decay", "beta1", "beta2", "eps", "sign"), "*fp64"
    )
    types |= dict.fromkeys(("sums", "table", "run"), "*fp64")
    types |= dict.fromkeys(("chunk_tensor", "chunk_index", "columns", "flags"), "*i32")
    types |= dict.fromkeys(("partials", "found_inf", "grad_scale"), "*fp32")
    constants = {"BLOCK": 128, "COLUMNS": 14, "CHUNK": 4096, "DRY": True, "DTYPE": tl.bfloat16}
    constants |= {"AMSGRAD": True, "MEASURE": True, "ALIGNED": False}
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in fn.arg_names}
    constexprs = {(i,): constants[name] for i, name in enumerate(fn.arg_names) if name in constants}
    source = ASTSource(fn=fn, signature=signature, constexprs=constexprs)
    made = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": False}
    )
    assert len(made.asm["cubin"]) > 0
