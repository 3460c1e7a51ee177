"""Agreement of four measures on a quadratic and on small networks, and checks of theorems 6 and 7."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thermoopt import ThermoAdamW
from thermoopt.irreversibility import (
    Comparison,
    FlatField,
    UpdateField,
    adam_field,
    compare_measures,
    emergent_force,
    rescaling,
    rotation,
    sgd_field,
    sharpness,
    symmetry_breaking,
)

__all__ = ["GRID", "KINDS", "SYMMETRIES", "agree", "symmetry"]

GRID = np.logspace(-3, np.log10(4), 8)
"""Step sizes in units of 1/λ, λ the largest eigenvalue at the point: 2 is the edge of stability."""

TRAINED = 50
"""Training steps before a net is measured, so that its gradients are neither initial ones nor noise."""

FIRST, SECOND = ("0.weight", "0.bias"), ("2.weight",)


def _net(
    seed: int, activation: type[nn.Module], width: int = 16
) -> tuple[nn.Module, Callable[[Any], Tensor]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(8, width), activation(), nn.Linear(width, 3))
        x = torch.randn(64, 8)
        y = torch.tanh(x @ torch.randn(8, 3)) + 0.1 * torch.randn(64, 3)
    return net, lambda model: F.mse_loss(model(x), y)


def _quadratic(seed: int) -> tuple[Callable[[Tensor], Tensor], Tensor, None]:
    rng = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(20, 20, generator=rng, dtype=torch.float64))
    a = q @ torch.diag(torch.logspace(-3, 0, 20, dtype=torch.float64)) @ q.T
    return lambda t: a @ t, torch.randn(20, generator=rng, dtype=torch.float64), None


def _field(seed: int, activation: type[nn.Module], adam: bool) -> UpdateField:
    net, loss = _net(seed, activation)
    lr = 1e-2 if adam else 0.1
    optimizer = (torch.optim.AdamW if adam else torch.optim.SGD)(net.parameters(), lr=lr)
    for _ in range(TRAINED):
        optimizer.zero_grad()
        loss(net).backward()
        optimizer.step()
    return adam_field(net, loss, optimizer) if adam else sgd_field(net, loss)


def _trained(
    activation: type[nn.Module], adam: bool, seed: int
) -> tuple[UpdateField, dict[str, Tensor], Mapping[str, Tensor] | None]:
    field = _field(seed, activation, adam)
    return field, field.params, field.metric


KINDS: dict[str, Callable[[int], tuple[Any, Any, Any]]] = {
    "quadratic": _quadratic,
    "tanh, SGD": partial(_trained, nn.Tanh, False),
    "ReLU, SGD": partial(_trained, nn.ReLU, False),
    "tanh, frozen Adam": partial(_trained, nn.Tanh, True),
}
"""Update fields by name, made from a seed: a quadratic with eigenvalues over three decades, and nets of two
layers (8, 16 and 3 units, squared error) after some training."""


def agree(kind: str, seed: int) -> tuple[dict[str, Any], Comparison]:
    """Compare the measures on one field over :data:`GRID`.

    Values are differences from the origin for the quadratic and from half the parameters for the nets, so
    that the line integral stays where the net has been.
    """
    start = time.perf_counter()
    update, params, metric = KINDS[kind](seed)
    reference = (
        None if metric is None and isinstance(params, Tensor) else {n: p / 2 for n, p in params.items()}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the grid passes the edge of stability on purpose
        scale = sharpness(FlatField(update, params, metric))
        found = compare_measures(update, params, GRID / scale, metric=metric, reference=reference)
    row = {
        "part": "agreement",
        "kind": kind,
        "seed": seed,
        "sharpness": found.sharpness,
        "asymmetry": found.asymmetry,
        "evaluations": found.evaluations,
        "eta": found.eta.tolist(),
        "slope": {name: fit.slope for name, fit in found.slopes().items()},
        "error_slope": {name: fit.slope for name, fit in found.error_slopes().items()},
        "gradient_slope": {name: fit.slope for name, fit in found.gradient_slopes().items()},
        "value_error": {name: errors.tolist() for name, errors in found.relative_errors.items()},
        "gradient_error": {name: errors.tolist() for name, errors in found.gradient_errors.items()},
        "seconds": round(time.perf_counter() - start, 2),
    }
    return row, found


# ------------------------------------------------------------------ symmetries


def _rescaling(seed: int) -> float:
    """Theorem 6 on a ReLU net: its dφ/ds against a finite difference of phi, relative."""
    field = _field(seed, nn.ReLU, adam=False)
    turn = rescaling(FIRST, SECOND)
    found = symmetry_breaking(turn, field, field.params, 1.0)
    ends = []
    for s in (1e-4, -1e-4):
        update = field(turn.act(field.params, s))
        ends.append(sum(float(u.square().sum()) for u in update.values()) / 4)
    return abs((ends[0] - ends[1]) / 2e-4 / found.slope - 1)


def _force(seed: int) -> float:
    """Cosine between the emergent force along the rescaling and the direction that balances ‖U₁‖ and ‖U₂‖."""
    field = _field(seed, nn.ReLU, adam=False)
    moves = rescaling(FIRST, SECOND).generator(field.params)
    force, update = emergent_force(field, field.params, 1.0).force, field(field.params)
    first = sum(float(update[n].square().sum()) for n in FIRST)
    second = sum(float(update[n].square().sum()) for n in SECOND)
    along = sum(float((force[n] * moves[n]).sum()) for n in moves)
    return float(np.sign(along) * np.sign(first - second))


def _balance(seed: int) -> float:
    """SGD's exact identity Δ(‖W₁‖²-‖W₂‖²) = η²(‖g₁‖²-‖g₂‖²) over 100 steps: largest relative error."""
    net, loss = _net(seed, nn.ReLU)
    net.double()
    field = sgd_field(net, loss)
    sign = {**dict.fromkeys(FIRST, 1.0), **dict.fromkeys(SECOND, -1.0)}

    def total(point: Mapping[str, Tensor]) -> float:
        return sum(sign[n] * float(t.detach().square().sum()) for n, t in point.items() if n in sign)

    params, worst = field.params, 0.0
    for _ in range(100):
        update = field(params)
        after = {n: p - 0.1 * update[n] for n, p in params.items()}
        worst = max(worst, abs((total(after) - total(params)) / (0.01 * total(update)) - 1))
        params = after
    return worst


