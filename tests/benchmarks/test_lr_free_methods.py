"""ScheduleFree+ and NAdamW against plain float64 loops of their formulas."""

import importlib.util
import math

import pytest
import torch
from torch import nn

from thermoopt.benchmarks.methods import METHODS, Point
from thermoopt.benchmarks.methods.lr_free import NESTEROV
from thermoopt.benchmarks.methods.schedule_free_plus import ScheduleFreePlus


def quadratic(seed=0):
    torch.manual_seed(seed)
    curvature = torch.logspace(-1, 1, 6, dtype=torch.float64)
    start = torch.randn(6, dtype=torch.float64)
    return curvature, start


def test_schedule_free_plus_is_the_loop_of_its_formulas():
    curvature, start = quadratic()
    steps, warmup, decay, eps = 40, 4, 5.0, 1e-8
    p = start.clone().requires_grad_()
    optimizer = ScheduleFreePlus([p], steps, warmup, weight_decay=decay)
    x = z = y = start.clone()
    m = v = torch.zeros(6, dtype=torch.float64)
    largest = total = 0.0
    for t in range(1, steps + 1):
        done = (t - 1) / steps
        beta = 1 - math.exp((1 - done) * math.log(0.1) + done * math.log(0.035))
        loss, g = (curvature * y**2).sum() / 2, curvature * y
        polyak = max(0.0, (loss + beta * g @ (z - x)).item()) / (
            math.sqrt(math.pi / 2) * g.abs().sum().item()
        )
        alpha = min(1.0, t / warmup) * polyak
        largest = max(largest, alpha)
        c = 1.0
        if t > warmup:
            total += largest**2
            c = largest**2 / total
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
        z = z - alpha**2 * decay * y - alpha * (m / (1 - 0.9**t)) / ((v / (1 - 0.95**t)).sqrt() + eps)
        x = (1 - c) * x + c * z
        y = beta * x + (1 - beta) * z
        optimizer.zero_grad()
        value = (curvature * p**2).sum() / 2
        value.backward()
        optimizer.report(value)
        optimizer.step()
        torch.testing.assert_close(p.detach(), y, rtol=1e-9, atol=1e-12)
    kept = p.detach().clone()
    optimizer.eval()
    torch.testing.assert_close(p.detach(), x, rtol=1e-9, atol=1e-12)
    assert not torch.equal(kept, p)
    assert (curvature * x**2).sum() < 0.05 * (curvature * start**2).sum()


def test_schedule_free_plus_wants_the_loss_of_every_step():
    p = nn.Parameter(torch.ones(2))
    optimizer = ScheduleFreePlus([p], 10, 1)
    p.grad = torch.ones(2)
    with pytest.raises(RuntimeError, match=r"call report\(loss\) before every step"):
        optimizer.step()
    optimizer.report(torch.tensor(1.0))
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"call report\(loss\)"):
        optimizer.step()


def test_torchs_nadam_with_a_fast_momentum_schedule_has_constant_nesterov_momentum():
    curvature, start = quadratic(1)
    p = start.clone().requires_grad_()
    lr, b1, b2, decay = 0.05, 0.9327, 0.9955, 0.08
    optimizer = torch.optim.NAdam(
        [p], lr, (b1, b2), weight_decay=decay, momentum_decay=NESTEROV, decoupled_weight_decay=True
    )
    theta, m, v = start.clone(), torch.zeros(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    for t in range(1, 30):
        p.grad = (curvature * p).detach()
        optimizer.step()
        g = curvature * theta
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        ahead = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        theta = theta * (1 - lr * decay) - lr * ahead / ((v / (1 - b2**t)).sqrt() + 1e-8)
        torch.testing.assert_close(p.detach(), theta, rtol=1e-4, atol=1e-5)  # the momentum product is float32


@pytest.mark.parametrize("name", ["adamw fixed", "nadamw fixed", "dadapt-adam", "momo-adam"])
def test_methods_without_a_rate_to_choose_train(name):
    needs = METHODS[name].needs
    if needs is not None and importlib.util.find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed")
    torch.manual_seed(0)
    model, x = nn.Linear(5, 1), torch.randn(64, 5)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5], [0.0], [3.0]])
    setup = METHODS[name].build(model, Point(1.0), 400, 0)  # the point's lr is not looked at
    start = nn.functional.mse_loss(model(x), y).item()
    for _ in range(400):
        setup.optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        setup.report(loss)
        setup.optimizer.step()
        if setup.schedule is not None:
            setup.schedule.step()
        setup.after_step()
    setup.before_judging()
    assert nn.functional.mse_loss(model(x), y).item() < 0.7 * start
    setup.after_judging()


def test_a_missing_package_is_called_what_pypi_calls_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install momo-opt \(or thermoopt\[bench\]\)"):
        METHODS["momo-adam"].build(nn.Linear(2, 1), Point(), 10, 0)
