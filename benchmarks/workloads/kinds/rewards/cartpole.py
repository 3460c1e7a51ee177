"""The cart-pole task, many carts at once.

References:
    Barto, Sutton and Anderson, "Neuronlike adaptive elements that can solve difficult learning control
    problems", 1983, appendix, without friction; bounds, constants and Euler steps are those of Gymnasium's
    ``CartPole-v1``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["CART", "GRAVITY", "HALF_LENGTH", "POLE", "Carts", "accelerations", "missing_share"]

GRAVITY, CART, POLE, HALF_LENGTH = 9.8, 1.0, 0.1, 0.5  # m/s², kg, kg, m
PUSH, TICK = 10.0, 0.02  # N, s
FURTHEST, STEEPEST = 2.4, 0.2095  # m, rad
NEAR_REST = 0.05  # largest size of each number of a fresh state
JUDGED = 32  # episodes


def accelerations(state: Tensor, force: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cart's and the pole's accelerations ``[n]``.

    Args:
        state: place, speed, angle from upright, angular speed, ``[n, 4]``.
        force: on the cart, ``[n]``, in newtons.
    """
    _, _, angle, turning = state.unbind(dim=1)
    total, moment = CART + POLE, POLE * HALF_LENGTH
    pushed = (force + moment * turning.square() * angle.sin()) / total
    inertia = HALF_LENGTH * (4 / 3 - POLE * angle.cos().square() / total)
    turned = (GRAVITY * angle.sin() - angle.cos() * pushed) / inertia
    return pushed - moment * turned * angle.cos() / total, turned


class Carts:
    """Carts whose episodes begin anew when the pole falls, the cart leaves, or time is over.

    Args:
        count: how many.
        longest: steps of an episode.
        rng: of fresh states.
    """

    def __init__(self, count: int, longest: int, rng: torch.Generator) -> None:
        self.longest, self.rng = longest, rng
        self.state = self._fresh(count)
        self.age = torch.zeros(count, dtype=torch.int64)

    def _fresh(self, count: int) -> Tensor:
        return NEAR_REST * (2 * torch.rand(count, 4, generator=self.rng) - 1)

    def step(self, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Push every cart right (1) or left (0), ``[n]``.

        Returns:
            States after it ``[n, 4]``; which have fallen; whose episodes are over, for that or for time.
        """
        _, speed, _, turning = self.state.unbind(dim=1)
        moved, turned = accelerations(self.state, PUSH * (2.0 * right - 1))
        after = torch.stack([speed, moved, turning, turned], dim=1) * TICK + self.state
        fell = (after[:, 0].abs() > FURTHEST) | (after[:, 2].abs() > STEEPEST)
        self.age += 1
        over = fell | (self.age >= self.longest)
        self.state = torch.where(over[:, None], self._fresh(len(after)), after)
        self.age = self.age.masked_fill(over, 0)
        return after, fell, over


@torch.no_grad()
def missing_share(choose: Callable[[Tensor, torch.Generator], Tensor], longest: int) -> float:
    """Return the share of the longest episode that a policy's fresh ones miss on average, 0 to 1.

    Args:
        choose: pushes ``[n]``, 0 or 1, from states and a generator that is the same at every call.
        longest: steps of an episode.
    """
    rng = torch.Generator().manual_seed(0)
    carts, up = Carts(JUDGED, longest, rng), torch.ones(JUDGED, dtype=torch.bool)
    lasted = 0
    for _ in range(longest):
        lasted += int(up.sum())
        up &= ~carts.step(choose(carts.state, rng))[2]
        if not up.any():
            break
    return 1 - lasted / (JUDGED * longest)
