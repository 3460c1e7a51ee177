"""An optimizer that is none of torch's."""

import torch


class Lion(torch.optim.Optimizer):
    """Sign of an interpolation of momentum and gradient, decay decoupled; clears gradients in its step."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0, **defaults):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, **defaults})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(group["lr"] * (beta1 * m + (1 - beta1) * p.grad).sign())
                m.lerp_(p.grad, 1 - beta2)
                p.grad = None
        return loss
