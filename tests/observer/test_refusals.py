"""What is no optimizer that can be watched or scheduled is refused in words that help, and left as it was."""

import copy
import pickle

import pytest
import torch

from thermoopt import CollapseDetector, Observer, ThermoAdamW, ThermoScheduler, autotune
from thermoopt.integrations.unwrapping import unwrap


class Holder:
    """No optimizer, but holds one, as schedule-free's wrapper, fastai's and DeepSpeed's engine do."""

    def __init__(self, **held):
        vars(self).update(held)


class Lookalike(torch.optim.Optimizer):
    """An optimizer by type that never called its parent's __init__, like Lookahead in some packages."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self._optimizer_step_pre_hooks = {}
        self._optimizer_step_post_hooks = {}
        self.defaults, self.state, self.param_groups = {}, {}, optimizer.param_groups

    def step(self, closure=None):
        return self.optimizer.step(closure)


class Fabrics:
    """Holds its optimizer as a property, takes on its class and hands on all else, as Fabric's does."""

    def __init__(self, optimizer):
        self._optimizer = optimizer
        self.__class__ = type("FabricSGD", (type(self), type(optimizer)), {})

    @property
    def optimizer(self):
        return self._optimizer

    def step(self, closure=None):
        return self._optimizer.step(closure)

    def __getattr__(self, name):
        return getattr(self._optimizer, name)


def sgd(**options):
    return torch.optim.SGD(torch.nn.Linear(3, 2).parameters(), lr=0.1, **options)


@pytest.mark.parametrize(
    ("wrapper", "place"),
    [
        (Holder(opt=sgd()), r"its \.opt$"),
        (Holder(base=sgd()), r"its \.base$"),
        (Holder(original_optimizer=sgd()), r"its \.original_optimizer$"),  # Opacus
        (Holder(optimizer=sgd()), r"its \.optimizer$"),
        (Holder(optim=sgd()), r"its \.optim$"),  # torch's PostLocalSGDOptimizer
        (Holder(optimizer=Holder(optimizer=sgd())), r"its \.optimizer\.optimizer$"),
    ],
)
def test_a_holder_is_refused_with_the_place_of_what_it_holds(wrapper, place):
    for refuse in (lambda: Observer(None, wrapper), lambda: ThermoScheduler(wrapper, 10)):
        with pytest.raises(
            TypeError, match=r"optimizer must be a torch.optim.Optimizer, got a [\w.]*Holder.*" + place
        ):
            refuse()
    inner = wrapper
    for name in place.strip("$").split(r"\.")[1:]:
        inner = getattr(inner, name)
    assert unwrap(wrapper) is inner


def test_a_wrapper_that_takes_on_the_class_of_what_it_holds():
    inner = sgd()
    wrapper = Fabrics(inner)
    assert isinstance(wrapper, torch.optim.SGD)
    for refuse in (lambda: Observer(None, wrapper), lambda: ThermoScheduler(wrapper, 10)):
        with pytest.raises(TypeError, match=r"got FabricSGD, .*; the one that it wraps is its \.optimizer$"):
            refuse()
    assert unwrap(wrapper) is inner


def test_what_holds_nothing_is_refused_without_a_place():
    for refuse in (lambda: Observer(None, Holder()), lambda: ThermoScheduler("sgd", 10)):
        with pytest.raises(TypeError, match=r"optimizer must be a torch.optim.Optimizer, got [^;]*$"):
            refuse()


def test_an_optimizer_that_runs_not_all_hooks_is_left_as_it_was():
    sgd().step()  # torch marks a class's step as hooked once one was made
    Lookalike.step.hooked = True
    inner = sgd()
    outer = Lookalike(inner)
    for refuse in (
        lambda: Observer(None, outer, track=("distance",)),
        lambda: CollapseDetector(None, outer),
        lambda: ThermoScheduler(outer, 10, shape="constant", controller=autotune(10)),
    ):
        with pytest.raises(TypeError, match=r"must run step hooks, got Lookalike.*its \.optimizer"):
            refuse()
    assert not outer._optimizer_step_pre_hooks
    assert not outer._optimizer_step_post_hooks
    assert "initial_lr" not in inner.param_groups[0]


