"""ThermoAdamW on the Triton kernels, its account on the device: on CUDA, or interpreted."""

import copy

import numpy as np
import pytest
import torch

from tests.support.controllers import Follow
from tests.support.triton_world import DEVICE, INTERPRETED, needs_kernels
from thermoopt import Observer, ThermoAdamW, autotune
from thermoopt.account import ledger as ledger_module
from thermoopt.adamw import one_pass, optimizer, plans
from thermoopt.kernels import triton as kernels

pytestmark = needs_kernels

STEPS = 14


def make(backend="triton", **kw):
    """Two groups of three layers, and their parameters."""
    rng = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(n, generator=rng).to(DEVICE)) for n in (70, 3, 130)]
    a, b, c = zip("abc", params, strict=True)
    groups = [{"params": [a, b]}, {"params": [c], "weight_decay": 0.5}]
    for p in params:
        p.grad = torch.zeros_like(p)
    return ThermoAdamW(groups, lr=1e-2, backend=backend, **kw), params


def give(params, step):
    """Write the gradients of a step in place, as a captured backward pass does."""
    rng = torch.Generator().manual_seed(step)
    for p in params:
        p.grad.copy_(torch.randn(p.shape, generator=rng))


def train(opt, params, steps):
    for step in steps:
        give(params, step)
        opt.step()


def test_the_account_on_the_device_is_the_hosts():
    """Averages, recorded readings and counters against those of the torch backend, whatever was skipped."""
    (ours, mine), (theirs, twins) = make(ema_steps=10), make("torch", ema_steps=10, measure_every=1)
    for step in range(1, STEPS):
        for opt, params in ((ours, mine), (theirs, twins)):
            give(params, step)
            if step == 6:
                params[1].grad[0] = torch.nan
            if step == 7:  # undo what the NaN has done
                for p, q in zip(mine, twins, strict=True):
                    for x in (p, q):
                        x.detach().nan_to_num_(0.1)
                        state = (ours if x is p else theirs).state[x]
                        state["exp_avg"].nan_to_num_(0.0)
                        state["exp_avg_sq"].nan_to_num_(0.1)
            opt.step()
    assert ours._ledger.table is not None
    assert ours.reading.step == theirs.reading.step == STEPS - 1
    np.testing.assert_allclose(ours.reading.terms, theirs.reading.terms, rtol=2e-4, atol=1e-7)
    assert ours.skipped == theirs.skipped
    assert ours.skipped["nonfinite"] == 1
    assert ours.history.steps.tolist() == theirs.history.steps.tolist()


def test_a_dry_step_is_none():
    opt, params = make()
    for group in opt.param_groups:
        group["lr"] = 0.0
    opt.step()  # a checkpoint library's: every gradient 0
    assert opt.steps == 0
    for group in opt.param_groups:
        group["lr"] = 1e-2
    train(opt, params, range(1, 4))
    for group in opt.param_groups:
        group["lr"] = 0.0
    for p in params:
        p.grad.zero_()
    opt.step()
    assert opt.skipped["dry"] == 2
    assert opt.steps == 3


def test_state_travels_and_goes_on():
    (one, mine), (other, theirs) = make(controller=autotune(200)), make(controller=autotune(200))
    train(one, mine, range(1, 6))
    with torch.no_grad():
        for p, q in zip(theirs, mine, strict=True):
            p.copy_(q)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    np.testing.assert_array_equal(one.reading.terms, other.reading.terms)
    for opt, params in ((one, mine), (other, theirs)):
        train(opt, params, range(6, STEPS))
    np.testing.assert_array_equal(one.reading.terms, other.reading.terms)
    assert all(torch.equal(p, q) for p, q in zip(mine, theirs, strict=True))


def test_nothing_is_read_before_it_is_recorded(monkeypatch):
    """Of all steps only those recorded ask the device for anything."""
    asked = []
    true = ledger_module.DeviceTable.fetch
    monkeypatch.setattr(
        ledger_module.DeviceTable, "fetch", lambda self: (asked.append(opt._ledger.run.step), true(self))[1]
    )
    opt, params = make(ema_steps=20)
    train(opt, params, range(1, STEPS))
    assert asked == [5, 9, 13]  # the first was recorded before the table was on the device
    assert opt.history.steps.tolist() == [1, *asked]


