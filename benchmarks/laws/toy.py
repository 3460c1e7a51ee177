"""The laws in the river valley: every closed form against motion, with standard errors."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import differential_entropy

from thermoopt.landscape import RULES, Mean, RiverValley, average, greedy_rates, simulate

__all__ = ["LAWS", "Toy", "toy"]

WALLS = (0.1, 0.3, 1.0, 3.0)
ETAS = (0.02, 0.05, 0.1, 0.2, 0.4)
STEPS = 3000
BURN_IN = 500
"""Initial steps left out: the start has the right variance, but Adam's moments and sign's shape need time."""


@dataclass(frozen=True)
class Toy:
    """One law with one seed of the noise."""

    law: str
    seed: int
    replicas: int = 1500

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return {"experiment": "toy", **asdict(self)}


def _points(at: list[float], mean: Mean, expected: Any, series: str) -> list[dict[str, Any]]:
    """Return one point per value."""
    values = zip(at, np.ravel(mean.value), np.ravel(mean.error), np.ravel(expected), strict=True)
    return [
        {"series": series, "at": float(x), "measured": float(m), "error": float(e), "expected": float(p)}
        for x, m, e, p in values
    ]


def _start(valley: RiverValley, eta: float, rule: str, case: Toy) -> np.ndarray:
    scale = np.sqrt(valley.temperature(eta, rule) / valley.curvature())
    return scale * np.random.default_rng(10_000 + case.seed).standard_normal((case.replicas, valley.modes))


def _held(valley: RiverValley, eta: float, case: Toy, rule: str = "sgd", **options: Any) -> Any:
    steps = options.pop("steps", STEPS)
    return simulate(
        valley,
        np.full(steps, eta),
        rule=rule,
        replicas=case.replicas,
        every=options.pop("every", 20),
        x0=_start(valley, eta, rule, case),
        seed=case.seed,
        **options,
    )


def _temperature(rule: str) -> Callable[[Toy], list[dict[str, Any]]]:
    def measure(case: Toy) -> list[dict[str, Any]]:
        valley, points = RiverValley(WALLS), []
        for eta in ETAS:
            losses = _held(valley, eta, case, rule).fast_losses(since=BURN_IN)
            expected = valley.thermal_loss(eta, rule)
            for i, a in enumerate(WALLS):
                one = Mean(losses.value[i], losses.error[i])
                points += _points([eta], one, expected[i], f"a = {a:g}")
        return points

    return measure


def _heat_capacity(case: Toy) -> list[dict[str, Any]]:
    """Variance of the loss over T squared: the canonical fluctuation, in n modes of equal curvature."""
    points = []
    for n in (1, 2, 4, 8):
        valley = RiverValley((1.0,) * n)
        moved = _held(valley, 0.1, case, steps=2000, every=50)
        loss = valley.loss(moved.x, moved.y)[1:]
        # variances in ten parts of the replicas are independent
        parts = np.stack([part.var() for part in np.array_split(loss, 10, axis=1)])
        capacity = average(parts / valley.temperature(0.1)[0] ** 2)
        points += _points([n], capacity, valley.heat_capacity, "variance of the loss / T^2")
    return points


def _entropy(case: Toy) -> list[dict[str, Any]]:
    """Vasicek's estimate from the points themselves, no Gaussian assumed; in nats."""
    points = []
    valley = RiverValley(WALLS)
    for eta in ETAS:
        many = Toy(case.law, case.seed, 20 * case.replicas)  # the estimate's bias falls with their number
        x = _held(valley, eta, many, steps=100, every=100).x[-1]
        parts = np.stack([differential_entropy(part, axis=0) for part in np.array_split(x, 3)])
        mean, expected = average(parts), valley.entropy(valley.temperature(eta))
        for i, a in enumerate(WALLS):
            points += _points([eta], Mean(mean.value[i], mean.error[i]), expected[i], f"a = {a:g}")
    return points


def _entropic_force(case: Toy) -> list[dict[str, Any]]:
    points = []
    for narrowing in (-1.0, 0.5, 1.0):
        valley = RiverValley(WALLS, narrowing=narrowing)
        for eta in ETAS:
            force = _held(valley, eta, case, steps=2000).force(since=BURN_IN)
            expected = valley.entropic_force(valley.temperature(eta))
            points += _points([eta], force, expected, f"kappa = {narrowing:g}")
    return points


