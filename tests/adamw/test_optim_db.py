"""ThermoAdamW passes what torch's own optimizer database asks of AdamW, with monitoring on.

torch ships the inputs and error inputs that it tests every optimizer with. ThermoAdamW enters with those
of AdamW, and almost everything is compared with ``torch.optim.AdamW`` under the same flags, bit for bit.
"""

from __future__ import annotations

import copy
import io
import pickle
import sys
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import AdamW, lr_scheduler
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from tests.support.strides import measured
from thermoopt import ThermoAdamW

pytest.importorskip("expecttest", reason="torch's optimizer database imports expecttest")
# the database imports torch's tests of all operators, which takes four seconds, for the sake of one decorator
OPERATORS = "torch.testing._internal.common_methods_invocations"
sys.modules.setdefault(OPERATORS, SimpleNamespace(DecorateInfo=lambda *args, **kwargs: None))
db = pytest.importorskip("torch.testing._internal.common_optimizers")
if isinstance(sys.modules[OPERATORS], SimpleNamespace):
    del sys.modules[OPERATORS]
# the import forbids torch.backends flags to be set outside a context, in the whole process: allow it again
setattr(torch.backends, "__allow_nonbracketed_mutation_flag", True)

ADAMW = next(info for info in db.optim_db if info.optim_cls is AdamW)
THERMO = copy.copy(ADAMW)
THERMO.optim_cls = ThermoAdamW

STEPS = 10
"""Enough for the default distance between measured steps to come round."""

MONITORS = {
    "every": {"measure_every": 1, "backend": "torch"},
    "default": {"backend": "torch"},
}
"""Backend ``"auto"`` may take a one-pass kernel, whose bits need not be the for-loop's: see AUTO."""

AUTO = {"measure_every": 1, "backend": "auto"}
TOLERANCE = {
    # a one-pass kernel rounds as torch's fused one does, in another order: parameters of order 1 after
    # STEPS steps; low precision rounds each step to its own grid, at most one unit apart a step
    torch.float64: {"rtol": 1e-12, "atol": 1e-13},
    torch.float32: {"rtol": 1e-5, "atol": 1e-6},
    torch.bfloat16: {"rtol": 2**-5, "atol": 2**-7},
    torch.float16: {"rtol": 2**-8, "atol": 2**-10},
}
DTYPES = list(TOLERANCE)
IMPLS: dict[str, dict[str, bool]] = {
    "auto": {},
    "forloop": {"foreach": False, "fused": False},
    **{flag: {flag: True} for flag in THERMO.supported_impls},
}


def inputs(dtype: torch.dtype | None = None) -> dict[str, dict[str, Any]]:
    return {i.desc: i.kwargs for i in THERMO.optim_inputs_func("cpu", dtype)}


CAPTURABLE = {i.desc: i.kwargs for i in THERMO.optim_inputs_func("cuda") if i.kwargs.get("capturable", False)}
ERRORS = THERMO.optim_error_inputs_func("cpu", torch.float32)

TORCH = tuple(map(int, torch.__version__.split(".")[:2]))
# SequentialLR of torch 2.6 warns of its own call
older_schedulers = pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")
every_input = pytest.mark.parametrize("kwargs", list(inputs().values()), ids=list(inputs()))
FEW = ("maximize", "amsgrad")
few_inputs = pytest.mark.parametrize("kwargs", [inputs()[desc] for desc in FEW], ids=FEW)
every_impl = pytest.mark.parametrize("impl", list(IMPLS.values()), ids=list(IMPLS))
every_backend = pytest.mark.parametrize("monitor", [*MONITORS.values(), AUTO], ids=[*MONITORS, "auto"])
every_monitor = pytest.mark.parametrize("monitor", list(MONITORS.values()), ids=list(MONITORS))

NOT_A_LEAF = "a differentiable step may not write to a leaf that requires grad (torch's error is tested)"

SHAPES = ((4, 3), (5,), (0,), (2, 0, 3), (), (1, 1), (3, 7), (6,))
FROZEN, NEVER, SOMETIMES = 1, 5, 7
"""Places in SHAPES of a frozen parameter, one that never gets a gradient, one that gets every other."""


def make_params(dtype: torch.dtype = torch.float64, shapes: Any = SHAPES) -> list[Parameter]:
    generator = torch.Generator().manual_seed(11)
    params = [Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in shapes]
    if shapes is SHAPES:
        params[FROZEN].requires_grad_(False)
    return params


def give_grads(params: list[Parameter], t: int) -> None:
    """Seeded gradients of step ``t`` with a constant part, so that there is a direction to go."""
    generator = torch.Generator().manual_seed(1000 + t)
    special = len(params) == len(SHAPES)
    for i, p in enumerate(params):
        fresh = torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.3 + 0.1 * (i + 1)
        absent = special and (i in (FROZEN, NEVER) or (i == SOMETIMES and t % 2 == 0))
        p.grad = None if absent else fresh.to(p.dtype)


