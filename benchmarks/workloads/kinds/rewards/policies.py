"""Policy gradients on the cart-pole task: proximal policy optimisation, and REINFORCE."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from thermoopt.benchmarks.workloads.kinds.rewards.cartpole import Carts, missing_share
from thermoopt.benchmarks.workloads.task import Task, Workload, data_hash, seeded_task, with_gradients

__all__ = ["PPO", "REINFORCE", "advantages", "clipped"]

FAMILY = "policy gradient"

CARTS, TICKS, LONGEST = 8, 128, 500  # carts, steps of each between updates, steps of an episode
EPOCHS, MINI_BATCH = 4, 256
DISCOUNT, TRACE = 0.99, 0.95
RATIO = 0.2  # furthest that a probability's ratio counts from 1
VALUES = 0.25  # weight of the values' squared error
LARGEST = 0.5  # norm of a gradient


class ActorCritic(nn.Module):
    """Two tanh MLPs with 2 hidden layers of 64: probabilities, which begin nearly even, and values."""

    def __init__(self) -> None:
        super().__init__()
        self.actor, self.critic = _tanh_mlp(2, 0.01), _tanh_mlp(1, 1.0)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities ``[n, 2]`` and values ``[n]`` of states ``[n, 4]``."""
        return self.actor(states).log_softmax(dim=1), self.critic(states)[:, 0]


def _tanh_mlp(outputs: int, gain: float, width: int = 64) -> nn.Sequential:
    layers = nn.Linear(4, width), nn.Linear(width, width), nn.Linear(width, outputs)
    for layer, size in zip(layers, (2**0.5, 2**0.5, gain), strict=True):
        nn.init.orthogonal_(layer.weight, size)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


def advantages(rewards: Tensor, values: Tensor, after: Tensor, over: Tensor) -> Tensor:
    r"""Return generalised advantages ``[ticks, carts]``.

    .. math:: A_t = \delta_t + \gamma\lambda A_{t+1},\quad \delta_t = r_t + \gamma V'_t - V_t

    Args:
        rewards: r.
        values: V, of the states that were acted in.
        after: V', of the states after it; 0 where the pole fell.
        over: whether the episode ended there, after which the sum begins anew.

    References:
        Schulman et al., arXiv 1506.02438, equation 16.
    """
    errors = rewards + DISCOUNT * after - values
    found, later = [], torch.zeros(rewards.shape[1])
    for error, ended in zip(errors.flip(0), over.flip(0), strict=True):
        later = error + DISCOUNT * TRACE * later * ~ended
        found.append(later)
    return torch.stack(found[::-1])


def clipped(gradients: tuple[Tensor, ...], largest: float) -> list[Tensor]:
    """Return gradients scaled down to a norm of at most ``largest``, of all together."""
    norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
    return [g * (largest / norm).clamp(max=1) for g in gradients]


@torch.no_grad()
def _rollout(model: ActorCritic, carts: Carts, rng: torch.Generator) -> tuple[Tensor, ...]:
    """States, pushes, their log-probabilities, advantages and returns of TICKS steps, each in one row."""
    rows: list[tuple[Tensor, ...]] = []
    for _ in range(TICKS):
        states = carts.state
        logs, values = model(states)
        push = torch.multinomial(logs.exp(), 1, generator=rng)[:, 0]
        after, fell, over = carts.step(push)
        rows.append((states, push, logs.gather(1, push[:, None])[:, 0], values, after, fell, over))
    states, pushes, logs, values, after, fell, over = (torch.stack(part) for part in zip(*rows, strict=True))
    next_values = model(after.flatten(0, 1))[1].view(values.shape) * ~fell
    gained = advantages(torch.ones_like(values), values, next_values, over)
    parts = states, pushes, logs, gained, gained + values
    return tuple(part.flatten(0, 1) for part in parts)