@pytest.mark.skipif(not INTERPRETED, reason="tests/adamw/test_cuda.py captures real graphs")
@pytest.mark.parametrize("lag", [0, 1])
def test_replays_take_the_rates_of_eager_steps(monkeypatch, lag):
    """A capture keeps what would be launched; a replay launches that, and Python does before_replay only."""
    monkeypatch.setattr(ledger_module, "reading_lag", lambda params: lag)
    (eager, mine), (graphed, theirs) = (
        make(controller=Follow(), ema_steps=10, capturable=True) for _ in range(2)
    )
    for opt, params in ((eager, mine), (graphed, theirs)):
        train(opt, params, range(1, 4))
    captured, launch = [], kernels.Plan._launch
    with monkeypatch.context() as patch:
        for module in (ledger_module, one_pass, optimizer, plans):
            patch.setattr(module, "capturing", lambda: True)
        patch.setattr(kernels.Plan, "_launch", lambda self, *args: captured.append((self, args)))
        graphed.step()
    ((plan, args),) = captured
    assert graphed._ledger.run.step == 3
    for step in range(4, 4 + STEPS):
        train(eager, mine, [step])
        give(theirs, step)
        graphed.before_replay()
        launch(plan, *args)
    assert all(torch.equal(p, q) for p, q in zip(mine, theirs, strict=True))
    assert eager.controller.seen == graphed.controller.seen
    assert len(eager.controller.seen) > 1
    assert eager.history.steps.tolist() == graphed.history.steps.tolist()
    np.testing.assert_array_equal(eager.reading.terms, graphed.reading.terms)
    assert graphed.steps == eager.steps == 3 + STEPS
    # an eager step goes on from there
    for opt, params in ((eager, mine), (graphed, theirs)):
        train(opt, params, [99])
    assert all(torch.equal(p, q) for p, q in zip(mine, theirs, strict=True))


@pytest.mark.skipif(not INTERPRETED, reason="tests/adamw/test_cuda.py captures real graphs")
def test_a_capture_must_be_warm(monkeypatch):
    opt, params = make(capturable=True)
    with pytest.raises(RuntimeError, match="no step of this optimizer was captured"):
        opt.before_replay()
    for module in (ledger_module, one_pass, optimizer, plans):
        monkeypatch.setattr(module, "capturing", lambda: True)
    with pytest.raises(RuntimeError, match="warm up"):
        train(opt, params, [1])


def test_an_observer_reads_with_the_same_kernel(monkeypatch):
    """In dry steps, for torch's own AdamW; nothing of the optimizer is written."""
    from thermoopt.observer import step_hooks

    monkeypatch.setattr(step_hooks, "dry_kernel", lambda groups: kernels)
    runs = []
    for observed in (True, False):
        _, params = make("torch")
        opt = torch.optim.AdamW(params, lr=1e-2)
        observer = Observer(None, opt, 2, ema_steps=8) if observed else None
        train(opt, params, range(1, STEPS))
        runs.append((params, observer))
    (mine, observer), (twins, _) = runs
    assert all(torch.equal(p, q) for p, q in zip(mine, twins, strict=True))
    assert observer._source._ledger.table is not None
    _, params = make("torch")
    opt = torch.optim.AdamW(params, lr=1e-2)
    monkeypatch.setattr(step_hooks, "dry_kernel", lambda groups: None)
    reference = Observer(None, opt, 2, ema_steps=8)
    train(opt, params, range(1, STEPS))
    assert observer.reading.step == reference.reading.step == STEPS - 1 - (STEPS - 1) % 2
    np.testing.assert_allclose(observer.reading.terms, reference.reading.terms, rtol=2e-4, atol=1e-8)


def test_a_trial_finds_what_does_not_compile(monkeypatch):
    kernels.trial.cache_clear()
    assert kernels.trial() is None
    kernels.trial.cache_clear()

    def broken(self, *args):
        raise RuntimeError("Failed to find C compiler.\nmore")

    monkeypatch.setattr(kernels.Plan, "_launch", broken)
    assert "do not compile: RuntimeError: Failed to find C compiler." in kernels.trial()
    kernels.trial.cache_clear()