def all_params(optimizer: torch.optim.Optimizer) -> list[Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def train(optimizer: torch.optim.Optimizer, steps: int = STEPS, first: int = 0) -> Any:
    for t in range(first, first + steps):
        give_grads(all_params(optimizer), t)
        optimizer.step()
    return optimizer


def build(cls: type, params: Any, kwargs: dict[str, Any], **more: Any) -> Any:
    """Tensors in the database's inputs are shared by everyone: give each optimizer its own."""
    optimizer = cls(params, **copy.deepcopy(kwargs), **more)
    if optimizer.defaults["differentiable"]:
        # such a step is recorded, and nothing recorded may write to a leaf that requires grad
        for p in all_params(optimizer):
            p.requires_grad_(False)
    return optimizer


def bits(x: Tensor) -> Tensor:
    x = x.detach()
    x = torch.view_as_real(x) if x.is_complex() else x
    return x.contiguous().reshape(-1).view(torch.uint8)


def assert_same_bits(actual: Any, expected: Any, where: str = "") -> None:
    """Same structure, types, dtypes and bits all the way down; ``thermo`` is ours alone."""
    if isinstance(expected, Tensor):
        assert isinstance(actual, Tensor), where
        assert actual.dtype == expected.dtype, where
        assert actual.shape == expected.shape, where
        assert torch.equal(bits(actual), bits(expected)), where
    elif isinstance(expected, dict):
        keys = set(actual) - ({"thermo"} - set(expected))
        assert keys == set(expected), where
        for key, value in expected.items():
            assert_same_bits(actual[key], value, f"{where}/{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected), where
        for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
            assert_same_bits(a, e, f"{where}/{i}")
    else:
        assert actual == expected, where


def assert_same_run(optimizer: ThermoAdamW, reference: torch.optim.Optimizer) -> None:
    assert_same_bits(all_params(optimizer), all_params(reference), "params")
    assert_same_bits(optimizer.state_dict(), reference.state_dict(), "state_dict")


def assert_close_run(optimizer: ThermoAdamW, reference: torch.optim.Optimizer, **tolerance: float) -> None:
    for a, e in zip(all_params(optimizer), all_params(reference), strict=True):
        torch.testing.assert_close(a, e, **tolerance)
        mine, theirs = optimizer.state.get(a, {}), reference.state.get(e, {})
        assert set(mine) == set(theirs)
        for key in theirs:
            torch.testing.assert_close(mine[key], theirs[key], **tolerance, check_dtype=key != "step")


def assert_measured(optimizer: ThermoAdamW, monitor: dict[str, Any], steps: int = STEPS) -> None:
    every = monitor.get("measure_every")
    reading = optimizer.reading
    assert reading is not None
    if every is not None:
        assert reading.step == measured(every, steps)[-1]
    assert set(reading.skipped.values()) == {0}
    assert reading.total.grad_norm > 0


# -------------------------------------------------------------------- the database's inputs


def test_entry_covers_adamw() -> None:
    assert issubclass(ThermoAdamW, AdamW)
    assert set(THERMO.supported_impls) == {"foreach", "differentiable", "fused"}
    assert "cpu" in THERMO.supports_fused_on
    assert {"default", "amsgrad", "maximize"} <= set(inputs())
    assert len(CAPTURABLE) >= 3
    assert len(ERRORS) >= 6


@every_monitor
@every_impl
@every_input
def test_step_is_adamws(kwargs: dict, impl: dict, monitor: dict) -> None:
    """Grads None, frozen, zero-size and 0-d parameters, in float64, with every implementation."""
    reference = train(build(AdamW, make_params(), kwargs, **impl))
    optimizer = train(build(ThermoAdamW, make_params(), kwargs, **impl, **monitor))
    assert_same_run(optimizer, reference)
    assert_measured(optimizer, monitor)
    never = {f"group0.{i}" for i in (FROZEN, NEVER)}
    assert not never & set(optimizer.reading.layers)
    assert {f"group0.{i}" for i in range(len(SHAPES))} - never == set(optimizer.reading.layers)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("impl", ["forloop", "foreach", "fused"])
@pytest.mark.parametrize("desc", list(inputs()))
def test_step_is_adamws_in_every_dtype(desc: str, impl: str, dtype: torch.dtype) -> None:
    kwargs, monitor = inputs(dtype)[desc], MONITORS["every"]
    reference = train(build(AdamW, make_params(dtype), kwargs, **IMPLS[impl]))
    optimizer = train(build(ThermoAdamW, make_params(dtype), kwargs, **IMPLS[impl], **monitor))
    assert_same_run(optimizer, reference)
    assert_measured(optimizer, monitor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("desc", list(inputs()))
def test_auto_backend_agrees_with_fused_adamw(desc: str, dtype: torch.dtype) -> None:
    kwargs = inputs(dtype)[desc]
    reference = train(build(AdamW, make_params(dtype), kwargs, fused=True))
    optimizer = train(build(ThermoAdamW, make_params(dtype), kwargs, **AUTO))
    assert_close_run(optimizer, reference, **TOLERANCE[dtype])
    assert_measured(optimizer, AUTO)


@every_input
def test_foreach_matches_forloop(kwargs: dict) -> None:
    loop = train(build(ThermoAdamW, make_params(), kwargs, foreach=False, measure_every=1))
    each = train(build(ThermoAdamW, make_params(), kwargs, foreach=True, measure_every=1))
    assert_close_run(each, loop, rtol=1e-12, atol=1e-13)
    for name, expected in vars(loop.reading.total).items():
        assert getattr(each.reading.total, name) == pytest.approx(expected, rel=1e-9, nan_ok=True), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("desc", list(inputs()))
def test_fused_matches_forloop(desc: str, dtype: torch.dtype) -> None:
    kwargs = inputs(dtype)[desc]
    loop = train(build(ThermoAdamW, make_params(dtype), kwargs, foreach=False, measure_every=1))
    fused = train(build(ThermoAdamW, make_params(dtype), kwargs, fused=True, measure_every=1))
    assert_close_run(fused, loop, **TOLERANCE[dtype])


@every_backend
@every_input
def test_sigma_is_gradient_times_displacement(kwargs: dict, monitor: dict) -> None:
    """sigma = <g, theta (1 - lr wd) - theta'>, from nothing but AdamW's parameters before and after."""
    params = make_params()
    reference = build(AdamW, params, kwargs)
    optimizer = build(ThermoAdamW, make_params(), kwargs, **monitor, ema_steps=1)
    group = reference.param_groups[0]
    shrink = 1 - group["lr"] * group["weight_decay"]
    sign = -1 if group["maximize"] else 1
    expected = []
    for t in range(STEPS):
        before = [p.detach().clone() for p in params]
        train(reference, 1, t)
        expected.append(
            sum(
                sign * float((p.grad * (b * shrink - p.detach())).sum())
                for p, b in zip(params, before, strict=True)
                if p.grad is not None
            )
        )
        train(optimizer, 1, t)
        if t % 2 == 1 and optimizer.reading is not None and optimizer.reading.step == t + 1:
            # in even steps one layer has no gradient and the reading keeps its last average
            assert optimizer.reading.total.sigma == pytest.approx(expected[-1], rel=1e-9)
    assert optimizer.reading.step >= 10


@pytest.mark.parametrize("backend", ["torch", "auto"])
@every_impl
@few_inputs
def test_goes_the_right_direction(kwargs: dict, impl: dict, backend: str) -> None:
    if impl.get("differentiable"):
        pytest.skip(NOT_A_LEAF)
    weight, bias = Parameter(torch.ones(10, 5)), Parameter(torch.ones(10))
    x = torch.linspace(-1, 1, 5)
    optimizer = build(ThermoAdamW, [weight, bias], kwargs, **impl, measure_every=1, backend=backend)
    losses = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (weight @ x + bias).square().mean()
        loss.backward()
        return loss

    for _ in range(20):
        losses.append(float(optimizer.step(closure).detach()))
    gain = losses[0] - losses[-1]
    assert (-gain if kwargs.get("maximize") else gain) > 0
    assert optimizer.reading.step == 20


@pytest.mark.parametrize("kwargs", list(CAPTURABLE.values()), ids=list(CAPTURABLE))
def test_capturable_on_cpu_is_torchs_error(kwargs: dict) -> None:
    reference = build(AdamW, make_params(), kwargs)
    optimizer = build(ThermoAdamW, make_params(), kwargs, **MONITORS["every"])
    assert type(optimizer.param_groups[0]["lr"]) is type(reference.param_groups[0]["lr"])
    with pytest.raises(Exception, match="capturable") as theirs:
        train(reference, 1)
    with pytest.raises(type(theirs.value)) as ours:
        train(optimizer, 1)
    assert str(ours.value) == str(theirs.value)
    assert_same_bits(all_params(optimizer), make_params())


@pytest.mark.parametrize("reason", [
    "peak memory of foreach: torch reads CUDA's allocator statistics, CPU has none",
    "CUDA graphs: no graph capture on CPU",
    "capturable inputs that take a step: torch allows capturable on accelerators only",
    "parameters on several GPUs: one device here",
    "fused large tensor: needs a CUDA device with 64 GB",
    "fused CPU against fused CUDA: no CUDA device on CPU",
    "complex parameters with fused: torch's fused step takes floating point parameters only",
    "sparse gradients that take a step: AdamW has supports_sparse=False (its error is tested)",
])  # fmt: skip
def test_cannot_apply_on_cpu(reason: str) -> None:
    pytest.skip(reason)


# -------------------------------------------------------------------- error inputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("index", range(len(ERRORS)), ids=[e.optimizer_error_input.desc for e in ERRORS])
def test_error_inputs(index: int, dtype: torch.dtype) -> None:
    error = THERMO.optim_error_inputs_func("cpu", dtype)[index]
    assert error.error_on is db.OptimizerErrorEnum.CONSTRUCTION_ERROR
    given = error.optimizer_error_input
    params = make_params(dtype) if given.params is None else given.params

    def construct(cls: type, **more: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return cls(copy.deepcopy(params), **given.kwargs, **more)

    with pytest.raises(error.error_type, match=error.error_regex) as ours:
        construct(ThermoAdamW, measure_every=1)
    with pytest.raises(error.error_type) as theirs:
        construct(AdamW)
    assert str(ours.value) == str(theirs.value)
    # torch's message comes first whatever else is wrong
    with pytest.raises(error.error_type, match=error.error_regex):
        construct(ThermoAdamW, measure_every=0, ema_steps="long", backend="none", sinks=[object()])


@pytest.mark.parametrize(
    "kwargs",
    [
        {"foreach": True, "fused": True},
        {"fused": True, "differentiable": True},
        {"lr": -1.0},
        {"eps": -1.0},
        {"betas": (0.9, 1.0)},
        {"lr": torch.tensor(1e-3), "fused": True, "eps": -1.0},
    ],
    ids=str,
)
def test_torchs_flag_errors(kwargs: dict) -> None:
    """The conflicts that the database lists for CUDA only, and plain ranges."""
    with pytest.raises((RuntimeError, ValueError)) as theirs:
        AdamW(make_params(), **kwargs)
    with pytest.raises(type(theirs.value)) as ours:
        ThermoAdamW(make_params(), **kwargs, backend="none")
    assert str(ours.value) == str(theirs.value)


def test_duplicate_params_in_a_group_step_as_adamws() -> None:
    def run(cls: type, **more: Any) -> Any:
        p = make_params()[0]
        with pytest.warns(UserWarning, match="a parameter group with duplicate parameters"):
            optimizer = cls([p, p], foreach=False, **more)
        return train(optimizer, 5)

    assert_same_bits(all_params(run(ThermoAdamW, **MONITORS["every"])), all_params(run(AdamW)))


@pytest.mark.parametrize("cls", [Parameter, torch.tensor])
def test_invalid_param_type(cls: Callable) -> None:
    with pytest.raises(TypeError) as theirs:
        AdamW(cls(torch.ones(3).tolist() if cls is torch.tensor else torch.ones(3)))
    with pytest.raises(TypeError) as ours:
        ThermoAdamW(cls(torch.ones(3).tolist() if cls is torch.tensor else torch.ones(3)))
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("impl", ["auto", "forloop", "foreach"])
def test_sparse_gradients_are_torchs_error(impl: str, backend: str) -> None:
    def run(cls: type, **more: Any) -> tuple[Exception, Parameter]:
        p = Parameter(torch.ones(3, 2))
        p.grad = torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1, 2), (3, 2))
        optimizer = cls([p], **IMPLS[impl], **more)
        with pytest.raises(RuntimeError) as error:
            optimizer.step()
        return error.value, p

    with warnings.catch_warnings():
        # torch's own, at the first sparse tensor of a process
        warnings.filterwarnings("ignore", "Sparse invariant checks", UserWarning)
        theirs, _ = run(AdamW)
        ours, p = run(ThermoAdamW, measure_every=1, backend=backend)
    assert str(ours) == str(theirs)
    assert torch.equal(p, torch.ones(3, 2))


# -------------------------------------------------------------------- devices and layouts


def test_fused_error_on_params_on_meta() -> None:
    with torch.device("meta"):
        params = [Parameter(torch.ones(3))]
        params[0].grad = torch.ones(3)
    messages = []
    for cls in (AdamW, ThermoAdamW):
        with pytest.raises(
            RuntimeError, match="`fused=True` requires all the params to be floating"
        ) as error:
            cls(params, fused=True).step()
        messages.append(str(error.value))
    assert messages[0] == messages[1]


@every_backend
@pytest.mark.parametrize("impl", ["auto", "forloop", "foreach"])
def test_mixed_devices_meta_and_cpu(impl: str, monitor: dict) -> None:
    """A meta parameter has no data and so no sums; those on CPU step and are measured as ever."""

    def run(cls: type, **more: Any) -> Any:
        params = [make_params()[0], Parameter(torch.ones(3, device="meta")), make_params()[6]]
        optimizer = cls(params, **IMPLS[impl], **more)
        for t in range(STEPS):
            give_grads([params[0], params[2]], t)
            params[1].grad = torch.ones(3, device="meta")
            optimizer.step()
        return optimizer

    reference, optimizer = run(AdamW), run(ThermoAdamW, **monitor)
    for i in (0, 2):
        torch.testing.assert_close(all_params(optimizer)[i], all_params(reference)[i], rtol=1e-12, atol=1e-13)
    assert set(optimizer.reading.layers) == {"group0.0", "group0.2"}


@every_monitor
@pytest.mark.parametrize("impl", ["forloop", "foreach", "fused"])
def test_mixed_dtypes(impl: str, monitor: dict) -> None:
    def run(cls: type, **more: Any) -> Any:
        params = [p for dtype in DTYPES for p in make_params(dtype, ((4, 3), (2,)))]
        return train(cls(params, eps=1e-4, **IMPLS[impl], **more))

    optimizer = run(ThermoAdamW, **monitor)
    assert_same_run(optimizer, run(AdamW))
    assert_measured(optimizer, monitor)


def strided(p: Tensor, layout: str) -> Tensor:
    if layout == "transposed":
        return p.t().contiguous().t()
    if layout == "gaps":
        return p.repeat_interleave(2, dim=1)[:, ::2]
    if layout == "expanded":
        return p[:1, :1].expand(p.shape)
    return p.contiguous()


@pytest.mark.parametrize("monitor", [MONITORS["every"], AUTO], ids=["every", "auto"])
@pytest.mark.parametrize("impl", ["auto", "forloop", "foreach", "fused"])
@pytest.mark.parametrize("grads", ["contiguous", "transposed", "gaps", "expanded"])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "gaps"])
def test_layouts(layout: str, grads: str, impl: str, monitor: dict) -> None:
    """Parameters and gradients whose elements do not lie in one block, or not in the same order."""

    def run(cls: type, layout: str, grads: str, **more: Any) -> Any:
        p = Parameter(strided(make_params()[6].detach(), layout))
        optimizer = cls([p], weight_decay=0.1, **IMPLS[impl], **more)
        for t in range(STEPS):
            give_grads([p], t)
            p.grad = strided(p.grad, grads)
            optimizer.step()
        return optimizer

    optimizer = run(ThermoAdamW, layout, grads, **monitor)
    reference = run(AdamW, layout, grads)
    if monitor is AUTO:
        assert_close_run(optimizer, reference, rtol=1e-12, atol=1e-13)
    else:
        assert_same_run(optimizer, reference)
    if impl == "fused" and (layout, grads) != ("contiguous", "contiguous"):
        # torch's fused CPU kernel walks memory, not elements: its moments are of other elements then
        return
    # the account does not depend on where elements lie
    plain = build(ThermoAdamW, [Parameter(make_params()[6].detach())], {"weight_decay": 0.1}, **monitor)
    p = all_params(plain)[0]
    for t in range(STEPS):
        give_grads([p], t)
        p.grad = strided(p.grad, grads).contiguous()
        plain.step()
    for name, expected in vars(plain.reading.total).items():
        assert getattr(optimizer.reading.total, name) == pytest.approx(expected, rel=1e-9, nan_ok=True), name


