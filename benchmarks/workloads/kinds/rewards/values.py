"""Values learned from a network's own: Q-learning on the cart-pole task, temporal differences on a ring."""

from __future__ import annotations

import copy
import math
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thermoopt.benchmarks.workloads.kinds.rewards.cartpole import Carts, missing_share
from thermoopt.benchmarks.workloads.task import Task, Workload, data_hash, seeded_task

__all__ = ["Q_LEARNING", "TD", "Memory", "ring", "true_values"]

FAMILY = "values"

CARTS, LONGEST = 4, 500  # carts, steps of an episode
FIRST, TICKS = 100, 2  # steps before the first update, and from one to the next
EXPLORED, LEAST = 800, 0.05  # steps over which random pushes become rarer, and their least share
RENEWED = 100  # updates from one copy of the network that gives the targets to the next
DISCOUNT = 0.99
KEPT = 50_000  # transitions


class Memory:
    """The last transitions: states, pushes, states after, whether the pole fell."""

    def __init__(self, size: int) -> None:
        self.parts = torch.empty(size, 4), torch.empty(size).long(), torch.empty(size, 4), torch.empty(size)
        self.count = 0

    def add(self, *rows: Tensor) -> None:
        """Write transitions over the oldest ones."""
        at = torch.arange(self.count, self.count + len(rows[0])) % len(self.parts[0])
        for part, new in zip(self.parts, rows, strict=True):
            part[at] = new.to(part.dtype)
        self.count += len(rows[0])

    def draw(self, count: int, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Return transitions, drawn with replacement."""
        rows = torch.randint(min(self.count, len(self.parts[0])), (count,), generator=rng)
        return tuple(part[rows] for part in self.parts)


def _q_net(width: int = 64) -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2)
    )


def _q_learning(seed: int, batch: float = 1.0) -> Task:
    memory = Memory(KEPT)
    carts: Carts | None = None
    target: nn.Module | None = None
    ticks = updates = 0

    @torch.no_grad()
    def act(model: nn.Module, carts: Carts, rng: torch.Generator) -> None:
        nonlocal ticks
        states = carts.state
        random = torch.rand(CARTS, generator=rng) < max(LEAST, 1 - ticks / EXPLORED)
        pushes = torch.where(random, torch.randint(2, (CARTS,), generator=rng), model(states).argmax(dim=1))
        after, fell, _ = carts.step(pushes)
        memory.add(states, pushes, after, fell)
        ticks += 1

    def loss(model: nn.Module, rng: torch.Generator) -> Tensor:
        nonlocal carts, target, updates
        carts = carts or Carts(CARTS, LONGEST, rng)
        for _ in range(TICKS if updates else FIRST):
            act(model, carts, rng)
        if target is None or updates % RENEWED == 0:
            target = copy.deepcopy(model)
        updates += 1
        states, pushes, after, fell = memory.draw(round(64 * batch), rng)
        with torch.no_grad():
            aim = 1 + DISCOUNT * (1 - fell) * target(after).amax(dim=1)
        return F.smooth_l1_loss(model(states).gather(1, pushes[:, None])[:, 0], aim)

    return seeded_task(
        _q_net,
        loss,
        lambda model: missing_share(lambda states, rng: model(states).argmax(dim=1), LONGEST),
        seed,
    )


Q_LEARNING = Workload(
    "q-learning",
    "cart-pole, 4 at a time, two steps of each between updates on 64 replayed ones, targets from a copy of "
    "the network that is renewed every 100 updates (Mnih et al., arXiv 1312.5602); ReLU MLP with 2 hidden "
    "layers of 64; share of 500 steps that new episodes fall short of",
    (1500, 6000),
    _q_learning,
    lambda: data_hash(),
    metric="share of the longest episode missed",
    family=FAMILY,
)

PLACES, FEATURES = 40, 16
ONWARD = 0.6  # chance of a step onward; else back
NOISE = 0.5  # of a reward
RING_DISCOUNT = 0.95


@cache
def ring() -> tuple[Tensor, Tensor, Tensor]:
    """Return the chances ``[PLACES, PLACES]`` of the next place, each place's reward, and its features."""
    chances = torch.zeros(PLACES, PLACES)
    here = torch.arange(PLACES)
    chances[here, (here + 1) % PLACES] = ONWARD
    chances[here, (here - 1) % PLACES] = 1 - ONWARD
    features = torch.randn(PLACES, FEATURES, generator=torch.Generator().manual_seed(7))
    return chances, torch.sin(2 * math.pi * here / PLACES), features


@cache
def true_values() -> Tensor:
    """Solve V = P (r + γ V), float64 ``[PLACES]``."""
    chances, rewards, _ = (part.double() for part in ring())
    return torch.linalg.solve(torch.eye(PLACES).double() - RING_DISCOUNT * chances, chances @ rewards)


def _td(seed: int, batch: float = 1.0) -> Task:
    _, rewards, features = ring()

    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(FEATURES, 64), nn.Tanh(), nn.Linear(64, 1), nn.Flatten(0))

    def loss(model: nn.Module, rng: torch.Generator) -> Tensor:
        here = torch.randint(PLACES, (round(32 * batch),), generator=rng)
        onward = torch.rand(len(here), generator=rng) < ONWARD
        there = (here + torch.where(onward, 1, -1)) % PLACES
        got = rewards[there] + NOISE * torch.randn(len(here), generator=rng)
        with torch.no_grad():
            aim = got + RING_DISCOUNT * model(features[there])
        return F.mse_loss(model(features[here]), aim)

    return seeded_task(make, loss, lambda model: F.mse_loss(model(features), true_values().float()), seed)


TD = Workload(
    "td",
    "random walk on a ring of 40 states with noisy rewards, generated, batch 32; temporal differences with "
    "a tanh MLP with one hidden layer of 64 on 16 features; mean squared error against the known values",
    (600, 2400),
    _td,
    lambda: data_hash(*(part.numpy() for part in ring())),
    metric="mean squared error",
    family=FAMILY,
)