def test_opacus_optimizer_is_looked_through():
    """An optimizer by type that hands everything on to the one under ``original_optimizer``."""

    class Private(torch.optim.Optimizer):
        def __init__(self, optimizer):
            self.original_optimizer = optimizer

        param_groups = property(lambda self: self.original_optimizer.param_groups)

        def step(self, closure=None):
            return self.original_optimizer.step(closure)

    inner = sgd()
    assert unwrap(Private(inner)) is inner
    with pytest.raises(TypeError, match=r"must run step hooks, got Private.*its \.original_optimizer"):
        Observer(None, Private(inner))


def test_numbers_in_the_state_do_not_matter():
    optimizer = sgd(momentum=0.9)
    optimizer.state["total_step"] = 3
    [setattr(p, "grad", torch.ones_like(p)) for group in optimizer.param_groups for p in group["params"]]
    optimizer.step()
    detector = CollapseDetector(None, optimizer)
    optimizer.step()
    assert detector.observer.steps == 1
    assert not detector.is_collapsing


@pytest.mark.parametrize("lr", ["missing", None])
def test_an_optimizer_without_an_lr_is_watched_and_not_scheduled(lr):
    optimizer = sgd()
    if lr is None:
        optimizer.param_groups[0]["lr"] = None
    else:
        del optimizer.param_groups[0]["lr"]
    Observer(None, optimizer).close()
    with pytest.raises(
        ValueError, match="every param group must have an lr to schedule, but group 0 of this SGD"
    ):
        ThermoScheduler(optimizer, 10)
    assert "initial_lr" not in optimizer.param_groups[0]


def test_lazy_parameters_are_refused_until_they_have_shapes():
    model = torch.nn.Sequential(torch.nn.LazyLinear(4), torch.nn.Tanh(), torch.nn.LazyLinear(1))
    optimizer = torch.optim.AdamW(model.parameters())
    for refuse in (
        lambda: ThermoAdamW(model.named_parameters()),
        lambda: ThermoAdamW(model.parameters(), backend="torch"),
        lambda: Observer(model, optimizer),
        lambda: CollapseDetector(model, optimizer),
        lambda: ThermoScheduler(optimizer, 10, shape="constant", controller=autotune(10)),
    ):
        with pytest.raises(ValueError, match=r"must have shapes, got 4 of lazy modules.*run one batch"):
            refuse()
    ThermoScheduler(optimizer, 10)  # needs no shapes
    model(torch.ones(2, 3))
    observer = Observer(model, optimizer, log_every=1)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    assert observer.reading.layers["0.weight"].numel == 12


def test_a_lazy_group_is_not_added():
    optimizer = ThermoAdamW(torch.nn.Linear(3, 2).parameters())
    with pytest.raises(ValueError, match="params must have shapes"):
        optimizer.add_param_group({"params": torch.nn.LazyLinear(4).parameters()})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, ThermoAdamW])
@pytest.mark.parametrize("track", [(), ("distance",)])
def test_an_observer_is_not_copied_but_what_it_watches_is(kind, track):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = kind(model.parameters(), lr=0.1)
    observer = Observer(model, optimizer, log_every=1, track=track)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="an Observer cannot be copied or pickled"):
            copied((model, optimizer, observer))
    other, twin = copy.deepcopy((model, optimizer))
    follower = Observer(other, twin, log_every=1, track=track)
    follower.load_state_dict(observer.state_dict())
    for m, o in ((model, optimizer), (other, twin)):
        o.zero_grad()  # a copy of a parameter has no gradient
        m(torch.full((2, 3), 2.0)).sum().backward()
        o.step()
    assert (follower.steps, observer.steps) == (2, 2)
    assert follower.reading.total.sigma == observer.reading.total.sigma
    if track:
        assert follower.reading.total.distance == observer.reading.total.distance > 0