@pytest.mark.parametrize(
    ("dtype", "monitor"),
    [
        (torch.complex64, MONITORS["every"]),
        (torch.complex128, MONITORS["default"]),
        (torch.complex128, AUTO),
    ],
    ids=["complex64-every", "complex128-default", "complex128-auto"],
)
@pytest.mark.parametrize("impl", ["auto", "forloop", "foreach", "differentiable"])
@every_input
def test_complex_is_its_real_view(kwargs: dict, impl: str, dtype: torch.dtype, monitor: dict) -> None:
    values = [torch.view_as_complex(p.detach()) for p in make_params(dtype.to_real(), ((4, 2), (3, 5, 2)))]
    complex_params = [Parameter(v.clone()) for v in values]
    reference_params = [Parameter(v.clone()) for v in values]
    real_params = [Parameter(torch.view_as_real(v).clone()) for v in values]
    ours = build(ThermoAdamW, complex_params, kwargs, **IMPLS[impl], **monitor)
    real = build(ThermoAdamW, real_params, kwargs, **IMPLS[impl], **monitor)
    reference = build(AdamW, reference_params, kwargs, **IMPLS[impl])
    for t in range(STEPS):
        give_grads(real_params, t)
        for p, c, q in zip(real_params, complex_params, reference_params, strict=True):
            c.grad = torch.view_as_complex(p.grad.clone())
            q.grad = c.grad.clone()
        for optimizer in (ours, real, reference):
            optimizer.step()
    assert_same_run(ours, reference)
    tolerance = TOLERANCE[dtype.to_real()]
    for c, p in zip(complex_params, real_params, strict=True):
        torch.testing.assert_close(torch.view_as_real(c), p, **tolerance)
    assert ours.reading.total.numel == sum(p.numel() for p in real_params)
    for name, expected in vars(real.reading.total).items():
        close = pytest.approx(expected, rel=1e-9 if dtype == torch.complex128 else 1e-3, nan_ok=True)
        assert getattr(ours.reading.total, name) == close, name


