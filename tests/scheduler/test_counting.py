"""A scheduler counts steps that were taken, once each; a run longer than its schedule is told so."""

import math
import warnings

import pytest
import torch

from tests.support.small_net import model, train
from thermoopt import Observer, ThermoAdamW, ThermoScheduler, autotune

STEPS = 40


def closures(scheduler, fails=()):
    """Learning rates of a run whose closure raises at some attempts."""
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 1)
    x, y = torch.randn(64, 5), torch.randn(64, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    observer = Observer(model, optimizer, log_every=1)
    schedule = scheduler(optimizer)
    lrs, attempt = [], 0

    def closure():
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        if attempt in fails:
            raise torch.OutOfMemoryError("pretend")
        return loss

    while len(lrs) < STEPS:
        attempt += 1
        try:
            optimizer.step(closure)
        except torch.OutOfMemoryError:
            continue
        schedule.step()
        lrs.append(optimizer.param_groups[0]["lr"])
    return lrs, observer


def test_a_step_whose_closure_raised_does_not_count():
    lrs, observer = closures(lambda o: ThermoScheduler(o, STEPS, shape="cosine"), fails=(5, 6, 7))
    torchs, _ = closures(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, STEPS))
    assert lrs == torchs
    assert observer.steps == STEPS
    assert observer.reading.step == STEPS


def test_an_interrupted_closure_is_no_step_of_a_thermoadamw():
    optimizer = ThermoAdamW(torch.nn.Linear(5, 1).parameters())

    def interrupted():
        raise KeyboardInterrupt

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            optimizer.step(interrupted)
    assert optimizer.steps == 0


class OneByOne(torch.optim.SGD):
    """Steps one parameter at a time, as optimi's do under gradient release."""

    @torch.no_grad()
    def step(self, closure=None, *, param=None):
        for group in self.param_groups:
            for p in group["params"]:
                if (param is None or p is param) and p.grad is not None:
                    p.sub_(p.grad, alpha=group["lr"])


@pytest.mark.parametrize("watch", ["observer", "scheduler"])
def test_steps_of_single_parameters_are_refused(watch):
    model = torch.nn.Linear(5, 1)
    optimizer = OneByOne(model.parameters(), lr=0.1)
    own = Observer(model, optimizer) if watch == "observer" else ThermoScheduler(optimizer, 100)
    model(torch.randn(3, 5)).sum().backward()
    before = model.weight.clone()
    with pytest.raises(
        RuntimeError, match=r"step.. must be called for all parameters at once, but this OneByOne"
    ):
        optimizer.step(param=model.weight)
    assert torch.equal(model.weight, before)
    optimizer.step()
    own.step()
    assert (own.steps if watch == "observer" else own.last_epoch) == 1


def test_gradient_release_is_refused_where_it_is_known():
    optimizer = OneByOne(torch.nn.Linear(5, 1).parameters(), lr=0.1)
    optimizer.defaults["gradient_release"] = True
    for refuse in (lambda: Observer(None, optimizer), lambda: ThermoScheduler(optimizer, 10)):
        with pytest.raises(TypeError, match="all its parameters at once, got OneByOne with gradient_release"):
            refuse()
    assert not optimizer._optimizer_step_pre_hooks


def taken(scheduler, optimizer, steps):
    for _ in range(steps):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("controlled", [False, True])
def test_who_asks_for_the_lr_in_the_place_of_a_step_gets_the_same_run(controlled):
    """As ignite's LRScheduler does: it reads get_lr(), writes it and counts last_epoch itself."""
    runs = []
    for asks in (False, True):
        net = model()
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        shape, controller = ("constant", autotune(40)) if controlled else ("cosine", None)
        scheduler = ThermoScheduler(optimizer, 40, shape=shape, controller=controller)
        rates = []
        for i in range(40):
            if asks:
                for group, lr in zip(optimizer.param_groups, scheduler.get_lr(), strict=True):
                    group["lr"] = lr
                scheduler.last_epoch += 1
            rates.append(optimizer.param_groups[0]["lr"])
            train(net, optimizer, 1, start=i)
            if not asks:
                scheduler.step()
        runs.append(rates)
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 10
    if not controlled:
        cosine = [1e-2 * (1 + math.cos(math.pi * n / 40)) / 2 for n in range(40)]
        assert runs[1] == pytest.approx(cosine, rel=1e-9)


@pytest.mark.parametrize(
    ("shape", "options", "told"),
    [
        ("cosine", {}, True),
        ("linear", {}, True),
        ("wsd", {}, True),
        ("cosine", {"eta_min": 1e-4}, False),
        ("constant", {}, False),
    ],
)
def test_a_used_up_schedule_is_said_once(shape, options, told):
    optimizer = torch.optim.SGD(torch.nn.Linear(5, 1).parameters(), lr=1e-2)
    scheduler = ThermoScheduler(optimizer, 10, shape=shape, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        taken(scheduler, optimizer, 10)
        assert caught == []
        taken(scheduler, optimizer, 10)
    messages = [str(w.message) for w in caught]
    assert len(messages) == told
    assert all(
        m.startswith("step 11 was taken after the end of the schedule, total_steps = 10") for m in messages
    )


def layers(count):
    return [torch.nn.Parameter(torch.full((3,), float(i + 1))) for i in range(count)]


@pytest.mark.parametrize("edit", ["pop", "pop last", "append", "remove", "exchange"])
@pytest.mark.parametrize("controlled", [False])
def test_groups_edited_by_hand_keep_their_schedules(edit, controlled):
    params = layers(6)
    groups = [{"params": params[2 * i : 2 * i + 2], "lr": 10.0**-i} for i in range(3)]
    optimizer = torch.optim.SGD(groups)
    bases = [group["lr"] for group in groups]
    controller = autotune(STEPS) if controlled else None
    scheduler = ThermoScheduler(
        optimizer, STEPS, shape="constant" if controlled else "linear", controller=controller
    )
    taken(scheduler, optimizer, 5)
    if edit == "pop":
        optimizer.param_groups.pop(0)
        bases.pop(0)
    elif edit == "pop last":
        optimizer.param_groups.pop()
        bases.pop()
    elif edit == "append":
        optimizer.param_groups[-1]["params"].append(torch.nn.Parameter(torch.ones(3)))
    elif edit == "remove":
        del optimizer.param_groups[1]["params"][1]
    else:
        optimizer.param_groups[1]["params"][0] = torch.nn.Parameter(torch.ones(3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is followed and what is not is said
        taken(scheduler, optimizer, 5)
    assert scheduler.base_lrs == bases
    if not controlled:
        shape = 1 - 10 / STEPS
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([shape * base for base in bases])
