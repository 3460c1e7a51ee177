"""A step that calls its parent's step is one step, and an lr that a step writes is the one it used."""

import pytest
import torch

from thermoopt import Observer, ThermoAdamW, ThermoScheduler

STEPS = 12


class Clipped(torch.optim.SGD):
    """The usual way to add something to an optimizer."""

    def step(self, closure=None):
        torch.nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 1.0)
        return super().step(closure)


class Twice(Clipped):
    def step(self, closure=None):
        return super().step(closure)


class Account(ThermoAdamW):
    def step(self, closure=None):
        return super().step(closure)


def make_parents(cls):
    for parent in reversed(cls.__mro__):
        if issubclass(parent, torch.optim.Optimizer) and parent is not torch.optim.Optimizer:
            parent([torch.nn.Parameter(torch.ones(1))], lr=0.1)


def trained(cls, attach, fail_at=None):
    make_parents(cls)  # from then on torch runs the hooks of their steps, too
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    optimizer = cls(model.parameters(), lr=0.1)
    attached = attach(model, optimizer)
    lrs = []
    for t in range(STEPS):

        def closure(t=t):
            optimizer.zero_grad()
            loss = model(torch.ones(3, 4) * (1 + t)).square().mean()
            loss.backward()
            if t == fail_at:
                raise MemoryError
            return loss

        try:
            optimizer.step(closure)
        except MemoryError:
            continue
        if isinstance(attached, torch.optim.lr_scheduler.LRScheduler):
            attached.step()
        lrs.append(optimizer.param_groups[0]["lr"])
    return attached, lrs


@pytest.mark.parametrize("cls", [Clipped, Twice, Account])
def test_hooks_of_a_parents_step_count_nothing(cls):
    track = ("distance", "rho")
    observer, _ = trained(cls, lambda m, o: Observer(m, o, log_every=1, track=track))
    assert observer.steps == STEPS
    assert sum(observer.skipped.values()) == 0
    assert observer.reading.step == STEPS


@pytest.mark.parametrize("cls", [Clipped, Twice, Account])
def test_a_schedule_counts_the_outer_step_only_and_none_that_raised(cls):
    _, torchs = trained(cls, lambda m, o: torch.optim.lr_scheduler.CosineAnnealingLR(o, STEPS), fail_at=5)
    _, ours = trained(cls, lambda m, o: ThermoScheduler(o, STEPS), fail_at=5)
    assert ours == torchs


def test_what_is_read_is_the_outer_steps():
    """The gradient before it is clipped, the weights before it and after it."""
    make_parents(Twice)
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    optimizer = Twice(model.parameters(), lr=0.1)
    observer = Observer(model, optimizer, log_every=1, ema_steps=1)
    model(torch.ones(3, 4) * 100).square().mean().backward()
    norm = sum(float(p.grad.double().square().sum()) for p in model.parameters()) ** 0.5
    optimizer.step()
    assert norm > 100
    assert observer.reading.total.grad_norm == pytest.approx(norm, rel=1e-5)
    assert observer.reading.total.update_norm == pytest.approx(1.0, rel=1e-4)  # clipped to 1


class OwnLr(torch.optim.Optimizer):
    """Finds its lr in its step and writes it into the group, before it uses it or after."""

    def __init__(self, params, lr, first):
        super().__init__(params, {"lr": lr})
        self.first = first

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            found = 0.01 * (1 + len(self.state))
            if self.first:
                group["lr"] = found
            for p in group["params"]:
                p -= found * p.grad
            self.state[torch.nn.Parameter(torch.ones(1))] = {}


@pytest.mark.parametrize("lr", [0.5, None])
def test_an_lr_that_a_step_writes_is_the_one_it_used(lr):
    p = torch.nn.Parameter(torch.arange(1.0, 5.0))
    optimizer = OwnLr([p], lr, first=True)
    observer = Observer(None, optimizer, log_every=1, ema_steps=1)
    for t in range(3):
        p.grad = torch.full_like(p, 3.0)
        optimizer.step()
        total = observer.reading.total
        assert total.lr_eff == pytest.approx(0.01 * (1 + t))
        assert total.update_norm == pytest.approx(6.0, rel=1e-4)  # U is the gradient: 3 in each of 4
        assert total.sigma == pytest.approx(0.01 * (1 + t) * 36, rel=1e-4)
        assert total.phi == pytest.approx(total.sigma / 4, rel=1e-4)  # as for any gradient descent


def test_an_lr_of_zero_written_in_the_step_divides_nothing():
    class Stops(torch.optim.SGD):
        def step(self, closure=None):
            out = super().step(closure)
            self.param_groups[0]["lr"] = 0.0
            return out

    p = torch.nn.Parameter(torch.ones(2))
    optimizer = Stops([p], lr=0.1)
    observer = Observer(None, optimizer, log_every=1, ema_steps=1)
    p.grad = torch.ones(2)
    optimizer.step()
    assert observer.reading.total.update_norm == pytest.approx(2**0.5, rel=1e-5)
    assert observer.reading.total.lr_eff == pytest.approx(0.1)