def _free_energy(case: Toy) -> list[dict[str, Any]]:
    """Work against the mean force from y = 0: thermodynamic integration over held places."""
    valley, eta = RiverValley((1.0, 1.0), narrowing=0.8), 0.05
    places = np.linspace(0, 1.5, 13)
    forces = [_held(valley, eta, case, y0=y, steps=3000).force(since=BURN_IN) for y in places]
    value = np.array([f.value for f in forces])
    width = places[1] - places[0]
    work = -np.concatenate([[0], np.cumsum((value[1:] + value[:-1]) / 2)]) * width
    error = width * np.sqrt(np.cumsum([f.error**2 for f in forces]))
    # each place has the exact temperature of its own width, so that F is integrated in it alike
    exact = [valley.entropic_force(valley.temperature(eta, y=float(y))) for y in places]
    expected = -np.concatenate([[0], np.cumsum((np.array(exact)[1:] + np.array(exact)[:-1]) / 2)]) * width
    every = slice(4, None, 4)
    return _points(list(places[every]), Mean(work[every], error[every]), expected[every], "work from y = 0")


def _stopping(case: Toy) -> list[dict[str, Any]]:
    """Speed of the free river over its cold speed, against 1 - T/T_stop."""
    valley = RiverValley((2.0, 2.0), noise=3.0, slope=0.02, narrowing=0.5)
    points = []
    for times in (0.25, 0.5, 1.5, 2.0):
        t = times * valley.stopping_temperature
        eta = 2 * t / (valley.noise**2 + 2 * t)
        moved = _held(valley, eta, case, steps=600, every=600, held=False)
        speed = average(moved.y[-1] / (600 * eta * valley.slope))
        points += _points([times], speed, 1 - times, "speed / cold speed")
    return points


def _conduction(case: Toy) -> list[dict[str, Any]]:
    """A mode heated to four times its equilibrium."""
    points = []
    eta, steps = 0.02, 200
    for a in (0.3, 1.0, 3.0):
        valley = RiverValley((a,))
        start = 4 * valley.thermal_loss(eta)
        many = Toy(case.law, case.seed, 40 * case.replicas)
        moved = simulate(
            valley,
            np.full(steps, eta),
            replicas=many.replicas,
            x0=2 * _start(valley, eta, "sgd", many),
            every=20,
            seed=case.seed,
        )
        course = moved.course()
        expected = valley.fast_losses_along(np.full(steps, eta), start)[::20]
        mean = Mean(course.value[2:], course.error[2:])
        points += _points(moved.steps[2:].tolist(), mean, expected[2:], f"a = {a:g}")
    return points


def _greedy(case: Toy) -> list[dict[str, Any]]:
    points = []
    for a in (0.3, 1.0, 3.0):
        valley, steps = RiverValley((a,)), 400
        etas = greedy_rates(a, 0.3, steps)
        many = Toy(case.law, case.seed, 40 * case.replicas)
        moved = simulate(
            valley, etas, replicas=many.replicas, x0=_start(valley, 0.3, "sgd", many), every=50,
            seed=case.seed,
        )  # fmt: skip
        course = moved.course()
        mean = Mean(course.value[1:], course.error[1:])
        points += _points(moved.steps[1:].tolist(), mean, etas[49::50] / 2, f"a = {a:g}")
    return points


def _final_loss(case: Toy) -> list[dict[str, Any]]:
    """A spectrum and a river: final minus initial loss of four schedules of 400 steps."""
    valley, steps, eta = RiverValley(tuple(np.geomspace(0.01, 1, 8)), slope=0.1), 400, 0.4
    u = np.arange(steps) / steps
    shapes = {
        "constant": np.full(steps, eta),
        "cosine": eta * (1 + np.cos(np.pi * u)) / 2,
        "linear": eta * (1 - u),
        "1/t": greedy_rates(1.0, eta, steps),
    }
    points = []
    for i, (name, etas) in enumerate(shapes.items()):
        moved = simulate(
            valley, etas, replicas=case.replicas, x0=_start(valley, eta, "sgd", case), every=steps,
            held=False, seed=case.seed,
        )  # fmt: skip
        start = valley.thermal_loss(eta)
        gained = average(valley.loss(moved.x[-1], moved.y[-1]) - start.sum())
        points += _points([i], gained, valley.final_loss(etas, start) - start.sum(), name)
    return points


LAWS: dict[str, tuple[str, Callable[[Toy], list[dict[str, Any]]]]] = {
    **{f"thermal loss, {rule}": ("eta", _temperature(rule)) for rule in RULES},
    "heat capacity": ("modes", _heat_capacity),
    "entropy": ("eta", _entropy),
    "entropic force": ("eta", _entropic_force),
    "free energy": ("y", _free_energy),
    "stopping temperature": ("T / T_stop", _stopping),
    "conduction": ("step", _conduction),
    "greedy 1/t": ("step", _greedy),
    "final loss": ("schedule", _final_loss),
}
"""Law to the name of its variable and its measurement."""


def toy(case: Toy) -> dict[str, Any]:
    """Measure one law.

    Returns:
        The row: the case; ``points``, each with ``series``, ``at``, ``measured``, ``error`` and ``expected``;
        ``seconds``.
    """
    started = time.perf_counter()
    points = LAWS[case.law][1](case)
    return {**case.to_dict(), "points": points, "seconds": round(time.perf_counter() - started, 2)}
