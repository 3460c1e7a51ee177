"""Policy gradient in a maze, evaluated by the share of the best return missed, as its loss says nothing."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from thermoopt.benchmarks.workloads.task import Task, Workload, data_hash

__all__ = ["MAZE", "Policy", "best_values", "layout", "moves", "values"]

SIDE = 9
WALLS = 0.2  # share of the cells
SLIP = 0.1  # chance that a move goes anywhere
DISCOUNT = 0.95
EPISODES, LONGEST = 16, 40  # a batch, and steps of an episode
EXPLORATION = 0.01  # weight of the entropy
STEPS = ((-1, 0), (1, 0), (0, -1), (0, 1))


@cache
def layout() -> tuple[np.ndarray, int]:
    """Draw the maze: free cells ``[SIDE, SIDE]``, all of which lead to the goal, and the goal's number."""
    rng = np.random.default_rng(0)
    open_cells = rng.uniform(size=(SIDE, SIDE)) >= WALLS
    goal = (SIDE - 1, SIDE - 1)
    open_cells[goal] = True
    reached = {goal}
    edge = [goal]
    while edge:
        row, column = edge.pop()
        for dy, dx in STEPS:
            cell = row + dy, column + dx
            inside = 0 <= cell[0] < SIDE and 0 <= cell[1] < SIDE
            if inside and open_cells[cell] and cell not in reached:
                reached.add(cell)
                edge.append(cell)
    free = np.zeros((SIDE, SIDE), dtype=bool)
    free[tuple(np.array(sorted(reached)).T)] = True
    return free, SIDE * SIDE - 1


@cache
def moves() -> Tensor:
    """Return where each of the 4 moves leads from each cell, ``[SIDE², 4]``; at a wall one stays."""
    free, _ = layout()
    to = np.empty((SIDE * SIDE, len(STEPS)), dtype=int)
    for cell in range(SIDE * SIDE):
        row, column = divmod(cell, SIDE)
        for i, (dy, dx) in enumerate(STEPS):
            y, x = row + dy, column + dx
            inside = 0 <= y < SIDE and 0 <= x < SIDE and free[y, x]
            to[cell, i] = y * SIDE + x if inside else cell
    return torch.tensor(to)


def _chances(policy: Tensor) -> Tensor:
    """Return the probabilities ``[SIDE², SIDE²]`` of the next cell; the goal leads nowhere."""
    slipped = (1 - SLIP) * policy + SLIP / len(STEPS)
    chances = torch.zeros(SIDE * SIDE, SIDE * SIDE, dtype=policy.dtype).scatter_add_(1, moves(), slipped)
    chances[layout()[1]] = 0
    return chances


def values(policy: Tensor) -> Tensor:
    """Solve V = P (r + γ V) for a policy ``[SIDE², 4]``; r is 1 for the goal; float64 ``[SIDE²]``."""
    chances = _chances(policy.double())
    goal = layout()[1]
    return torch.linalg.solve(
        torch.eye(len(chances), dtype=torch.float64) - DISCOUNT * chances, chances[:, goal]
    )


@cache
def best_values() -> Tensor:
    """Return the largest values that a policy can have, by policy iteration from the uniform one."""
    policy = torch.full((SIDE * SIDE, len(STEPS)), 1 / len(STEPS), dtype=torch.float64)
    while True:
        worth = DISCOUNT * values(policy)
        worth[layout()[1]] = 1.0
        better = torch.nn.functional.one_hot(worth[moves()].argmax(dim=1), len(STEPS)).double()
        if torch.equal(better, policy):
            return values(policy)
        policy = better


class Policy(nn.Module):
    """From a cell's row and column, one-hot: logits of the moves, and the value."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2 * SIDE, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.actor, self.critic = nn.Linear(width, len(STEPS)), nn.Linear(width, 1)

    def forward(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities ``[n, 4]`` and values ``[n]`` of cells by number."""
        eye = torch.eye(SIDE)
        hidden = self.body(torch.cat([eye[cells // SIDE], eye[cells % SIDE]], dim=1))
        return self.actor(hidden).log_softmax(dim=1), self.critic(hidden)[:, 0]


def _walk(model: nn.Module, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Cells visited, moves chosen and discounted returns of a batch of episodes, all in one row."""
    free, goal = layout()
    starts = torch.tensor(np.flatnonzero(free)[:-1])  # the goal is the last
    cell = starts[torch.randint(len(starts), (count,), generator=rng)]
    table = moves()
    with torch.no_grad():
        chances = model(torch.arange(SIDE * SIDE))[0].exp()
    cells, chosen, rewards, alive = [], [], [], []
    walking = torch.ones(count, dtype=torch.bool)
    for _ in range(LONGEST):
        move = torch.multinomial(chances[cell], 1, generator=rng)[:, 0]
        slips = torch.rand(count, generator=rng) < SLIP
        made = torch.where(slips, torch.randint(len(STEPS), (count,), generator=rng), move)
        after = table[cell, made]
        cells.append(cell)
        chosen.append(move)
        alive.append(walking)
        rewards.append((walking & (after == goal)).float())
        walking, cell = walking & (after != goal), after
    returns, later = [], torch.zeros(count)
    for reward in reversed(rewards):
        later = reward + DISCOUNT * later
        returns.append(later)
    kept = torch.stack(alive).flatten()
    return (
        torch.stack(cells).flatten()[kept],
        torch.stack(chosen).flatten()[kept],
        torch.stack(returns[::-1]).flatten()[kept],
    )


def _task(seed: int, batch: float = 1.0) -> Task:
    starts = torch.tensor(np.flatnonzero(layout()[0])[:-1])
    best = best_values()[starts].mean()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Policy()
    rng = torch.Generator().manual_seed(seed)

    def loss() -> Tensor:
        cells, chosen, returns = _walk(model, round(EPISODES * batch), rng)
        logs, expected = model(cells)
        advantage = returns - expected
        gain = advantage.detach() * logs[torch.arange(len(cells)), chosen]
        entropy = -(logs.exp() * logs).sum(dim=1)
        return (-gain + advantage.square() / 2 - EXPLORATION * entropy).mean()

    @torch.no_grad()
    def evaluate() -> float:
        policy = model(torch.arange(SIDE * SIDE))[0].exp()
        return (1 - values(policy)[starts].mean() / best).item()

    return Task(model, loss, evaluate)


MAZE = Workload(
    "maze",
    "a generated maze of 9 x 9 cells, moves slip with probability 0.1, reward 1 at the goal, discount 0.95, "
    "16 episodes per batch; policy and value networks with 2 hidden layers of 64, REINFORCE with the value "
    "as baseline; evaluated by the share of the best policy's exact expected return that is missed",
    (200, 800),
    _task,
    lambda: data_hash(layout()[0], moves().numpy()),
    metric="share of the best return missed",
    family="policy gradient",
)