# -------------------------------------------------------------------- what a step may touch


@every_backend
@every_impl
@few_inputs
def test_grads_are_never_written(kwargs: dict, impl: dict, monitor: dict) -> None:
    params = make_params()
    optimizer = build(ThermoAdamW, params, kwargs, **impl, **monitor)
    for t in range(STEPS):
        give_grads(params, t)
        grads = [p.grad for p in params]
        kept = [None if g is None else (g, g.clone(), g._version) for g in grads]
        optimizer.step()
        for p, keep in zip(params, kept, strict=True):
            if keep is None:
                assert p.grad is None
            else:
                assert p.grad is keep[0]
                assert torch.equal(p.grad, keep[1])
                assert p.grad._version == keep[2]


@pytest.mark.parametrize("backend", ["torch", "auto"])
@every_impl
@few_inputs
def test_step_is_noop_without_grads(kwargs: dict, impl: dict, backend: str) -> None:
    params = make_params()
    optimizer = build(ThermoAdamW, params, kwargs, **impl, measure_every=1, backend=backend)
    versions = [p._version for p in params]
    for _ in range(3):
        optimizer.step()
    assert [p._version for p in params] == versions
    assert not optimizer.state
    assert optimizer.reading is None


@pytest.mark.parametrize("backend", ["torch", "auto"])
@every_impl
@few_inputs
def test_zero_grads_without_decay_move_nothing(kwargs: dict, impl: dict, backend: str) -> None:
    params = make_params()
    kwargs = {**kwargs, "weight_decay": 0.0}
    optimizer = build(ThermoAdamW, params, kwargs, **impl, measure_every=1, backend=backend)
    for i, p in enumerate(params):
        p.grad = None if i == FROZEN else torch.zeros_like(p)
    for _ in range(3):
        optimizer.step()
    assert_same_bits(params, make_params())
    assert optimizer.reading.total.sigma == 0.0


@pytest.mark.parametrize("backend", ["torch", "auto"])
@every_input
def test_all_grads_zero_size(kwargs: dict, backend: str) -> None:
    params = [Parameter(torch.empty(0, 3)), Parameter(torch.empty(0))]
    optimizer = build(ThermoAdamW, params, kwargs, measure_every=1, backend=backend)
    optimizer.zero_grad()
    (params[0].sum() + params[1].sum()).backward()
    for _ in range(3):
        optimizer.step()
    assert [p.numel() for p in params] == [0, 0]
    reading = optimizer.reading
    assert reading is None or reading.total.sigma == 0.0


@pytest.mark.parametrize("impl", ["auto", "forloop", "foreach", "fused"])
def test_default_dtype_is_respected(impl: str) -> None:
    default = torch.get_default_dtype()
    try:
        for dtype in (torch.float64, torch.float32):
            torch.set_default_dtype(dtype)
            reference = train(AdamW(make_params(), **IMPLS[impl]), 3)
            optimizer = train(ThermoAdamW(make_params(), **IMPLS[impl], **MONITORS["every"]), 3)
            assert_same_run(optimizer, reference)
    finally:
        torch.set_default_dtype(default)


@every_backend
@pytest.mark.parametrize("amsgrad", [False, True])
def test_fused_does_not_step_if_found_inf(amsgrad: bool, monitor: dict) -> None:
    monitor = {**monitor, "measure_every": 1}
    params = make_params(torch.float32)
    optimizer = ThermoAdamW(params, fused=True, amsgrad=amsgrad, **monitor)
    train(optimizer, 3)
    before = [p.detach().clone() for p in params]
    state = copy.deepcopy(optimizer.state_dict()["state"])
    sigma = optimizer.reading.total.sigma
    optimizer.grad_scale, optimizer.found_inf = None, torch.tensor(1.0)
    train(optimizer, 2, first=3)
    assert_same_bits(params, before)
    assert_same_bits(optimizer.state_dict()["state"], state)
    assert optimizer.reading.skipped["found_inf"] == 2
    assert optimizer.reading.total.sigma == sigma
    optimizer.found_inf = torch.tensor(0.0)
    train(optimizer, 1, first=5)
    assert not torch.equal(params[0], before[0])
    assert optimizer.reading.skipped["found_inf"] == 2