def _rotated_net(seed: int) -> float:
    """Theorem 7: relative change of phi of SGD when two units of a linear net are turned by 0.8."""
    field = _field(seed, nn.Identity, adam=False)
    moved = rotation(FIRST, SECOND, 0, 5).act(field.params, 0.8)
    a, b = (sum(float(u.square().sum()) for u in field(p).values()) for p in (field.params, moved))
    return abs(b / a - 1)


def _adam(seed: int, *, signed: bool) -> float:
    """Mean relative change of Adam's phi along a run when its parameters are seen in turned coordinates."""
    n, rng = 32, torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(n, n, generator=rng, dtype=torch.float64))
    if signed:
        signs = torch.randint(2, (n,), generator=rng) * 2.0 - 1
        turn = torch.eye(n, dtype=torch.float64)[torch.randperm(n, generator=rng)] * signs
    one = torch.eye(n, dtype=torch.float64)
    a, b = (_phi_of_adam(seed, matrix) for matrix in (one, turn))
    return float(np.mean(np.abs(b / a - 1)))


def _phi_of_adam(seed: int, turn: Tensor) -> np.ndarray:
    rng = torch.Generator().manual_seed(seed)
    n = len(turn)
    scales = torch.logspace(0, 2, n, dtype=torch.float64)
    p = nn.Parameter(turn @ torch.randn(n, generator=rng, dtype=torch.float64))
    optimizer = ThermoAdamW([p], lr=1e-2, weight_decay=0.0, eps=1e-12, ema_steps=1, measure_every=1)
    out = []
    for _ in range(200):
        optimizer.zero_grad()
        theta, noise = turn.T @ p, torch.randn(n, generator=rng, dtype=torch.float64)
        ((scales * theta.square()).sum() / 2 + noise @ theta).backward()
        optimizer.step()
        assert optimizer.reading is not None
        out.append(optimizer.reading.total.phi)
    return np.array(out)


SYMMETRIES: dict[str, Callable[[int], float]] = {
    "theorem 6, rescaling of a ReLU net: error of dφ/ds": _rescaling,
    "force points to ‖U₁‖ = ‖U₂‖ (1 yes, -1 no)": _force,
    "SGD's balance identity: error over 100 steps": _balance,
    "theorem 7, SGD, rotation of a linear net: change of φ": _rotated_net,
    "theorem 7, Adam, signed permutation: change of φ": partial(_adam, signed=True),
    "theorem 7 does not hold, Adam, rotation: change of φ": partial(_adam, signed=False),
}
"""The checks of the theorems by name, each a function from a seed to a number."""


def symmetry(seed: int) -> dict[str, Any]:
    """Check the theorems."""
    with torch.random.fork_rng(devices=[]):
        return {
            "part": "symmetries",
            "seed": seed,
            "found": {name: check(seed) for name, check in SYMMETRIES.items()},
        }
