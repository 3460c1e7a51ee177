"""A ThermoScheduler is copied and pickled with its optimizer, as torch's are: in skorch's nets, in sweeps."""

import copy
import io
import pickle

import pytest
import torch

from tests.support.small_net import assert_same_bits, model, train
from thermoopt import Observer, ThermoAdamW, ThermoScheduler, autotune


def saved_and_loaded(what):
    file = io.BytesIO()
    torch.save(what, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "adamw": lambda params: torch.optim.AdamW(params, lr=torch.tensor(1e-2)),
    "thermo": lambda params: ThermoAdamW(params, lr=1e-2),
}


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x)), saved_and_loaded])
@pytest.mark.parametrize("controlled", [False, True], ids=["plain", "controlled"])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("at", [0, 13])
def test_a_copy_goes_on_like_the_original(make, controlled, clone, at):
    net = model()
    opt = make(net.parameters())
    control = {"shape": "constant", "controller": autotune(40)} if controlled else {"warmup_steps": 5}
    scheduler = ThermoScheduler(opt, 40, **control)
    train(net, opt, at, scheduler=scheduler)
    twin, other, again = clone((net, opt, scheduler))
    assert again.optimizer is other
    assert other.param_groups[0]["params"][0] is next(twin.parameters())
    assert again.get_last_lr() == scheduler.get_last_lr()
    for n, o, s in ((net, opt, scheduler), (twin, other, again)):
        train(n, o, 40 - at, scheduler=s, start=at)
    assert_same_bits(net, opt, twin, other)
    assert again.get_last_lr() == scheduler.get_last_lr()
    assert again.last_epoch == scheduler.last_epoch == 40


def test_a_copy_alone_leaves_the_original_to_its_optimizer():
    net = model()
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    scheduler = ThermoScheduler(opt, 40, shape="constant", controller=autotune(40))
    train(net, opt, 10, scheduler=scheduler)
    other = copy.deepcopy(scheduler)
    assert other.optimizer is not opt
    assert other.controller is not scheduler.controller
    train(net, opt, 10, scheduler=scheduler)
    assert (scheduler.last_epoch, other.last_epoch) == (20, 10)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_does_not_warn_again_of_groups_that_differ(clone):
    net = model()
    opt = torch.optim.SGD([{"params": net[i].parameters(), "lr": 0.1 / (1 + i)} for i in (0, 2)])
    with pytest.warns(UserWarning, match="groups differ in lr"):
        scheduler = ThermoScheduler(opt, 40, shape="constant", controller=autotune(40))
    train(net, opt, 10, scheduler=scheduler)
    clone((net, opt, scheduler))  # where a warning is an error


def test_an_observer_that_was_given_is_not_copied():
    opt = torch.optim.SGD(model().parameters(), lr=0.1)
    scheduler = ThermoScheduler(Observer(None, opt), opt, 40, shape="constant", controller=autotune(40))
    with pytest.raises(TypeError, match="state_dict"):
        copy.deepcopy(scheduler)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("order", ["made first", "made last"])
def test_it_is_resumed_wherever_it_is_made(make, order):
    """Made over an optimizer that goes on already, a new controller's first word must leave no trace."""

    def scheduled(opt):
        return ThermoScheduler(opt, 40, shape="constant", controller=autotune(40))

    net = model()
    opt = make(net.parameters())
    scheduler = scheduled(opt)
    train(net, opt, 13, scheduler=scheduler)
    saved = copy.deepcopy([net.state_dict(), opt.state_dict(), scheduler.state_dict()])
    twin = model(seed=3)
    other = make(twin.parameters())
    if order == "made first":
        again = scheduled(other)
    twin.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    if order == "made last":
        again = scheduled(other)
    again.load_state_dict(saved[2])
    for n, o, s in ((net, opt, scheduler), (twin, other, again)):
        train(n, o, 27, scheduler=s, start=13)
    assert_same_bits(net, opt, twin, other)


class Named(ThermoScheduler):
    """With arguments, state and a way of its own; it also refers to itself."""

    def __init__(self, optimizer, name, *, length):
        self.name, self.calls = name, []
        super().__init__(optimizer, length, warmup_steps=5)
        self.again = self.step

    def step(self, loss=None):
        self.calls.append(self.last_epoch)
        super().step(loss)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_of_a_subclass_keeps_what_it_added(clone):
    net = model()
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    scheduler = Named(opt, "mine", length=40)
    train(net, opt, 10, scheduler=scheduler)
    twin, other, again = clone((net, opt, scheduler))
    assert type(again) is Named
    assert again.name == "mine"
    assert again.calls == scheduler.calls
    assert again.calls is not scheduler.calls
    assert again.again.__self__ is again
    for n, o, s in ((net, opt, scheduler), (twin, other, again)):
        train(n, o, 20, scheduler=s, start=10)
    assert_same_bits(net, opt, twin, other)
    assert len(again.calls) == len(scheduler.calls) == 31  # torch's constructor calls step() once
