"""Optimizers that multiply their lr by a factor of their own: readings and findings have the product."""

import math

import pytest
import torch

from thermoopt import JSONLSink, Observer, diagnose
from thermoopt.record import SavedRun

D0, GROWTH = 1e-3, 1.25


class Signs(torch.optim.Optimizer):
    """Steps by ``-lr d sign(g)`` and lets d grow after each step; ``key`` is where the group holds d."""

    def __init__(self, params, lr=1.0, key="d"):
        self.key = key
        super().__init__(params, {"lr": lr, key: D0})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr = 1.0 if group["lr"] is None else group["lr"]
            for p in group["params"]:
                p.sub_(p.grad.sign(), alpha=lr * group[self.key])
            group[self.key] *= GROWTH


def trained(optimizer_of, steps, **options):
    """A quadratic around a far-away point: steps at the rate d grow without end, and the loss in the end."""
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 8, bias=False)
    optimizer = optimizer_of(model.parameters())
    observer = Observer(model, optimizer, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model.weight - 0.5).square().sum()
        loss.backward()
        optimizer.step()
        observer.step(loss=loss)
    return observer, model


def test_the_rate_of_a_reading_is_lr_times_d_as_the_step_had_it():
    observer, model = trained(lambda params: Signs(params, lr=0.5), 6, log_every=1, ema_steps=1)
    total, rate = observer.reading.total, 0.5 * D0 * GROWTH**5
    assert total.lr_eff == pytest.approx(rate, rel=1e-6)
    assert total.update_norm == pytest.approx(8.0, rel=1e-4)  # of 64 signs
    slope = 2 * (0.5 - (model.weight.detach().double() - rate)).sum().item()  # of |g|, all of one sign yet
    assert total.sigma == pytest.approx(rate * slope, rel=1e-5)
    assert observer.rate_kind == "lr times d"


@pytest.mark.parametrize("package", ["prodigyopt.Prodigy", "dadaptation.DAdaptAdam", "dadaptation.DAdaptSGD"])
def test_the_rate_is_that_of_the_packages(package):
    module, name = package.split(".")
    make = getattr(pytest.importorskip(module), name)
    seen = []

    def optimizer_of(params):
        optimizer = make(params, lr=0.5)
        optimizer.register_step_pre_hook(lambda o, *_: seen.append(dict(o.param_groups[0])))
        return optimizer

    observer, _ = trained(optimizer_of, 30, log_every=1, ema_steps=1)
    before = seen[-1]
    assert before["d"] != before.get("d0", 1e-6)  # it has found another
    rate = 0.5 * before["d"] / before.get("g0_norm", 1.0)
    assert observer.reading.total.lr_eff == pytest.approx(rate, rel=1e-6)


def test_a_finding_speaks_of_the_rate_in_force(tmp_path):
    path = tmp_path / "run.jsonl"
    sink = JSONLSink(path)
    observer, _ = trained(Signs, 60, log_every=1, sinks=[sink])
    sink.close()
    finding = next(f for f in diagnose(observer).findings if f.kind == "learning_rate_runaway")
    peak = float(max(observer.history.total("lr_eff")))
    assert peak < D0 * GROWTH**59  # an average, of no more than the last rate
    assert f"peak effective rate of {peak:.2g} (lr times the d that the optimizer finds)" in finding.message
    times = observer.start_norms["weight"] ** 0.5 / 8  # the rms that a step of the rate 1 is compared with
    assert finding.effect == pytest.approx(peak / times, rel=0.2)
    assert f"Lower lr by a factor of about {float(f'{finding.effect / 0.1:.2g}'):g}" in finding.advice
    assert f"lowers the effective rate to {peak * 0.1 / finding.effect:.1g}" in finding.advice
    # a record says it, too
    saved = SavedRun.read(path)
    assert saved.rate_kind == "lr times d"
    again = next(f for f in diagnose(saved).findings if f.kind == "learning_rate_runaway")
    assert (again.message, again.advice) == (finding.message, finding.advice)


def test_a_rate_that_nobody_knows_is_not_made_up():
    observer, _ = trained(lambda params: Signs(params, lr=None, key="mine"), 60, log_every=1)
    assert observer.rate_kind == "none"
    finding = next(f for f in diagnose(observer).findings if f.kind == "learning_rate_runaway")
    assert "the rate that the optimizer finds (unknown: its groups hold no lr) is" in finding.message
    assert finding.advice.startswith("Lower the size of its steps by a factor of about ")
    assert math.isfinite(finding.effect)


def test_the_rate_of_others_is_their_lr():
    observer, _ = trained(lambda params: torch.optim.SGD(params, lr=40.0), 20, log_every=1)
    assert observer.rate_kind == "lr"
    finding = next(f for f in diagnose(observer).findings if f.kind == "learning_rate_runaway")
    assert finding.message.startswith("one step at the peak rate of 40, at step ")
    assert finding.advice.startswith("Lower the learning rate by a factor of about ")
