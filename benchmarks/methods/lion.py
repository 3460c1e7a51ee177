r"""Lion: steps of constant size along the sign of an average. No package of the development set-up has it.

References:
    Chen et al., "Symbolic discovery of optimization algorithms", arXiv 2302.06675, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["Lion"]


class Lion(torch.optim.Optimizer):
    r"""Every element moves by the learning rate, whatever the size of its gradient.

    .. math::
        \theta \leftarrow \theta - \eta\,\bigl(\mathrm{sign}(\beta_1 m + (1-\beta_1) g) + \lambda\theta\bigr),
        \qquad m \leftarrow \beta_2 m + (1-\beta_2) g

    Args:
        params: to optimize.
        lr: η; a third to a tenth of AdamW's.
        betas: of the sign's average and of the momentum.
        weight_decay: λ; three to ten times AdamW's.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # it takes no closure
        """Step every parameter that has a gradient."""
        for group in self.param_groups:
            lr, (beta1, beta2) = group["lr"], group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                momentum = state["exp_avg"]
                sign = momentum.lerp(p.grad, 1 - beta1).sign_()
                p.mul_(1 - lr * group["weight_decay"]).add_(sign, alpha=-lr)
                momentum.lerp_(p.grad, 1 - beta2)
