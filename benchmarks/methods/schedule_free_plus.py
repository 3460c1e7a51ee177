r"""ScheduleFree+: AdamW with Polyak's step size and an average in place of a schedule.

No package has it; this implements the algorithm of the paper.

References:
    Defazio, "ScheduleFree+: scaling learning-rate-free and schedule-free learning to large language models",
    arXiv 2605.19095, algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["ScheduleFreePlus"]


class ScheduleFreePlus(torch.optim.Optimizer):
    r"""Steps z, averages x, and takes gradients at y between them; the model holds y.

    With L the loss and g the gradient at y, and :math:`\gamma_t` the warm-up,

    .. math::
        I_t &= \tilde\beta_t\langle g_t, z-x\rangle,\quad
        \alpha_t = \gamma_t \max(0, L_t + I_t)\Big/\sqrt{\pi/2}\,\lVert g_t\rVert_1 \\
        z &\leftarrow z - \alpha_t^2\lambda y - \alpha_t \hat m_t/(\sqrt{\hat v_t}+\epsilon) \\
        x &\leftarrow (1-c_t)x + c_t z,\quad c_t = w_t/\textstyle\sum w,\quad w_t = \max_{s\le t}\alpha_s^2 \\
        y &\leftarrow \tilde\beta_t x + (1-\tilde\beta_t)z

    and c is 1 while warm-up lasts. :math:`1-\tilde\beta_t` goes geometrically from 0.1 to 0.035 over the run.
    The lower bound of the loss is taken as 0, the average over gradient norms is off; both are the authors'
    defaults.

    Args:
        params: to optimize.
        steps: length of the run, for annealing :math:`\tilde\beta`.
        warmup: steps of linear warm-up.
        betas: of the moments.
        interpolation: first and last :math:`\tilde\beta`.
        eps: added to the root.
        weight_decay: λ; the authors' range is 5 to 50, their default 0.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        steps: int,
        warmup: int,
        betas: tuple[float, float] = (0.9, 0.95),
        interpolation: tuple[float, float] = (0.9, 0.965),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": 1.0, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._steps, self._warmup, self._interpolation = steps, warmup, interpolation
        self._taken, self._largest, self._weights = 0, 0.0, 0.0
        self._loss = math.nan

    def report(self, loss: Tensor) -> None:
        """Take the loss of the coming step."""
        self._loss = loss.item()

    def _beta(self) -> float:
        first, last = self._interpolation
        done = min(1.0, self._taken / self._steps)
        return 1 - (1 - first) ** (1 - done) * (1 - last) ** done

    def _rows(self) -> Iterable[tuple[dict, Any, dict]]:
        """Yield group, parameter and state of what has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    if not state:
                        state.update(
                            z=p.clone(), x=p.clone(), m=torch.zeros_like(p), v=torch.zeros_like(p), n=0
                        )
                    yield group, p, state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # it takes no closure
        """Step once; :meth:`report` must have told the loss.

        Raises:
            RuntimeError: no loss was reported since the last step.
        """
        if math.isnan(self._loss):
            raise RuntimeError("step needs the loss: call report(loss) before every step")
        beta, rows = self._beta(), list(self._rows())
        norm = sum(p.grad.abs().sum().item() for _, p, _ in rows)
        inner = sum((p.grad * (state["z"] - state["x"])).sum().item() for _, p, state in rows)
        warm = min(1.0, (self._taken + 1) / self._warmup)
        polyak = max(0.0, self._loss + beta * inner) / max(math.sqrt(math.pi / 2) * norm, 1e-30)
        alpha = warm * polyak
        self._largest = max(self._largest, alpha)
        share = 1.0
        if self._taken >= self._warmup:
            self._weights += self._largest**2
            share = self._largest**2 / self._weights if self._weights else 1.0
        for group, p, state in rows:
            (beta1, beta2), z, x, m, v = group["betas"], state["z"], state["x"], state["m"], state["v"]
            state["n"] += 1
            z.sub_(p, alpha=alpha**2 * group["weight_decay"])
            m.lerp_(p.grad, 1 - beta1)
            v.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
            root = (v / (1 - beta2 ** state["n"])).sqrt_().add_(group["eps"])
            z.addcdiv_(m, root, value=-alpha / (1 - beta1 ** state["n"]))
            x.lerp_(z, share)
            p.copy_(z.lerp(x, beta))
        self._taken += 1
        self._loss = math.nan

    @torch.no_grad()
    def eval(self) -> None:
        """Put the averages x into the model; the caller keeps y and restores it."""
        for group in self.param_groups:
            for p in group["params"]:
                if self.state[p]:
                    p.copy_(self.state[p]["x"])

    def train(self) -> None:
        """Do nothing: the caller of :meth:`eval` restores y."""
