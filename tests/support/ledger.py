"""Ways to measure an optimizer, and the account that its readings must give, in float64 by plain formulas."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from thermoopt import Observer, Reading, ThermoAdamW
from thermoopt.kernels import native

LR, WD, BETAS, EPS = 3e-3, 0.1, (0.9, 0.99), 1e-8
SHAPES = {"a": (16, 5), "b": (33,), "c": (2, 3, 4)}
STEPS = 9

# -------------------------------------------------------------------- ways to measure


@dataclass
class Watch:
    """An optimizer that is measured, by itself or by an observer."""

    optimizer: torch.optim.Optimizer
    by: Any

    @property
    def reading(self) -> Reading:
        return self.by.reading

    def averages(self) -> Tensor:
        """What a meter keeps of its averages."""
        if isinstance(self.optimizer, ThermoAdamW):
            return self.optimizer.state_dict()["param_groups"][0]["thermo"]["meter"].clone()
        return self.by.state_dict()["groups"][0]["meter"].clone()


Hook = Callable[..., None] | None
ADAMW = {"lr": LR, "weight_decay": WD, "betas": BETAS, "eps": EPS}


def thermo(**flags: Any) -> Callable[..., Watch]:
    def make(params: Any, ema_steps: float = 1, before: Hook = None, eps: float = EPS) -> Watch:
        options = {**ADAMW, "eps": eps, "measure_every": 1, "ema_steps": ema_steps, **flags}
        optimizer = ThermoAdamW(params, **options)
        if before is not None:
            optimizer.register_step_pre_hook(before)
        return Watch(optimizer, optimizer)

    return make


def observed(kind: type[torch.optim.Optimizer], **flags: Any) -> Callable[..., Watch]:
    def make(params: Any, ema_steps: float = 1, before: Hook = None, eps: float = EPS) -> Watch:
        options = {**ADAMW, "eps": eps} if kind is torch.optim.AdamW else {"lr": 0.05, "momentum": 0.9}
        optimizer = kind(params, **options, **flags)
        if before is not None:
            optimizer.register_step_pre_hook(before)
        return Watch(optimizer, Observer(None, optimizer, log_every=1, ema_steps=ema_steps))

    return make


def without_kernel(make: Callable[..., Watch]) -> Callable[..., Watch]:
    """As on a machine without a compiler: the measuring pass runs in torch operations."""

    def made(*args: Any, **kwargs: Any) -> Watch:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "available", lambda: False)
            return make(*args, **kwargs)

    return made


WAYS = {
    "torch": thermo(backend="torch"),
    "torch foreach": thermo(backend="torch", foreach=True),
    "torch fused": thermo(backend="torch", fused=True),
    "native": thermo(backend="native"),
    "native fused": thermo(backend="native", fused=True),
    "observed AdamW": observed(torch.optim.AdamW),
    "observed AdamW foreach": observed(torch.optim.AdamW, foreach=True),
    "observed AdamW fused": observed(torch.optim.AdamW, fused=True),
    "torch operations": without_kernel(thermo(backend="torch")),
    "torch operations, fused": without_kernel(thermo(backend="torch", fused=True)),
    "observed AdamW in torch operations": without_kernel(observed(torch.optim.AdamW)),
    "observed AdamW in torch operations, fused": without_kernel(observed(torch.optim.AdamW, fused=True)),
    "observed SGD": observed(torch.optim.SGD),
    "observed SGD fused": observed(torch.optim.SGD, fused=True),
}
needs_native = pytest.mark.skipif(
    native.unavailable_reason() is not None, reason=f"no native kernel: {native.unavailable_reason()}"
)
every_way = pytest.mark.parametrize(
    "way", [pytest.param(way, marks=needs_native if "native" in way else ()) for way in WAYS]
)


def make_params(dtype: torch.dtype = torch.float32) -> list[tuple[str, Parameter]]:
    rng = torch.Generator().manual_seed(3)
    return [(name, Parameter(torch.randn(s, generator=rng).to(dtype))) for name, s in SHAPES.items()]


def gradients(t: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """With a mean that lasts, so that no signed sum is noise alone."""
    rng = torch.Generator().manual_seed(100 + t)
    return [(torch.randn(s, generator=rng) + 0.5).to(dtype) for s in SHAPES.values()]


# -------------------------------------------------------------------- the account in float64


def to64(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy().reshape(-1).copy()


def adam_sums(p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> dict[str, float]:
    """Sums of the step that AdamW is about to take, from what it holds: written out, in float64."""
    theta, g = to64(p), to64(p.grad)
    m, v = (to64(state[key]) if state else np.zeros_like(g) for key in ("exp_avg", "exp_avg_sq"))
    t = float(state["step"]) + 1 if state else 1.0
    beta1, beta2 = group["betas"]
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
    pre = 1 / (np.sqrt(v / (1 - beta2**t)) + group["eps"])
    u = pre * m / (1 - beta1**t)
    touched = np.count_nonzero(v)
    null = (1 - beta1) * (1 + beta1**t) / ((1 + beta1) * (1 - beta1**t))
    return {
        **common_sums(theta, g, u),
        "B": g**2 @ pre,
        "N1": np.abs(g) @ pre,
        "D": touched,
        "NULL": touched * null,
    }


def common_sums(theta: np.ndarray, g: np.ndarray, u: np.ndarray) -> dict[str, float]:
    pairs = {
        "A": (g, u),
        "UU": (u, u),
        "TU": (theta, u),
        "TT": (theta, theta),
        "GG": (g, g),
        "GT": (g, theta),
    }
    return {name: float(x @ y) for name, (x, y) in pairs.items()}


@dataclass
class Ledger:
    """Averages of a layer's sums over steps that count: the formulas of the README, written out again."""

    ema_steps: float
    lr: float
    wd: float
    means: dict[str, dict[str, float]] = field(default_factory=dict)
    weight: float = 0.0
    last: int = 0

    def enter(self, step: int, sums: dict[str, dict[str, float]]) -> None:
        q = (1 - 1 / self.ema_steps) ** (step - self.last)
        self.last = step
        for layer, own in sums.items():
            old = self.means.get(layer, dict.fromkeys(own, 0.0))
            self.means[layer] = {name: q * old[name] + (1 - q) * value for name, value in own.items()}
        self.weight = q * self.weight + 1 - q

    def check(self, reading: Reading, rtol: float) -> None:
        layers = {name: {k: x / self.weight for k, x in own.items()} for name, own in self.means.items()}
        total = {k: sum(own[k] for own in layers.values()) for k in next(iter(layers.values()))}
        assert reading.step == self.last
        for name, x, got in [
            *((name, x, reading.layers[name]) for name, x in layers.items()),
            ("total", total, reading.total),
        ]:
            lr, wd = self.lr, self.wd
            expected = {
                "sigma": lr * x["A"],
                "sigma_sgd": lr * x["GG"],
                "phi": lr / 4 * x["UU"],
                "grad_norm": math.sqrt(x["GG"]),
                "param_norm": math.sqrt(x["TT"]),
                "update_norm": math.sqrt(x["UU"]),
                "angular_step": lr * math.sqrt(x["UU"] / x["TT"]) if x["TT"] else math.inf,
                "d_iS_wd": lr * wd * x["GT"],
                "lr_eff": lr,
            }
            if "B" in x:
                expected["thermal_loss"] = lr / 4 * x["B"]
                expected["r"] = x["UU"] / x["NULL"]
                expected["gaussianity"] = x["N1"] / x["D"]
            # a signed sum may cancel: its error is one of its terms' sizes, which Cauchy-Schwarz bounds
            size = {
                "sigma": lr * math.sqrt(x["GG"] * x["UU"]),
                "d_iS_wd": lr * wd * math.sqrt(x["GG"] * x["TT"]),
            }
            for quantity, value in expected.items():
                read = getattr(got, quantity)
                close = read == value or abs(read - value) <= rtol * size.get(quantity, abs(value))
                assert close, (name, quantity, read, value)


