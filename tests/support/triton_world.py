"""Tensors for the Triton kernels, on a CUDA device or under Triton's interpreter, and their reference."""

import importlib.util
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from thermoopt.kernels import Sum, reference_step
from thermoopt.kernels import triton as kernels

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
needs_kernels = pytest.mark.skipif(
    not kernels.available(), reason=f"no Triton kernels in this process: {kernels.unavailable_reason()}"
)

BLOCK, BLOCKS_PER_CHUNK = 64, 2
EDGES = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7]
HYPER = {"lr": 1e-2, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "maximize": False}

FLOAT32 = 2.0**-24
"""Unit roundoff of the arithmetic."""
STORED = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""Unit roundoff of what is stored; two roundings of nearly the same number lie at most twice that apart."""
SUMS = 1e-6
"""Relative error of a sum, against the sum of its absolute terms: what every one-pass kernel promises."""


def _prepare_language_once():
    """Let the interpreter prepare ``triton.language`` for the functions of a module when one is first called.

    It does so at each call of a function by a kernel, which finds nothing left to change from the second on
    (what it changes for a kernel, it changes at the launch), and takes a third of the time of a launch.
    """
    interpreter = importlib.import_module("triton.runtime.interpreter")
    true, prepared = interpreter.InterpretedFunction.__call__, set()

    def call(self, *args, **kwargs):
        module = self.fn.__module__
        if module in prepared:
            return self.rewrite()(*args, **kwargs)
        prepared.add(module)
        return true(self, *args, **kwargs)

    interpreter.InterpretedFunction.__call__ = call


def _round_bfloat16():
    """Let the interpreter round to bfloat16 as devices do, to the nearest; it cuts bits off (Triton 3.7)."""
    interpreter = importlib.import_module("triton.runtime.interpreter")
    cut = interpreter._convert_float

    def convert(data, source, target, rounding_mode):
        name = getattr(target, "name", ""), getattr(source, "name", "")
        if name != ("bf16", "fp32"):
            return cut(data, source, target, rounding_mode)
        bits = np.ascontiguousarray(data, np.float32).view(np.uint32)
        rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
        return np.where(np.isfinite(data), rounded, bits >> 16 | (np.isnan(data) << 6)).astype(np.uint16)

    interpreter._convert_float = convert


if INTERPRETED:
    _prepare_language_once()
    _round_bfloat16()


def world(sizes, dtype=torch.float32, amsgrad=False, seed=0, step=3):
    """Tensors mid-run, tensor i at step ``step * i``."""
    rng = torch.Generator().manual_seed(seed)

    def draw(scale, make=torch.randn):
        return [(scale * make(n, generator=rng)).to(DEVICE, dtype) for n in sizes]

    params, grads, exp_avgs, exp_avg_sqs = draw(1), draw(0.5), draw(0.1), draw(0.05, torch.rand)
    return SimpleNamespace(
        params=params,
        grads=grads,
        exp_avgs=exp_avgs,
        exp_avg_sqs=exp_avg_sqs,
        maxima=draw(0.1, torch.rand) if amsgrad else [None] * len(sizes),
        steps=[torch.tensor(float(step * i), device=DEVICE) for i in range(len(sizes))],
    )


def clone(w, convert=torch.clone):
    return SimpleNamespace(
        **{k: [None if x is None else convert(x) for x in tensors] for k, tensors in vars(w).items()}
    )


def plan(w, **shape):
    shape = {"block": BLOCK, "blocks_per_chunk": BLOCKS_PER_CHUNK, "num_warps": 4, **shape}
    return kernels.Plan(w.params, w.exp_avgs, w.exp_avg_sqs, w.maxima, w.steps, **shape)


def reference(w, *, lr, weight_decay, beta1, beta2, eps, maximize):
    maxima = [] if w.maxima[0] is None else w.maxima
    return reference_step(
        w.params, w.grads, w.exp_avgs, w.exp_avg_sqs, maxima, w.steps,
        lr=lr, weight_decay=weight_decay, betas=(beta1, beta2), eps=eps, maximize=maximize,
    )  # fmt: skip


def check(w, before, sums=None, **hyper):
    """Compare a world after a step with the reference's step from ``before``."""
    cpu = clone(before, lambda x: x.cpu().clone())
    # absolute gradients, moments and parameters: every term of every sum without its cancellation
    size = reference(clone(cpu, torch.abs), **{**hyper, "maximize": False})
    true = reference(cpu, **hyper)
    if sums is not None:
        sums = sums.cpu()
        assert sums.dtype == torch.float64
        assert sums.shape == (len(w.params), len(Sum))
        assert torch.equal(sums[:, Sum.D], true[:, Sum.D])
        error = (sums - true).abs()
        assert (error <= SUMS * size).all(), (error / size).nan_to_num().amax(0)
    lrs = hyper["lr"] if isinstance(hyper["lr"], list) else [hyper["lr"]] * len(w.params)
    for i, p in enumerate(w.params):
        if p.numel() == 0:
            continue
        stored = 2 * STORED[p.dtype]
        update = (cpu.params[i].double() - before.params[i].cpu().double()).abs().max().item() + lrs[i]
        # two roundings on the parameter's way, eight on the update's, one of the stored result
        close(p, cpu.params[i], 2 * FLOAT32 + stored, 8 * FLOAT32 * update)
        # a moment is a sum of two products, with beta and 1 - beta rounded to float32
        reach = before.exp_avgs[i].abs().max().item() + before.grads[i].abs().max().item()
        close(w.exp_avgs[i], cpu.exp_avgs[i], stored, 4 * FLOAT32 * reach)
        # float16 keeps numbers below 2**-14 to multiples of 2**-24 only
        grain = 2.0**-24 if p.dtype == torch.float16 else 0.0
        close(w.exp_avg_sqs[i], cpu.exp_avg_sqs[i], 6 * FLOAT32 + stored, grain)
        if w.maxima[i] is not None:
            close(w.maxima[i], cpu.maxima[i], 6 * FLOAT32 + stored, grain)
        assert w.steps[i].item() == before.steps[i].item() + 1


def close(x, y, rtol, atol):
    torch.testing.assert_close(x.cpu().double(), y.double(), rtol=rtol, atol=atol)


def everything(w):
    return [x.cpu().clone() for tensors in vars(w).values() for x in tensors if x is not None]