def _minibatches(model: ActorCritic, batch: float, rng: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
    """Yield the mini-batches of one rollout after another, EPOCHS times each, by the model as it is then."""
    carts = Carts(round(CARTS * batch), LONGEST, rng)
    while True:
        rows = _rollout(model, carts, rng)
        for _ in range(EPOCHS):
            for chosen in torch.randperm(len(rows[0]), generator=rng).split(round(MINI_BATCH * batch)):
                yield tuple(part[chosen] for part in rows)


def _proximal(model: ActorCritic, rows: tuple[Tensor, ...]) -> Tensor:
    """Clipped surrogate and values' error of a mini-batch (Schulman et al., arXiv 1707.06347, equation 9)."""
    states, pushes, before, gained, returns = rows
    logs, values = model(states)
    ratio = (logs.gather(1, pushes[:, None])[:, 0] - before).exp()
    gained = (gained - gained.mean()) / (gained.std() + 1e-8)
    gain = torch.minimum(ratio * gained, ratio.clamp(1 - RATIO, 1 + RATIO) * gained).mean()
    return VALUES * (values - returns).square().mean() - gain


def _ppo(seed: int, batch: float = 1.0) -> Task:
    batches: Iterator[tuple[Tensor, ...]] | None = None

    def loss(model: ActorCritic, rng: torch.Generator) -> Tensor:
        nonlocal batches
        batches = batches or _minibatches(model, batch, rng)
        value = _proximal(model, next(batches))
        parameters = list(model.parameters())
        return with_gradients(value, parameters, clipped(torch.autograd.grad(value, parameters), LARGEST))

    def choose(model: ActorCritic, states: Tensor, rng: torch.Generator) -> Tensor:
        return torch.multinomial(model(states)[0].exp(), 1, generator=rng)[:, 0]

    return seeded_task(
        ActorCritic,
        loss,
        lambda model: missing_share(lambda states, rng: choose(model, states, rng), LONGEST),
        seed,
    )


def _no_data() -> str:
    return data_hash()


PPO = Workload(
    "ppo",
    "cart-pole, 8 at a time, 128 steps of each and then 4 epochs in mini-batches of 256; proximal policy "
    "optimisation with two tanh MLPs of 2 hidden layers of 64, gradients clipped to a norm of 0.5; share of "
    "500 steps that new episodes fall short of",
    (960, 3840),
    _ppo,
    _no_data,
    metric="share of the longest episode missed",
    family=FAMILY,
)

EPISODES, SHORT = 16, 200  # a batch, and steps of an episode


def _reinforce(seed: int, batch: float = 1.0) -> Task:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 2))

    def push(model: nn.Module, states: Tensor, rng: torch.Generator) -> Tensor:
        return torch.multinomial(model(states).softmax(dim=1), 1, generator=rng)[:, 0]

    def loss(model: nn.Module, rng: torch.Generator) -> Tensor:
        count = round(EPISODES * batch)
        carts, up = Carts(count, SHORT, rng), torch.ones(count, dtype=torch.bool)
        rows: list[tuple[Tensor, ...]] = []
        with torch.no_grad():
            while up.any():
                states = carts.state
                pushes = push(model, states, rng)
                rows.append((states, pushes, up))
                up = up & ~carts.step(pushes)[2]
        states, pushes, alive = (torch.stack(part) for part in zip(*rows, strict=True))
        to_come = alive.flip(0).cumsum(dim=0).flip(0)[alive].float()
        gained = (to_come - to_come.mean()) / (to_come.std() + 1e-6)
        logs = model(states[alive]).log_softmax(dim=1).gather(1, pushes[alive][:, None])[:, 0]
        return -(gained * logs).mean()

    return seeded_task(
        make,
        loss,
        lambda model: missing_share(lambda states, rng: push(model, states, rng), SHORT),
        seed,
    )


REINFORCE = Workload(
    "reinforce",
    "cart-pole, 16 episodes of at most 200 steps per batch; REINFORCE with standardised returns (Williams, "
    "1992), tanh MLP with one hidden layer of 64; share of 200 steps that new episodes fall short of",
    (150, 600),
    _reinforce,
    _no_data,
    metric="share of the longest episode missed",
    family=FAMILY,
)
