"""Tensors whose elements lie in another order, or where others lay: on a CUDA device, or interpreted.

``test_triton.py`` runs this file under Triton's interpreter.
"""

import pytest
import torch

from tests.support.triton_world import (
    BLOCK,
    DEVICE,
    HYPER,
    check,
    clone,
    everything,
    needs_kernels,
    plan,
    world,
)
from thermoopt import ThermoAdamW
from thermoopt.kernels import triton as kernels


@needs_kernels
def test_any_memory_order_without_gaps():
    """Channels last, and transposed: the same step and sums; their gradients may be new ones."""
    w = world([2 * 3 * 4 * 5, BLOCK + 6, 9])
    shapes = [(2, 3, 4, 5), (7, 10), (9,)]
    bend = [lambda x: x.to(memory_format=torch.channels_last), lambda x: x.t().contiguous().t(), lambda x: x]
    bent = clone(w)
    for name in ("params", "grads", "exp_avgs", "exp_avg_sqs"):
        for i, (shape, how) in enumerate(zip(shapes, bend, strict=True)):
            getattr(w, name)[i] = getattr(w, name)[i].view(shape)
            getattr(bent, name)[i] = how(getattr(bent, name)[i].view(shape))
    assert not bent.params[0].is_contiguous()
    straight, other = plan(w), plan(bent)
    for _ in range(2):
        sums, theirs = straight.step(w.grads, **HYPER), other.step(bent.grads, **HYPER)
        torch.testing.assert_close(sums, theirs, rtol=1e-6, atol=1e-6)
        for name in ("params", "exp_avgs", "exp_avg_sqs"):
            assert all(map(torch.equal, getattr(w, name), getattr(bent, name)))
        bent.grads = [g.clone() for g in bent.grads]
    with pytest.raises(ValueError, match="tensor 0: the gradient lies in memory in another order"):
        other.step([bent.grads[0].contiguous(), *bent.grads[1:]], **HYPER)


@needs_kernels
@pytest.mark.parametrize("look", [True, False])
def test_a_gradient_that_lies_otherwise_where_another_lay(look, monkeypatch):
    """Transposed, or negated lazily, at the same address."""
    if not look:
        monkeypatch.setattr(kernels.Look, "available", staticmethod(lambda: False))
    w = world([12, 7])
    for name in ("params", "grads", "exp_avgs", "exp_avg_sqs"):
        getattr(w, name)[0] = getattr(w, name)[0].view(3, 4)
    stepper = plan(w)
    stepper.step(w.grads, **HYPER)
    before = everything(w)
    bent = w.grads[0].view(4, 3).t()
    assert bent.shape == w.grads[0].shape
    with pytest.raises(ValueError, match="tensor 0: the gradient lies in memory in another order"):
        stepper.step([bent, w.grads[1]], **HYPER)
    away = torch.imag(torch.complex(w.grads[1], w.grads[1]).conj())
    for negated in (torch._neg_view(w.grads[1]), away):
        assert negated.is_neg()
        with pytest.raises(ValueError, match="tensor 1: the gradient is negated lazily"):
            stepper.step([w.grads[0], negated], **HYPER)
    assert all(torch.equal(x, y) for x, y in zip(everything(w), before, strict=True))
    stepper.step(w.grads, **HYPER)


@needs_kernels
def test_eps_of_zero():
    """The rest of a block, where v is 0, adds nothing to the sums."""
    w = world([BLOCK + 3])
    before = clone(w)
    check(w, before, plan(w).step(w.grads, **{**HYPER, "eps": 0.0}), **{**HYPER, "eps": 0.0})


@needs_kernels
def test_a_channels_last_network_is_stepped_in_one_pass():
    """Nothing of it is left to torch, whose share would be measured by operations of torch."""
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, 4, 3, device=DEVICE).to(memory_format=torch.channels_last)
    optimizer = ThermoAdamW(conv.named_parameters(), backend="triton")
    for _ in range(3):
        optimizer.zero_grad()
        x = torch.randn(2, 3, 5, 5, device=DEVICE).to(memory_format=torch.channels_last)
        conv(x).square().mean().backward()
        optimizer.step()
    (batch,) = optimizer._backend._plans._known.values()
    assert len(batch.owners) == 2
    assert optimizer.reading.step == 3


@pytest.fixture
def default_dtype(request):
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


@needs_kernels
@pytest.mark.parametrize("default_dtype", [torch.bfloat16, torch.float64], indirect=True)
def test_the_default_dtype_is_for_models(default_dtype, monkeypatch):
    """Tables and partial sums keep their own, and so do step counts."""
    sizes = [BLOCK + 3, 7]
    w = world(sizes, step=1)
    w.steps = [x.float() for x in w.steps]
    assert plan(w)._partials.dtype == torch.float32
    before = clone(w)
    check(w, before, plan(w).step(w.grads, **HYPER), **HYPER)
    kernels.trial.cache_clear()
    assert kernels.trial() is None
    p = torch.nn.Parameter(torch.ones(5, dtype=torch.float32, device=DEVICE))
    optimizer = ThermoAdamW([p], backend="triton")
    for _ in range(2):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert len(optimizer._backend._plans._known) == 1
    assert optimizer.reading.step == 2
