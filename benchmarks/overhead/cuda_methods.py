"""The methods timed on a CUDA device: each makes a step of parameters of given shapes.

Without a device, :func:`stand_in` runs the same code on CPU under Triton's interpreter: slowly, and only to
find mistakes in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from thermoopt import Observer, ThermoAdamW, autotune
from thermoopt.adamw import backends
from thermoopt.benchmarks.overhead.shapes import Shapes
from thermoopt.kernels import triton as kernels
from thermoopt.observer import step_hooks
from thermoopt.tensors import travel_bucket

__all__ = ["METHODS", "SHAPES", "Maker", "Step", "device", "plan_method", "random_parameters", "stand_in"]

Step = Callable[[], object]

Maker = Callable[[Shapes, torch.dtype], Step]
"""Makes a method's step of parameters of these shapes."""


def device() -> torch.device:
    """Return the device of the steps: the CUDA device, or the CPU under Triton's interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def stand_in() -> Iterator[None]:
    """Make Triton's interpreted kernels accept tensors on the CPU."""
    from thermoopt.kernels import triton_travel

    with (
        mock.patch.dict(backends._KINDS, {"cpu": "triton"}),
        mock.patch.object(travel_bucket, "travel_plan", triton_travel.DeviceTravelPlan),
    ):
        yield


def random_parameters(shapes: Shapes, dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    """Return parameters with gradients, the same numbers at every call."""
    rng = torch.Generator(device()).manual_seed(0)
    params = []
    for shape in shapes:
        p = torch.nn.Parameter((0.02 * torch.randn(shape, device=device(), generator=rng)).to(dtype))
        p.grad = (1e-3 * torch.randn(shape, device=device(), generator=rng)).to(dtype)
        params.append(p)
    return params


def torch_method(*, fused: bool, observed: bool = False, triton: bool = True) -> Maker:
    """Torch's own step, with an observer or without."""

    def make(shapes: Shapes, dtype: torch.dtype) -> Step:
        optimizer = torch.optim.AdamW(
            random_parameters(shapes, dtype), lr=1e-4, fused=fused, foreach=not fused
        )
        if not observed:
            return optimizer.step
        with without(triton):
            observer = Observer(None, optimizer)

        def step(kept: Observer = observer) -> None:
            optimizer.step()

        return step

    return make


@contextmanager
def without(triton: bool) -> Iterator[None]:
    """Create optimizers as if Triton were missing, unless ``triton`` is set."""
    if triton:
        yield
        return
    with (
        mock.patch.object(backends, "dry_kernel", return_value=None),
        mock.patch.object(step_hooks, "dry_kernel", return_value=None),
    ):
        yield


def thermo_method(*, triton: bool = True, tuned: bool = False, **flags: Any) -> Maker:
    """ThermoAdamW, with autotune or without; ``triton=False`` as if there were no Triton."""

    def make(shapes: Shapes, dtype: torch.dtype) -> Step:
        with without(triton):
            controller = autotune(100_000) if tuned else None
            return ThermoAdamW(random_parameters(shapes, dtype), lr=1e-4, controller=controller, **flags).step

    return make


def moving(make: Maker) -> Maker:
    """A method whose gradients are other tensors in every step, by turns."""

    def made(shapes: Shapes, dtype: torch.dtype) -> Step:
        step = make(shapes, dtype)
        optimizer: torch.optim.Optimizer = step.__self__  # type: ignore[attr-defined]  # a bound method
        params = [p for group in optimizer.param_groups for p in group["params"]]
        turns = [[p.grad for p in params], [p.grad.clone() for p in params]]

        def run() -> None:
            for p, g in zip(params, turns[0], strict=True):
                p.grad = g
            turns.reverse()
            step()

        return run

    return made


def graph_method(*, tuned: bool) -> Maker:
    """Replays of a captured step, with what a controller does between them."""

    def make(shapes: Shapes, dtype: torch.dtype) -> Step:
        controller = autotune(100_000) if tuned else None
        params = random_parameters(shapes, dtype)
        optimizer = ThermoAdamW(params, lr=1e-4, capturable=True, controller=controller)
        if device().type == "cpu":  # no graph: the steps before a capture, taken
            return optimizer.step
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                optimizer.step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            optimizer.step()

        def replay() -> None:
            optimizer.before_replay()
            graph.replay()

        return replay

    return make


def plan_method(*, measure: bool, **shape: int) -> Maker:
    """The Triton plan alone, launched in its usual shape or another."""

    def make(shapes: Shapes, dtype: torch.dtype) -> Step:
        params = random_parameters(shapes, dtype)
        moments = [[torch.zeros_like(p, requires_grad=False) for p in params] for _ in range(2)]
        steps = [torch.zeros((), device=device()) for _ in params]
        options: dict[str, Any] = dict(shape)
        plan = kernels.Plan(params, moments[0], moments[1], [None] * len(params), steps, **options)
        grads = [p.grad for p in params if p.grad is not None]
        numbers: dict[str, Any] = {
            "lr": 1e-4,
            "weight_decay": 1e-2,
            "beta1": 0.9,
            "beta2": 0.999,
            "eps": 1e-8,
        }
        return lambda: plan.step(grads, **numbers, maximize=False, measure=measure)

    return make


METHODS: dict[str, Maker] = {
    "torch foreach": torch_method(fused=False),
    "torch fused": torch_method(fused=True),
    "ThermoAdamW as imported": thermo_method(),
    "ThermoAdamW as imported, gradients elsewhere each step": moving(thermo_method()),
    "ThermoAdamW, measuring off": thermo_method(measure_every=1 << 30),
    "ThermoAdamW, autotune": thermo_method(tuned=True),
    "ThermoAdamW, graph": graph_method(tuned=False),
    "ThermoAdamW, graph, autotune": graph_method(tuned=True),
    "ThermoAdamW fused, every 10th": thermo_method(fused=True),
    "ThermoAdamW fused, no Triton, every 10th": thermo_method(fused=True, triton=False),
    "ThermoAdamW fused, no Triton, every step": thermo_method(fused=True, triton=False, measure_every=1),
    "Observer on torch fused, every 10th": torch_method(fused=True, observed=True),
    "Observer, no Triton, every 10th": torch_method(fused=True, observed=True, triton=False),
    "Triton plan, not measuring": plan_method(measure=False),
    "Triton plan, measuring": plan_method(measure=True),
}
"""The rows of the table."""

SHAPES: dict[str, Maker] = {
    f"block {block}, {chunk} a chunk, {warps} warps": plan_method(
        measure=True, block=block, blocks_per_chunk=chunk, num_warps=warps
    )
    for block, chunk, warps in (
        (512, 16, 4),
        (512, 8, 4),
        (512, 32, 4),
        (1024, 8, 4),
        (1024, 8, 8),
        (1024, 4, 8),
        (2048, 4, 8),
        (256, 16, 2),
    )
}
"""Launch shapes of the plan; the first is the one in use."""