class Run:
    """Steps of an optimizer with a ledger kept beside it."""

    def __init__(self, watch: Watch, named: Sequence[tuple[str, Tensor]], ema_steps: float = 1) -> None:
        self.watch, self.named = watch, list(named)
        group = watch.optimizer.param_groups[0]
        self.sgd = isinstance(watch.optimizer, torch.optim.SGD)
        self.ledger = Ledger(ema_steps, group["lr"], 0.0 if self.sgd else group["weight_decay"])

    def step(self, take: Callable[[], Any] | None = None, count: int | None = None) -> None:
        """Enter the step that ``take`` is about to take, with the gradients as they are now."""
        optimizer = self.watch.optimizer
        group = optimizer.param_groups[0]
        if not self.sgd:
            sums = {name: adam_sums(p, optimizer.state.get(p) or {}, group) for name, p in self.named}
        before = {name: (to64(p), to64(p.grad)) for name, p in self.named}
        (take or optimizer.step)()
        if self.sgd:  # what it did to the parameters, its momentum included
            sums = {
                name: common_sums(*before[name], (before[name][0] - to64(p)) / group["lr"])
                for name, p in self.named
            }
        self.ledger.enter(count or self.ledger.last + 1, sums)

    def check(self, rtol: float = 2e-5) -> None:
        self.ledger.check(self.watch.reading, rtol)


def assert_same_bits(a: Sequence[tuple[str, Tensor]], b: Sequence[tuple[str, Tensor]]) -> None:
    for (name, p), (_, q) in zip(a, b, strict=True):
        assert torch.equal(p, q), name