@pytest.mark.parametrize("impl", ["auto", "foreach", "fused"])
def test_grad_scaler_runs_as_with_adamw(impl: str) -> None:
    def run(cls: type, **more: Any) -> Any:
        params = make_params(torch.float32)
        optimizer = cls(params, **IMPLS[impl], **more)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
        for t in range(STEPS):
            give_grads(params, t)
            for p in params:
                if p.grad is not None:
                    p.grad.mul_(scaler.get_scale())
            if t in (4, 5):
                params[0].grad[0, 0] = float("inf")
            scaler.scale(torch.ones(()))
            scaler.step(optimizer)
            scaler.update()
        return optimizer, scaler.get_scale()

    (reference, scale), (optimizer, our_scale) = run(AdamW), run(ThermoAdamW, **MONITORS["every"])
    assert our_scale == scale
    assert_same_run(optimizer, reference)
    skipped = 2 if impl == "fused" else 0  # the scaler of unfused optimizers does not call step at all
    assert optimizer.reading.skipped["found_inf"] == skipped
    # gradients are unscaled in the account
    p = make_params(torch.float32)
    give_grads(p, STEPS - 1)
    raw = build(ThermoAdamW, p, {}, measure_every=1, ema_steps=1)
    raw.step()
    assert 0.3 < optimizer.reading.total.grad_norm / raw.reading.total.grad_norm < 3


def test_differentiable_step_of_a_leaf_is_torchs_error() -> None:
    messages = []
    for cls in (AdamW, ThermoAdamW):
        with pytest.raises(RuntimeError, match="a leaf Variable that requires grad") as error:
            train(cls(make_params(), differentiable=True), 1)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_differentiable_step_has_adamws_gradient() -> None:
    def gradients(cls: type, **more: Any) -> list[Tensor]:
        p = make_params()[0].detach().clone().requires_grad_()
        grad = torch.full_like(p, 0.3, requires_grad=True)
        moving = p.clone()
        moving.grad = grad
        optimizer = cls([moving], lr=0.1, weight_decay=0.1, differentiable=True, **more)
        optimizer.state[moving] = {
            "step": torch.tensor(10.0, dtype=torch.float64),
            "exp_avg": torch.full_like(p, 0.2).requires_grad_(False),
            "exp_avg_sq": torch.full_like(p, 0.5).requires_grad_(False),
        }
        optimizer.step()
        return list(torch.autograd.grad(moving.square().sum(), [p, grad]))

    expected = gradients(AdamW)
    assert all(float(g.abs().sum()) > 0 for g in expected)
    assert_same_bits(gradients(ThermoAdamW, **MONITORS["every"]), expected)
    assert_same_bits(gradients(ThermoAdamW, **AUTO), expected)


# -------------------------------------------------------------------- groups, rates, schedulers


@every_monitor
@every_impl
def test_groups_with_their_own_rates(impl: dict, monitor: dict) -> None:
    def run(cls: type, **more: Any) -> Any:
        a, b, c = make_params()[0], make_params()[6], make_params()[5]
        groups = [
            {"params": [a], "lr": 1e-2, "weight_decay": 0.0},
            {"params": [b, c], "betas": (0.5, 0.9), "eps": 1e-6, "amsgrad": True},
        ]
        return train(build(cls, groups, {"lr": 1e-3, "weight_decay": 0.2}, **impl, **more))

    optimizer = run(ThermoAdamW, **monitor)
    assert_same_run(optimizer, run(AdamW))
    first, second = optimizer.reading.groups
    assert (first.lr_eff, first.wd_eff) == pytest.approx((1e-2, 0.0))
    assert (second.lr_eff, second.wd_eff) == pytest.approx((1e-3, 0.2))


@every_monitor
@every_impl
@few_inputs
def test_add_param_group_in_mid_run(kwargs: dict, impl: dict, monitor: dict) -> None:
    def run(cls: type, **more: Any) -> Any:
        a, b = make_params()[0], make_params()[6]
        optimizer = train(build(cls, [a], kwargs, **impl, **more), 5)
        optimizer.add_param_group({"params": b.requires_grad_(a.requires_grad), "lr": 0.1})
        return train(optimizer, STEPS, first=5)

    optimizer = run(ThermoAdamW, **monitor)
    assert_same_run(optimizer, run(AdamW))
    assert set(optimizer.reading.layers) == {"group0.0", "group1.0"}


@pytest.mark.parametrize("lr", [torch.tensor(0.01), torch.tensor([0.01])], ids=["0-d", "1-d"])
@pytest.mark.parametrize("impl", list(IMPLS))
@few_inputs
def test_tensor_lr(kwargs: dict, impl: str, lr: Tensor) -> None:
    if impl == "foreach":
        pytest.skip("torch takes a Tensor lr with foreach only if capturable, so not on CPU")
    if lr.ndim and TORCH < (2, 7):
        pytest.skip("torch takes an lr of one dimension since 2.7")
    kwargs = {**kwargs, "lr": lr}
    reference = train(build(AdamW, make_params(), kwargs, **IMPLS[impl]))
    for monitor in MONITORS.values():
        optimizer = build(ThermoAdamW, make_params(), kwargs, **IMPLS[impl], **monitor)
        mine = optimizer.param_groups[0]["lr"]
        train(optimizer)
        assert_same_run(optimizer, reference)
        assert optimizer.param_groups[0]["lr"] is mine
        assert mine.shape == lr.shape
        assert optimizer.reading.total.lr_eff == pytest.approx(0.01)
    plain = train(build(AdamW, make_params(), {**kwargs, "lr": 0.01}, **IMPLS[impl]))
    auto = train(build(ThermoAdamW, make_params(), kwargs, **IMPLS[impl], **AUTO))
    for a, e in zip(all_params(auto), all_params(plain), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-6, atol=1e-7)  # lr is float32 in the tensor


def test_tensor_betas() -> None:
    kwargs = {"betas": (torch.tensor(0.9), torch.tensor(0.99)), "foreach": False}
    optimizer = train(build(ThermoAdamW, make_params(), kwargs, **MONITORS["every"]))
    assert_same_run(optimizer, train(build(AdamW, make_params(), kwargs)))
    assert_measured(optimizer, MONITORS["every"])


def _chained(optimizer: torch.optim.Optimizer) -> list[Any]:
    return [
        lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 / (epoch + 1)),
        lr_scheduler.ExponentialLR(optimizer, gamma=0.9),
    ]


