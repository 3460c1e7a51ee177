"""Steps whose closure is not evaluated once at the step's own weights are skipped and counted, in words."""

import pytest
import torch

from thermoopt import Observer, diagnose


class SAM(torch.optim.SGD):
    """Climbs to worse weights before its closure and steps from where it was (arXiv 2010.01412)."""

    @torch.no_grad()
    def step(self, closure=None):
        params = [p for group in self.param_groups for p in group["params"]]
        start = [p.clone() for p in params]
        for p in params:
            p.add_(p.grad, alpha=0.05 / p.grad.norm().item())
        with torch.enable_grad():
            loss = closure()
        for p, x in zip(params, start, strict=True):
            p.copy_(x)
        for p in params:
            p.sub_(p.grad, alpha=self.param_groups[0]["lr"])
        return loss


def trained(make, steps=60):
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 3)
    optimizer = make(model.parameters())
    observer = Observer(model, optimizer, log_every=1, ema_steps=1, track=("rho", "distance"))
    x = torch.randn(32, 6)

    def closure():
        optimizer.zero_grad()
        loss = (model(x) - 1).square().mean()
        loss.backward()
        return loss

    for _ in range(steps):
        closure()
        observer.step(loss=optimizer.step(closure))
    return model, observer


@pytest.mark.parametrize(
    "make",
    [lambda p: SAM(p, lr=0.05), lambda p: torch.optim.LBFGS(p, lr=0.05, max_iter=3, tolerance_change=0)],
)
def test_gradients_of_other_weights_are_not_the_steps(make):
    _, observer = trained(make)
    assert observer.steps == 60
    assert observer.skipped["closure"] == 60
    assert observer.reading is None
    assert "closure" in diagnose(observer).facts["why"]


def test_a_closure_at_the_steps_own_weights_is_read():
    _, observer = trained(lambda p: torch.optim.SGD(p, lr=0.05), steps=5)
    assert observer.skipped["closure"] == 0
    assert observer.reading.step == 5
    assert observer.reading.total.update_norm == pytest.approx(observer.reading.total.grad_norm, rel=1e-4)
