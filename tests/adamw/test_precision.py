"""Scaled, narrow, clipped and compiled gradients: readings against a float64 account by plain formulas."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.ledger import (
    EPS,
    STEPS,
    WAYS,
    Ledger,
    Run,
    adam_sums,
    assert_same_bits,
    common_sums,
    every_way,
    gradients,
    make_params,
    needs_native,
    to64,
)
from thermoopt import Observer, make_param_groups

# -------------------------------------------------------------------- GradScaler


class Scaled:
    """A run with a GradScaler: exact in binary, because the scale is a power of 2."""

    def __init__(self, way: str, ema_steps: float) -> None:
        self.named = make_params()
        self.watch = WAYS[way](self.named, ema_steps)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)

    def step(self, t: int, bad: bool, clip: bool) -> None:
        scaler, optimizer = self.scaler, self.watch.optimizer
        scaler.scale(torch.ones(()))  # the scaler makes its tensors here
        for (_, p), g in zip(self.named, gradients(t), strict=True):
            p.grad = g * scaler.get_scale()
        if bad:
            self.named[1][1].grad[7] = (math.inf, math.nan)[t % 2]
        if clip:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_([p for _, p in self.named], 0.7)
        scaler.step(optimizer)
        scaler.update()


@every_way
@pytest.mark.parametrize("clip", [False, True], ids=["plain", "unscaled and clipped"])
def test_a_grad_scaler_leaves_no_trace(way: str, clip: bool) -> None:
    """Readings and weights of the run without a scaler; steps with an infinity move nothing, and are counted.

    Not at once in fused SGD: torch 2.13 makes its momentum buffers of uninitialised memory when it skips the
    first step, and uses them in the second.
    """
    bad = {4, 5} if way == "observed SGD fused" else {0, 4, 5}
    run = Scaled(way, ema_steps=1)
    plain_named = make_params()
    plain = WAYS[way](plain_named)
    for t in range(STEPS):
        averages, reading = run.watch.averages(), run.watch.reading
        weights = [p.detach().clone() for _, p in run.named]
        state = copy.deepcopy(run.watch.optimizer.state_dict()["state"])
        run.step(t, t in bad, clip)
        if t in bad:
            assert torch.equal(run.watch.averages(), averages)
            assert all(torch.equal(p, w) for (_, p), w in zip(run.named, weights, strict=True))
            if reading is None:
                assert run.watch.reading is None
                # torch's fused step makes its state even when it skips
                continue
            assert np.array_equal(run.watch.reading.terms, reading.terms, equal_nan=True)
            now = run.watch.optimizer.state_dict()["state"]
            for i, own in state.items():
                assert all(torch.equal(own[k], now[i][k]) for k in own if isinstance(own[k], Tensor))
            continue
        for (_, p), g in zip(plain_named, gradients(t), strict=True):
            p.grad = g
        if clip:
            torch.nn.utils.clip_grad_norm_([p for _, p in plain_named], 0.7)
        plain.optimizer.step()
        # moments that a skipped first step left at 0 take the gradient in with another rounding than none
        error = {"rtol": 1e-6, "atol": 1e-8} if t == 1 else {"rtol": 0, "atol": 0}
        assert np.allclose(run.watch.reading.terms, plain.reading.terms, **error, equal_nan=True)
    assert_same_bits(run.named, plain_named)
    fused = "fused" in way
    skipped = dict(run.watch.by.skipped)
    assert skipped.pop("found_inf") == (len(bad) if fused else 0)
    assert set(skipped.values()) == {0}
    # an unfused scaler does not call step() at all; a fused one does, and nobody waits for what came of it
    assert run.watch.by.steps == (STEPS if fused else STEPS - len(bad))
    assert set(plain.by.skipped.values()) == {0}


@every_way
def test_averages_under_a_grad_scaler(way: str) -> None:
    """Averages over steps, against the ledger. Time goes on in steps that a fused scaler skipped."""
    bad = {3, 4}
    run = Scaled(way, ema_steps=4)
    named = make_params()
    beside = Run(WAYS[way](named, 4), named, ema_steps=4)
    for t in range(STEPS):
        run.step(t, t in bad, clip=False)
        if t in bad:
            continue
        for (_, p), g in zip(named, gradients(t), strict=True):
            p.grad = g
        beside.step(count=t + 1 if "fused" in way else None)
        beside.ledger.check(run.watch.reading, rtol=2e-5)
    assert_same_bits(run.named, named)


# -------------------------------------------------------------------- narrow parameters, autocast


@every_way
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_parameters(way: str, dtype: torch.dtype) -> None:
    """To 2e-5: sums are formed in float32 of what is held in 16 bits, and 1e-3 of a bfloat16 is one rounding.

    Moments before the step are those that the optimizer holds, rounded as it rounds them; the moments after
    it enter before they are rounded back.
    """
    named = make_params(dtype)
    eps = 1e-4 if dtype == torch.float16 else EPS  # 1e-8 is 0 in float16, and torch's step divides by it
    run = Run(WAYS[way](named, ema_steps=4, eps=eps), named, ema_steps=4)
    for t in range(STEPS):
        for (_, p), g in zip(named, gradients(t, dtype), strict=True):
            p.grad = g
        run.step()
        run.check()
    assert set(run.watch.by.skipped.values()) == {0}


def small_net() -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 16), torch.nn.LayerNorm(16), torch.nn.GELU(), torch.nn.Linear(16, 3)
    )


def batch(t: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(50 + t)
    return torch.randn(32, 6, generator=rng), torch.randn(32, 3, generator=rng)


@every_way
def test_autocast(way: str) -> None:
    net = small_net()
    named = list(net.named_parameters())
    run = Run(WAYS[way](named, ema_steps=4), named, ema_steps=4)
    for t in range(STEPS):
        x, y = batch(t)
        run.watch.optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = net(x)
        assert out.dtype == torch.bfloat16
        torch.nn.functional.mse_loss(out.float(), y).backward()
        run.step()
        run.check()


# -------------------------------------------------------------------- clipping


def clip_norm(params: list[Tensor]) -> None:
    torch.nn.utils.clip_grad_norm_(params, 0.3)


def clip_value(params: list[Tensor]) -> None:
    torch.nn.utils.clip_grad_value_(params, 0.25)


def clipped64(grads: list[np.ndarray], clip: Callable[..., None]) -> list[np.ndarray]:
    """The same in float64, written out."""
    if clip is clip_value:
        return [np.clip(g, -0.25, 0.25) for g in grads]
    norm = math.sqrt(sum(float(x) ** 2 for g in grads for x in g))
    return [g * min(1.0, 0.3 / (norm + 1e-6)) for g in grads]


@every_way
@pytest.mark.parametrize("clip", [clip_norm, clip_value])
@pytest.mark.parametrize("hook", [False, True], ids=["before step", "in a step hook"])
def test_readings_are_of_clipped_gradients(way: str, clip: Callable[..., None], hook: bool) -> None:
    named = make_params()
    # an observer reads what hooks that were registered before it have left
    before_step = (lambda *_: clip([p for _, p in named])) if hook else None
    watch = WAYS[way](named, before=before_step)
    for t in range(4):
        grads = gradients(t)
        for (_, p), g in zip(named, grads, strict=True):
            p.grad = g.clone()
        before = {name: to64(p) for name, p in named}
        state = {name: copy.deepcopy(watch.optimizer.state.get(p) or {}) for name, p in named}
        if not hook:
            clip([p for _, p in named])
        watch.optimizer.step()
        expected = clipped64([to64(g) for g in grads], clip)
        assert max(abs(g).max() for g in expected) < 0.5 * max(float(g.abs().max()) for g in grads)
        group = watch.optimizer.param_groups[0]
        ledger = Ledger(1, group["lr"], 0.0 if "SGD" in way else group["weight_decay"])
        ledger.last = t
        sums = {}
        for (name, p), g in zip(named, expected, strict=True):
            if "SGD" in way:
                sums[name] = common_sums(before[name], g, (before[name] - to64(p)) / group["lr"])
            else:
                was = torch.from_numpy(before[name])
                was.grad = torch.from_numpy(g)
                sums[name] = adam_sums(was, state[name], group)
        ledger.enter(t + 1, sums)
        ledger.check(watch.reading, rtol=5e-5)


@every_way
def test_scale_laws_of_clipping(way: str) -> None:
    """A clip factor c on every step: sigma goes with c for Adam, whose U has no scale, with c**2 for SGD."""
    c = 0.25
    runs = []
    for clip in (False, True):
        named = make_params()
        watch = WAYS[way](named, ema_steps=3)
        for t in range(STEPS):
            grads = gradients(t)
            norm = math.sqrt(sum(float(g.double().square().sum()) for g in grads))
            for (_, p), g in zip(named, grads, strict=True):
                p.grad = g * (2 / norm)
            if clip:
                torch.nn.utils.clip_grad_norm_([p for _, p in named], 2 * c)
            watch.optimizer.step()
        runs.append(watch.reading.total)
    plain, clipped = runs
    power = 2 if "SGD" in way else 1  # of U's scale in sigma beside the gradient's own
    laws = {"sigma": power, "sigma_sgd": 2, "grad_norm": 1, "update_norm": power - 1, "phi": 2 * (power - 1)}
    if "SGD" not in way:
        laws.update(r=0, gaussianity=0, coherence=0, energy_ratio=0, thermal_loss=1, rho_momentum=0, d_eS=1)
        laws.update(param_norm=0, angular_step=0, d_iS_noise=1, d_iS_wd=1)
    for quantity, exponent in laws.items():
        ratio = getattr(clipped, quantity) / getattr(plain, quantity)
        assert ratio == pytest.approx(c**exponent, rel=1e-4), quantity


# -------------------------------------------------------------------- torch.compile of the model

COMPILED = [
    *(pytest.param(way, "aot_eager", marks=needs_native if "native" in way else ()) for way in WAYS),
    # where the kernel was built there is a compiler; inductor takes most of a minute to wake
    pytest.param("native", "inductor", marks=[needs_native, pytest.mark.slow]),
    pytest.param("observed AdamW fused", "inductor", marks=[needs_native, pytest.mark.slow]),
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize(("way", "backend"), COMPILED)
def test_beside_a_compiled_model(way: str, backend: str) -> None:
    """The account and the bits of the same optimizer without torch.compile, on the same gradients."""
    net, twin = small_net(), small_net()
    torch._dynamo.reset()
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    given, twins = list(compiled.named_parameters()), list(twin.named_parameters())
    named = [(name.removeprefix("_orig_mod."), p) for name, p in given]
    run = Run(WAYS[way](given, ema_steps=4), named, ema_steps=4)
    other = WAYS[way](twins, ema_steps=4)
    for t in range(4):
        x, y = batch(t)
        run.watch.optimizer.zero_grad()
        torch.nn.functional.mse_loss(compiled(x), y).backward()
        for (_, p), (_, q) in zip(named, twins, strict=True):
            q.grad = p.grad.clone()
        run.step()
        other.optimizer.step()
        run.check()
        assert np.array_equal(run.watch.reading.terms, other.reading.terms, equal_nan=True)
    assert_same_bits(named, twins)
    assert list(run.watch.reading.layers) == [name for name, _ in twins]  # without torch's prefix


@pytest.mark.parametrize("how", ["torch.compile(model)", "model.compile()"])
def test_layers_of_a_compiled_model_keep_their_types(how: str) -> None:
    net, plain = small_net(), small_net()
    if how == "model.compile()":  # in place: no prefix
        net.compile(backend="eager")
        compiled: Any = net
    else:
        compiled = torch.compile(net, backend="eager")
    types = Observer(plain, torch.optim.AdamW(plain.parameters())).layer_types
    assert set(types.values()) >= {"norm"}
    for params in (
        compiled.parameters(),
        compiled.named_parameters(),
        net.parameters(),
        make_param_groups(compiled),
    ):
        observer = Observer(compiled, torch.optim.AdamW(params))
        assert observer.layer_types == types
    # an observer that is given the model itself has the plain names, compiled or not
    own = Observer(net, torch.optim.AdamW(compiled.parameters()))
    assert own.layer_types == types
    names = [[g["name"] for g in make_param_groups(model)] for model in (compiled, plain)]
    assert [name.removeprefix("_orig_mod.") for name in names[0]] == names[1]