SCHEDULERS: dict[str, Callable[[Any], list[Any]]] = {
    "CosineAnnealingLR": lambda o: [lr_scheduler.CosineAnnealingLR(o, T_max=10)],
    "OneCycleLR": lambda o: [lr_scheduler.OneCycleLR(o, max_lr=0.01, total_steps=2 * STEPS)],
    "ReduceLROnPlateau": lambda o: [lr_scheduler.ReduceLROnPlateau(o, patience=1, factor=0.5)],
    "LambdaLR chained with ExponentialLR": _chained,
    "warm-up then cosine": lambda o: [
        lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o, 0.1, 1, 4), lr_scheduler.CosineAnnealingLR(o, 8)], milestones=[4]
        )
    ],
    **{
        f"database {i}": (lambda o, makers=makers: [make(o) for make in makers])
        for i, makers in enumerate(THERMO.scheduler_inputs)
    },
}


@pytest.mark.parametrize(
    ("monitor", "tensor_lr"),
    [(MONITORS["every"], True), (MONITORS["default"], False)],
    ids=["every-Tensor lr", "default-float lr"],
)
@older_schedulers
@pytest.mark.parametrize("name", list(SCHEDULERS))
@every_input
def test_schedulers(kwargs: dict, name: str, monitor: dict, tensor_lr: bool) -> None:
    if tensor_lr:
        kwargs = {**kwargs, "lr": torch.tensor(kwargs.get("lr", 1e-3))}

    def run(cls: type, **more: Any) -> Any:
        optimizer = build(cls, make_params(), kwargs, foreach=False, **more)
        schedulers = SCHEDULERS[name](optimizer)
        rates = []
        for t in range(STEPS):
            train(optimizer, 1, t)
            for scheduler in schedulers:
                plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
                scheduler.step(*([1.0] if plateau else []))
            rates.append(float(optimizer.param_groups[0]["lr"]))
        return optimizer, rates

    reference, expected = run(AdamW)
    optimizer, rates = run(ThermoAdamW, **monitor)
    assert rates == expected
    assert len(set(rates)) > 1
    assert_same_run(optimizer, reference)
    measured = optimizer.reading.step
    assert optimizer.reading.layers["group0.0"].lr_eff == pytest.approx(expected[measured - 2])


@older_schedulers
@pytest.mark.parametrize("name", list(SCHEDULERS))
@few_inputs
def test_schedulers_with_the_auto_backend(kwargs: dict, name: str) -> None:
    def run(cls: type, **more: Any) -> Any:
        optimizer = build(cls, make_params(), kwargs, **more)
        schedulers = SCHEDULERS[name](optimizer)
        for t in range(STEPS):
            train(optimizer, 1, t)
            for scheduler in schedulers:
                plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
                scheduler.step(*([1.0] if plateau else []))
        return optimizer

    optimizer, reference = run(ThermoAdamW, **AUTO), run(AdamW, fused=True)
    assert_close_run(optimizer, reference, **TOLERANCE[torch.float64])
    assert optimizer.param_groups[0]["lr"] == reference.param_groups[0]["lr"]


@few_inputs
def test_groups_with_the_auto_backend(kwargs: dict) -> None:
    """Rates of one's own, a group that keeps torch's step, one added in mid-run, a frozen layer freed."""

    def run(cls: type, flag: dict[str, Any], **more: Any) -> Any:
        a, b, c, d = (make_params()[i] for i in (0, 6, 1, 5))
        groups = [
            {"params": [a], "lr": 1e-2, "weight_decay": 0.0},
            {"params": [b], "betas": (0.5, 0.9), "eps": 1e-6, "foreach": True, "fused": False},
            {"params": [c]},
        ]
        optimizer = train(build(cls, groups, kwargs, **flag, **more), 4)
        optimizer.add_param_group({"params": [d], "lr": 0.1})
        c.requires_grad_()
        return train(optimizer, STEPS, first=4)

    optimizer, reference = run(ThermoAdamW, {}, **AUTO), run(AdamW, {"fused": True})
    assert_close_run(optimizer, reference, **TOLERANCE[torch.float64])
    assert set(optimizer.reading.layers) == {f"group{i}.0" for i in range(4)}


# -------------------------------------------------------------------- closures and hooks


@pytest.mark.parametrize("backend", ["torch", "auto"])
@every_impl
def test_closure_is_run_once_with_gradients_enabled(impl: dict, backend: str) -> None:
    if impl.get("differentiable"):
        pytest.skip(NOT_A_LEAF)

    def run(cls: type, **more: Any) -> tuple[Any, list[float]]:
        p = make_params()[0]
        optimizer = cls([p], lr=0.05, **impl, **more)
        losses = []

        def closure() -> Tensor:
            assert torch.is_grad_enabled()
            optimizer.zero_grad()
            loss = p.square().sum()
            loss.backward()
            losses.append(float(loss.detach()))
            return loss

        with torch.no_grad():
            returned = [float(optimizer.step(closure)) for _ in range(STEPS)]
        assert returned == losses
        return optimizer, losses

    reference, expected = run(AdamW)
    optimizer, losses = run(ThermoAdamW, measure_every=1, backend=backend)
    if backend == "torch":
        assert losses == expected
        assert_same_run(optimizer, reference)
    else:
        assert losses == pytest.approx(expected, rel=1e-12)
    assert optimizer.reading.step == STEPS


BEFORE: dict[str, tuple[type, ...]] = {
    "alone": (),
    "after AdamW": (AdamW,),
    "after Adam": (torch.optim.Adam,),
    "after both": (torch.optim.Adam, AdamW),
}


@pytest.fixture(params=list(BEFORE))
def constructed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """torch wraps a class's ``step`` at its first instance: start from unwrapped classes."""
    for cls in (ThermoAdamW, AdamW, torch.optim.Adam):
        step = cls.__dict__.get("step", None)
        if step is None:
            # what torch will put there is taken away again at the end
            monkeypatch.setattr(cls, "step", cls.step)
            monkeypatch.delattr(cls, "step")
        elif getattr(step, "hooked", False):
            if step.__wrapped__.__qualname__ == f"{cls.__name__}.step":
                monkeypatch.setattr(cls, "step", step.__wrapped__)
            else:  # a parent's, which torch's AdamW has since 2.7
                monkeypatch.delattr(cls, "step")
    for cls in BEFORE[request.param]:
        cls([Parameter(torch.ones(1))])
        assert cls.step.hooked
    return request.param


