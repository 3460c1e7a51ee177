"""A pendulum that a network swings up, with gradients through the physics, 25 steps at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from thermoopt.benchmarks.workloads.task import Task, Workload, data_hash, seeded_task

__all__ = ["PENDULUM", "accelerated", "mean_cost"]

TICKS, TICK = 25, 0.05  # steps of an episode, s
GRAVITY, LENGTH, MASS = 10.0, 1.0, 1.0  # as in Gymnasium's Pendulum-v1
FASTEST, STRONGEST = 8.0, 2.0  # rad/s, N m
SHAKEN = 0.1  # noise on what the network asks for
BATCH, JUDGED = 32, 256


def accelerated(angle: Tensor, speed: Tensor, torque: Tensor) -> Tensor:
    """Return the speed a step later: (3 g / 2 l) sin θ + 3 u / (m l²), θ from upright, bounded."""
    pull = 3 * GRAVITY / (2 * LENGTH) * angle.sin() + 3 * torque / (MASS * LENGTH**2)
    return (speed + TICK * pull).clamp(-FASTEST, FASTEST)


def mean_cost(model: nn.Module, angle: Tensor, rng: torch.Generator | None) -> Tensor:
    """Return the mean of θ² + 0.1 ω² + 0.001 u² from rest at angles ``[n]``; no noise without a generator."""
    speed = torch.zeros_like(angle)
    costs = []
    for _ in range(TICKS):
        asked = model(torch.stack([angle.cos(), angle.sin(), speed], dim=1))[:, 0]
        if rng is not None:
            asked = asked + SHAKEN * torch.randn(len(angle), generator=rng)
        torque = STRONGEST * torch.tanh(asked)
        speed = accelerated(angle, speed, torque)
        angle = angle + TICK * speed
        off = torch.atan2(angle.sin(), angle.cos())
        costs.append((off.square() + 0.1 * speed.square() + 0.001 * torque.square()).mean())
    return torch.stack(costs).mean()


def _pendulum(seed: int, batch: float = 1.0) -> Task:
    judged = torch.arange(JUDGED) * 2 * math.pi / JUDGED

    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 1))

    def loss(model: nn.Module, rng: torch.Generator) -> Tensor:
        return mean_cost(model, 2 * math.pi * torch.rand(round(BATCH * batch), generator=rng), rng)

    return seeded_task(make, loss, lambda model: mean_cost(model, judged, None), seed)


PENDULUM = Workload(
    "pendulum",
    "a pendulum to swing up from any angle within 25 steps, batch 32, with gradients through the physics; "
    "tanh MLP with one hidden layer of 64; mean cost over 256 starting angles",
    (240, 960),
    _pendulum,
    lambda: data_hash(),
    metric="mean cost",
    family="differentiable control",
)