@every_backend
@pytest.mark.parametrize("with_closure", [False, True], ids=["plain", "closure"])
def test_step_hooks_run_once_a_step(constructed: str, monitor: dict, with_closure: bool) -> None:
    calls: list[str] = []
    p = make_params()[0]
    optimizer = ThermoAdamW([p], **monitor)
    AdamW([Parameter(torch.ones(1))])  # and one constructed afterwards

    def note(name: str) -> Callable:
        def hook(opt: Any, args: Any, kwargs: Any) -> None:
            assert opt is optimizer
            calls.append(name)

        return hook

    def closure() -> float:
        give_grads([p], 0)
        calls.append("closure")
        return 0.0

    handles = [
        optimizer.register_step_pre_hook(note("pre")),
        optimizer.register_step_post_hook(note("post")),
        register_optimizer_step_pre_hook(note("global pre")),
        register_optimizer_step_post_hook(note("global post")),
    ]
    one = ["global pre", "pre", *(["closure"] if with_closure else []), "post", "global post"]
    try:
        for step in range(1, 4):
            give_grads([p], step)
            optimizer.step(closure) if with_closure else optimizer.step()
            assert sorted(calls) == sorted(one * step)
    finally:
        for handle in handles:
            handle.remove()
    middle = calls[: len(one)]
    assert middle.index("pre") < middle.index("post")
    assert {*middle[:2]} == {"global pre", "pre"}
    optimizer.step()
    assert len(calls) == 3 * len(one)


def test_step_pre_hook_may_change_what_the_step_reads() -> None:
    """Gradients are read after pre-hooks, so that clipping there is in the account."""
    p = make_params()[0]
    optimizer = ThermoAdamW([p], measure_every=1, ema_steps=1)
    optimizer.register_step_pre_hook(
        lambda opt, args, kwargs: torch.nn.utils.clip_grad_norm_([p], 1e-3) and None
    )
    train(optimizer, 1)
    assert optimizer.reading.total.grad_norm == pytest.approx(1e-3, rel=1e-2)


def test_state_dict_hooks() -> None:
    optimizer = train(ThermoAdamW(make_params(), measure_every=1), 3)
    order = []
    optimizer.register_state_dict_pre_hook(lambda opt: order.append("pre"))
    optimizer.register_state_dict_pre_hook(lambda opt: order.append("first"), prepend=True)

    def post(opt: Any, state: dict) -> None:
        order.append("post")
        state["state"]["mark"] = 1

    optimizer.register_state_dict_post_hook(post)
    assert optimizer.state_dict()["state"]["mark"] == 1
    assert order == ["first", "pre", "post"]


@pytest.mark.parametrize("empty", [False, True], ids=["other groups", "no groups"])
def test_state_dict_post_hook_may_return_something_else(empty: bool) -> None:
    result: dict[str, Any] = {"mine": 1} if empty else {"state": {}, "param_groups": [{"mine": 1}]}
    reference = AdamW(make_params())
    reference.register_state_dict_post_hook(lambda opt, state: copy.deepcopy(result))
    assert reference.state_dict() == result
    optimizer = train(ThermoAdamW(make_params(), measure_every=1), 3)
    optimizer.register_state_dict_post_hook(lambda opt, state: copy.deepcopy(result))
    assert optimizer.state_dict() == result


def test_load_state_dict_hooks() -> None:
    saved = train(ThermoAdamW(make_params(), measure_every=1), 3).state_dict()
    optimizer = ThermoAdamW(make_params(), measure_every=1)
    order = []

    def pre(opt: Any, state: dict) -> dict:
        order.append("pre")
        for group in state["param_groups"]:
            group["lr"] = 0.5
        return state

    optimizer.register_load_state_dict_pre_hook(pre)
    optimizer.register_load_state_dict_pre_hook(lambda opt, state: order.append("first"), prepend=True)
    optimizer.register_load_state_dict_post_hook(lambda opt: order.append(f"post {opt.reading.step}"))
    optimizer.load_state_dict(copy.deepcopy(saved))
    assert order == ["first", "pre", "post 3"]
    assert optimizer.param_groups[0]["lr"] == 0.5


# -------------------------------------------------------------------- saving and loading


def saved_bytes(obj: Any, weights_only: bool = True) -> Any:
    buffer = io.BytesIO()
    torch.save(obj, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=weights_only)


@every_backend
@every_impl
@few_inputs
def test_save_and_load_continues_bit_for_bit(kwargs: dict, impl: dict, monitor: dict) -> None:
    whole = train(build(ThermoAdamW, make_params(), kwargs, **impl, **monitor), 2 * STEPS)
    half = train(build(ThermoAdamW, make_params(), kwargs, **impl, **monitor))
    loaded = saved_bytes(half.state_dict())
    assert_same_bits(loaded, half.state_dict())
    values = saved_bytes([p.detach() for p in all_params(half)])
    params = [Parameter(v, requires_grad=i != FROZEN) for i, v in enumerate(values)]
    again = build(ThermoAdamW, params, kwargs, **impl, **monitor)
    again.load_state_dict(loaded)
    train(again, STEPS, first=STEPS)
    assert_same_run(again, whole)
    assert again.reading.step == whole.reading.step
    assert repr(again.reading.total) == repr(whole.reading.total)
    assert repr(dict(again.reading.layers)) == repr(dict(whole.reading.layers))


@every_input
def test_state_dict_is_deterministic_and_not_empty(kwargs: dict) -> None:
    optimizer = train(build(ThermoAdamW, make_params(), kwargs, measure_every=1), 3)
    one, two = optimizer.state_dict(), optimizer.state_dict()
    assert_same_bits(one, two)
    steps = [s["step"] for s in one["state"].values()]
    assert len(steps) == len(SHAPES) - 2
    assert max(float(s) for s in steps) == 3


@few_inputs
def test_state_dict_is_a_snapshot(kwargs: dict) -> None:
    """Values of the groups do not move under a state dict taken earlier."""
    optimizer = train(build(ThermoAdamW, make_params(), kwargs, measure_every=1), 3)
    snapshot = optimizer.state_dict()["param_groups"]
    kept = copy.deepcopy(snapshot)
    optimizer.set_layer_factors({"group0.0": 0.5})
    train(optimizer, 3, first=3)
    optimizer.state_dict()
    assert_same_bits(snapshot, kept)


@pytest.mark.parametrize("copier", ["deepcopy", "pickle", "torch.save"])
@every_backend
@few_inputs
def test_copies_continue_bit_for_bit(kwargs: dict, monitor: dict, copier: str) -> None:
    make = {
        "deepcopy": copy.deepcopy,
        "pickle": lambda o: pickle.loads(pickle.dumps(o)),
        "torch.save": lambda o: saved_bytes(o, weights_only=False),
    }[copier]
    optimizer = train(build(ThermoAdamW, make_params(), kwargs, **monitor))
    twin = make(optimizer)
    assert type(twin) is ThermoAdamW
    assert all(p is not q for p, q in zip(all_params(twin), all_params(optimizer), strict=True))
    train(twin, STEPS, first=STEPS)
    assert optimizer.reading.step <= STEPS  # the original did not move
    train(optimizer, STEPS, first=STEPS)
    assert_same_run(twin, optimizer)
    assert repr(twin.reading.total) == repr(optimizer.reading.total)
    assert twin.backend == optimizer.backend
    assert twin.history.steps.tolist() == optimizer.history.steps.tolist()


def test_deepcopy_keeps_what_adamws_keeps() -> None:
    """Public attributes of one's own go the same way as with AdamW, whatever that is."""
    kept = []
    for cls in (AdamW, ThermoAdamW):
        optimizer = cls(make_params())
        optimizer.mine = 1
        twin = copy.deepcopy(optimizer)
        kept.append({k for k in vars(twin) if not k.startswith("_")})
    assert kept[0] == kept[1]


@every_monitor
@every_input
def test_plain_adamw_state_loads_and_back(kwargs: dict, monitor: dict) -> None:
    whole = train(build(AdamW, make_params(), kwargs), 2 * STEPS)
    half = train(build(AdamW, make_params(), kwargs))
    optimizer = build(ThermoAdamW, copy.deepcopy(all_params(half)), kwargs, **monitor)
    optimizer.load_state_dict(saved_bytes(half.state_dict()))
    train(optimizer, 5, first=STEPS)
    back = build(AdamW, copy.deepcopy(all_params(optimizer)), kwargs)
    back.load_state_dict(saved_bytes(optimizer.state_dict()))
    assert "thermo" in back.param_groups[0]  # carried along, read by nobody
    train(back, STEPS - 5, first=STEPS + 5)
    assert_same_bits(all_params(back), all_params(whole))
    train(optimizer, STEPS - 5, first=STEPS + 5)
    assert_same_run(optimizer, whole)
    assert optimizer.reading.step > STEPS  # steps are counted on from the checkpoint's


@every_monitor
@every_input
def test_can_load_older_state_dict(kwargs: dict, monitor: dict) -> None:
    """Checkpoints from before a flag existed, before ``step`` was a tensor, and before ``thermo``."""
    whole = train(build(ThermoAdamW, make_params(), kwargs, **monitor), 2 * STEPS)
    half = train(build(ThermoAdamW, make_params(), kwargs, **monitor))
    state = copy.deepcopy(half.state_dict())
    for group in state["param_groups"]:
        del group["thermo"]
        for flag in (*THERMO.not_og_supported_flags, "decoupled_weight_decay"):
            if flag != "maximize":  # an input's own value would be lost, as with AdamW
                group.pop(flag, None)
    for value in state["state"].values():
        value["step"] = int(value["step"])
    optimizer = build(ThermoAdamW, all_params(half), kwargs, **monitor)
    optimizer.load_state_dict(state)
    if "decoupled_weight_decay" in AdamW([Parameter(torch.ones(1))]).defaults:  # since torch 2.7
        assert all(group["decoupled_weight_decay"] for group in optimizer.param_groups)
    train(optimizer, STEPS, first=STEPS)
    assert_same_bits(all_params(optimizer), all_params(whole))
    assert optimizer.reading.step == whole.reading.step


@every_input
def test_load_nontensor_step_as_adamw(kwargs: dict) -> None:
    def run(cls: type, **more: Any) -> Any:
        optimizer = train(build(cls, make_params(), kwargs, **more), 3)
        state = copy.deepcopy(optimizer.state_dict())
        for value in state["state"].values():
            value["step"] = value["step"].item()
        optimizer.load_state_dict(state)
        return train(optimizer, 3, first=3)

    assert_same_run(run(ThermoAdamW, **MONITORS["every"]), run(AdamW))


def test_older_state_with_partial_thermo() -> None:
    optimizer = train(ThermoAdamW(make_params(), **MONITORS["every"]), 3)
    state = optimizer.state_dict()
    state["param_groups"][0]["thermo"] = {"lr_scale": 0.5}
    again = ThermoAdamW(all_params(optimizer), **MONITORS["every"])
    again.load_state_dict(state)
    thermo = again.param_groups[0]["thermo"]
    assert (thermo["lr_scale"], thermo["wd_scale"]) == (0.5, 1.0)
    assert thermo["layer_factors"].tolist() == [1.0] * len(SHAPES)
    train(again, 1, first=3)
    assert again.reading.step == 4


def named(params: list[Parameter]) -> list[tuple[str, Parameter]]:
    return [(f"layer{i}.weight", p) for i, p in enumerate(params)]


@pytest.mark.parametrize("grouped", [False, True], ids=["flat", "groups"])
@pytest.mark.parametrize("to_names", [False, True], ids=["into unnamed", "into named"])
@pytest.mark.parametrize("from_names", [False, True], ids=["from unnamed", "from named"])
def test_named_state_dict(from_names: bool, to_names: bool, grouped: bool) -> None:
    def make(cls: type, with_names: bool, **more: Any) -> Any:
        params: Any = make_params()
        params = named(params) if with_names else params
        return cls([{"params": params[:3]}, {"params": params[3:], "lr": 0.1}] if grouped else params, **more)

    monitor = MONITORS["every"]
    whole = train(make(AdamW, from_names), STEPS + 5)
    source = train(make(ThermoAdamW, from_names, **monitor))
    state = saved_bytes(source.state_dict())
    for group in state["param_groups"]:
        assert ("param_names" in group) == from_names
    target = make(ThermoAdamW, to_names, **monitor)
    with torch.no_grad():
        for p, q in zip(all_params(target), all_params(source), strict=True):
            p.copy_(q)
    target.load_state_dict(state)
    train(target, 5, first=STEPS)
    assert_same_bits(all_params(target), all_params(whole))
    reference = make(AdamW, to_names)
    reference.load_state_dict({**train(make(AdamW, from_names)).state_dict()})
    assert [g.get("param_names") for g in target.param_groups] == [
        g.get("param_names") for g in reference.param_groups
    ]
    names = set(target.reading.layers)
    if from_names or to_names:
        assert "layer0.weight" in names
        assert all(name.startswith("layer") for name in names)
    else:
        assert "group0.0" in names
    train(source, 5, first=STEPS)
    assert repr(target.reading.total) == repr(source.reading.total)


def test_names_reach_state_dict_and_layers() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    optimizer = ThermoAdamW(model.named_parameters(), measure_every=1)
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    names = [name for name, _ in model.named_parameters()]
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == names
    assert list(optimizer.reading.layers) == names


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_statistics_of_low_precision_stay_wide_through_a_load(dtype: torch.dtype) -> None:
    monitor = MONITORS["every"]
    source = train(ThermoAdamW(make_params(dtype), eps=1e-4, **monitor))
    state = saved_bytes(source.state_dict())
    assert state["param_groups"][0]["thermo"]["meter"].dtype == torch.float64
    target = ThermoAdamW(copy.deepcopy(all_params(source)), eps=1e-4, **monitor)
    target.load_state_dict(state)
    assert repr(target.reading.total) == repr(source.reading.total)


@every_input
def test_repr_names_every_flag_of_adamws(kwargs: dict) -> None:
    optimizer = build(ThermoAdamW, make_params(), kwargs)
    expected = repr(build(AdamW, make_params(), kwargs)).splitlines()[1:]
    for text in (repr(optimizer), repr(train(optimizer, 2))):
        assert text.startswith("ThermoAdamW (")
        assert set(expected) <= set(text.splitlines())
