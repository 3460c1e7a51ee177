"""ThermoAdamW on the Triton kernels, its account on the device: on CUDA, or interpreted."""

import copy

import numpy as np
import pytest
import torch

from tests.support.controllers import Follow
from tests.support.launches import WAITS, Launches
from tests.support.triton_world import DEVICE, INTERPRETED, needs_kernels
from thermoopt import Observer, ThermoAdamW, autotune
from thermoopt.account import ledger as ledger_module
from thermoopt.adamw import control_loop, one_pass, optimizer, plans
from thermoopt.controllers import Chain, Cooling, Thermostat
from thermoopt.kernels import triton as kernels
from thermoopt.kernels import triton_launch, triton_travel
from thermoopt.kernels.triton_travel import DeviceTravelPlan
from thermoopt.observer import step_hooks
from thermoopt.tensors import travel_bucket

pytestmark = needs_kernels

STEPS = 14


def make(backend="triton", **kw):
    """Two groups of three layers, and their parameters."""
    rng = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(n, generator=rng).to(DEVICE)) for n in (70, 3, 130)]
    a, b, c = zip("abc", params, strict=True)
    groups = [{"params": [a, b]}, {"params": [c], "weight_decay": 0.5}]
    for p in params:
        p.grad = torch.zeros_like(p)
    return ThermoAdamW(groups, lr=1e-2, backend=backend, **kw), params


def give(params, step, drift=0.0):
    """Write the gradients of a step in place, as a captured backward pass does."""
    rng = torch.Generator().manual_seed(step)
    for p in params:
        p.grad.copy_(drift + torch.randn(p.shape, generator=rng))


class Silent:
    """A kernel that is launched and does nothing: the interpreter reads what a device would."""

    def __getitem__(self, grid):
        return lambda *args, **kwargs: None


@pytest.mark.skipif(not INTERPRETED, reason="on CUDA torch's own check is asked (tests/adamw/test_cuda.py)")
@pytest.mark.parametrize("kind", ["monitor", "autotune", "observer"])
def test_a_step_reads_nothing_from_the_device(monkeypatch, kind):
    """All that Python asks of torch in steps with and without readings, for any operation that waits."""
    if kind == "observer":
        _, params = make()
        opt = torch.optim.AdamW(params, fused=True)
        monkeypatch.setattr(step_hooks, "dry_kernel", lambda groups: kernels)
        opt.observer = Observer(None, opt, 1)
    else:
        opt, params = make(controller=autotune(400) if kind == "autotune" else None)
    train(opt, params, range(4))
    for module in (kernels, triton_travel):
        for name in ("settings", "adamw", "reduce", "account", "force", "work", "distance"):
            if hasattr(module, f"{name}_kernel"):
                monkeypatch.setattr(module, f"{name}_kernel", Silent())
    opt.step()
    with Launches() as launches:
        for _ in range(25):
            opt.step()
    assert not WAITS & set(launches.names), launches.names


def train(opt, params, steps, drift=0.0):
    for step in steps:
        give(params, step, drift)
        opt.step()


def test_the_account_on_the_device_is_the_hosts():
    """Averages, recorded readings and counters against those of the torch backend, whatever was skipped."""
    (ours, mine), (theirs, twins) = make(ema_steps=10), make("torch", ema_steps=10, measure_every=1)
    for step in range(1, STEPS):
        for opt, params in ((ours, mine), (theirs, twins)):
            give(params, step)
            if step == 6:
                params[1].grad[0] = torch.nan
            if step == 7:  # undo what the NaN has done
                for p, q in zip(mine, twins, strict=True):
                    for x in (p, q):
                        x.detach().nan_to_num_(0.1)
                        state = (ours if x is p else theirs).state[x]
                        state["exp_avg"].nan_to_num_(0.0)
                        state["exp_avg_sq"].nan_to_num_(0.1)
            opt.step()
    assert ours._ledger.table is not None
    assert ours.reading.step == theirs.reading.step == STEPS - 1
    np.testing.assert_allclose(ours.reading.terms, theirs.reading.terms, rtol=2e-4, atol=1e-7)
    assert ours.skipped == theirs.skipped
    assert ours.skipped["nonfinite"] == 1
    assert ours.history.steps.tolist() == theirs.history.steps.tolist()


def test_a_dry_step_is_none():
    opt, params = make()
    for group in opt.param_groups:
        group["lr"] = 0.0
    opt.step()  # a checkpoint library's: every gradient 0
    assert opt.steps == 0
    for group in opt.param_groups:
        group["lr"] = 1e-2
    train(opt, params, range(1, 4))
    for group in opt.param_groups:
        group["lr"] = 0.0
    for p in params:
        p.grad.zero_()
    opt.step()
    assert opt.skipped["dry"] == 2
    assert opt.steps == 3


def test_state_travels_and_goes_on():
    (one, mine), (other, theirs) = make(controller=autotune(200)), make(controller=autotune(200))
    train(one, mine, range(1, 4))
    with torch.no_grad():
        for p, q in zip(theirs, mine, strict=True):
            p.copy_(q)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    np.testing.assert_array_equal(one.reading.terms, other.reading.terms)
    for opt, params in ((one, mine), (other, theirs)):
        train(opt, params, range(4, 8))
    np.testing.assert_array_equal(one.reading.terms, other.reading.terms)
    assert all(torch.equal(p, q) for p, q in zip(mine, theirs, strict=True))


def test_nothing_is_read_before_it_is_recorded(monkeypatch):
    """Of all steps only those recorded ask the device for anything."""
    asked = []
    true = ledger_module.DeviceTable.fetch
    monkeypatch.setattr(
        ledger_module.DeviceTable, "fetch", lambda self: (asked.append(opt._ledger.run.step), true(self))[1]
    )
    opt, params = make(ema_steps=20)
    train(opt, params, range(1, STEPS))
    # interpreted, the first step, torch's own, is recorded before the table is where the tensors are
    assert asked == ([5, 9, 13] if INTERPRETED else [1, 5, 9, 13])
    assert opt.history.steps.tolist() == [1, 5, 9, 13]


def capture(opt, monkeypatch):
    """Capture a step; return what replays it: all that it would have launched, on the tables of then."""
    launched = []
    with monkeypatch.context() as patch:
        for module in (ledger_module, one_pass, optimizer, plans, control_loop, travel_bucket):
            patch.setattr(module, "capturing", lambda: True)
        for kind in (kernels.Plan, DeviceTravelPlan):
            patch.setattr(
                kind, "_launch", lambda self, *args, true=kind._launch: launched.append((true, self, args))
            )
        opt.step()
    return lambda: [true(plan, *args) for true, plan, args in launched]


@pytest.mark.skipif(not INTERPRETED, reason="tests/adamw/test_cuda.py captures real graphs")
@pytest.mark.parametrize(
    "controller",
    [Follow, lambda: autotune(40), lambda: Chain(Thermostat("diffusion", total_steps=40), Cooling(40))],
    ids=["every step", "autotune", "displacement"],
)
def test_replays_take_the_rates_of_eager_steps(monkeypatch, controller):
    """A capture keeps what would be launched; a replay launches that, and Python does before_replay only."""
    monkeypatch.setattr(ledger_module, "reading_lag", lambda params: 1)  # as on a device
    monkeypatch.setattr(travel_bucket, "travel_plan", DeviceTravelPlan)
    (eager, mine), (graphed, theirs) = (
        make(controller=controller(), ema_steps=10, capturable=True) for _ in range(2)
    )
    for opt, params in ((eager, mine), (graphed, theirs)):
        train(opt, params, range(1, 4), drift=1.0)
    replay = capture(graphed, monkeypatch)
    assert graphed._ledger.run.step == 3
    last = 7
    for step in range(4, last + 1):
        train(eager, mine, [step], drift=1.0)
        give(theirs, step, drift=1.0)
        graphed.before_replay()
        if step == 6:
            assert graphed.reading.step == 5  # asked between the two: the replay is still to come
        replay()
    assert all(torch.equal(p, q) for p, q in zip(mine, theirs, strict=True))
    assert eager.history.steps.tolist() == graphed.history.steps.tolist()
    np.testing.assert_array_equal(eager.reading.terms, graphed.reading.terms)
    assert graphed.steps == eager.steps == last
    if controller is Follow:
        assert eager.controller.seen == graphed.controller.seen
        assert len(eager.controller.seen) > 1
    else:
        assert eager.controller.log == graphed.controller.log != []
    # an eager step goes on from there, and so does a checkpoint
    for opt, params in ((eager, mine), (graphed, theirs)):
        train(opt, params, [99])
    assert all(torch.equal(p, q) for p, q in zip(mine, theirs, strict=True))
    one, other = (opt.state_dict()["param_groups"][0]["thermo"] for opt in (eager, graphed))
    sums = [key for key in one if key.startswith("travel_")]
    assert len(sums) == {frozenset(): 0, frozenset({"distance"}): 2}.get(eager.controller.needs, 4)
    assert all(torch.equal(one[key], other[key]) for key in sums)


@pytest.mark.skipif(not INTERPRETED, reason="tests/adamw/test_cuda.py captures real graphs")
def test_replays_that_nobody_announced_are_told(monkeypatch):
    monkeypatch.setattr(travel_bucket, "travel_plan", DeviceTravelPlan)
    opt, params = make(controller=autotune(60), ema_steps=10, capturable=True)
    train(opt, params, range(1, 4))
    replay = capture(opt, monkeypatch)
    for _ in range(2):
        replay()
    with pytest.warns(RuntimeWarning, match="2 replays of a captured step were made without before_replay"):
        assert opt.steps == 5


@pytest.mark.skipif(not INTERPRETED, reason="tests/adamw/test_cuda.py captures real graphs")
def test_a_capture_must_be_warm(monkeypatch):
    opt, params = make(capturable=True)
    with pytest.raises(RuntimeError, match="no step of this optimizer was captured"):
        opt.before_replay()
    with pytest.raises(RuntimeError, match="warm up"):
        capture(opt, monkeypatch)
    tuned, params = make(controller=autotune(60), capturable=True)
    with pytest.raises(RuntimeError, match="warm up"):
        capture(tuned, monkeypatch)
    train(tuned, params, range(1, 4))
    tuned.load_state_dict(tuned.state_dict())
    with pytest.raises(RuntimeError, match="warm up"):
        capture(tuned, monkeypatch)
    train(tuned, params, range(4, 6))
    capture(tuned, monkeypatch)


def test_steps_before_a_capture_are_measured():
    """Whatever measure_every says: a capture cannot compile what it launches."""
    for capturable, steps in ((True, [1]), (False, [])):
        opt, params = make(measure_every=100, capturable=capturable)
        train(opt, params, range(1, 5))
        assert opt.history.steps.tolist() == steps
        assert (opt.reading is not None) is capturable
        assert opt.reading is None or opt.reading.step == 3


def test_an_observer_reads_with_the_same_kernel(monkeypatch):
    """In dry steps, for torch's own AdamW; nothing of the optimizer is written."""
    from thermoopt.observer import step_hooks

    monkeypatch.setattr(step_hooks, "dry_kernel", lambda groups: kernels)
    runs = []
    for observed in (True, False):
        _, params = make("torch")
        opt = torch.optim.AdamW(params, lr=1e-2)
        observer = Observer(None, opt, 2, ema_steps=8) if observed else None
        train(opt, params, range(1, STEPS))
        runs.append((params, observer))
    (mine, observer), (twins, _) = runs
    assert all(torch.equal(p, q) for p, q in zip(mine, twins, strict=True))
    assert observer._source._ledger.table is not None
    _, params = make("torch")
    opt = torch.optim.AdamW(params, lr=1e-2)
    monkeypatch.setattr(step_hooks, "dry_kernel", lambda groups: None)
    reference = Observer(None, opt, 2, ema_steps=8)
    train(opt, params, range(1, STEPS))
    assert observer.reading.step == reference.reading.step == STEPS - 1 - (STEPS - 1) % 2
    np.testing.assert_allclose(observer.reading.terms, reference.reading.terms, rtol=2e-4, atol=1e-8)


def test_a_trial_finds_what_does_not_compile(monkeypatch):
    kernels.trial.cache_clear()
    assert kernels.trial() is None
    kernels.trial.cache_clear()

    def broken(self, *args):
        raise RuntimeError("Failed to find C compiler.\nmore")

    monkeypatch.setattr(kernels.Plan, "_launch", broken)
    monkeypatch.setattr(triton_launch, "KEEPS", True)
    assert "do not compile: RuntimeError: Failed to find C compiler." in kernels.trial()
    assert triton_launch.KEEPS is True
    kernels.trial.cache_clear()


class Strange(Silent):
    """A launch of a compiled kernel by a Triton that wants something else than those before it."""

    def __getitem__(self, grid):
        def launch(*args):
            raise TypeError("launch() missing 1 required positional argument: 'scratch'")

        return launch


@pytest.mark.parametrize("kernel", ["settings", "adamw", "account"])
def test_a_trial_gives_up_repeating_launches_where_that_fails(monkeypatch, kernel):
    """Before any step of a model, whose first would succeed and whose second would not."""
    true = triton_launch.Launch.__call__

    def call(self, function, *args, **kwargs):
        true(self, function, *args, **kwargs)
        if self._compiled is None and triton_launch.KEEPS and kwargs.get("owned", True):
            self._compiled = Strange() if function is getattr(kernels, f"{kernel}_kernel") else None

    monkeypatch.setattr(triton_launch, "KEEPS", True)
    monkeypatch.setattr(triton_launch.Launch, "__call__", call)
    kernels.trial.cache_clear()
    assert kernels.trial() is None
    assert triton_launch.KEEPS is False
    kernels.trial.cache_clear()


@pytest.mark.skipif(not INTERPRETED, reason="tests/adamw/test_cuda.py captures real graphs")
def test_a_capture_says_what_it_leaves_out(monkeypatch):
    """Where torch takes a tensor nothing is measured in the graph, and no controller can set its rate."""
    monkeypatch.setattr(optimizer, "check_capturable", lambda opt: None)
    # torch refuses capturable on CPU: its part of the step is left out here
    monkeypatch.setattr(one_pass, "torch_step", lambda *_: None)
    for controller in (None, Follow()):
        opt, params = make(controller=controller)
        odd = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64, device=DEVICE))
        odd.grad = torch.ones_like(odd)
        opt.add_param_group({"params": [("odd", odd)]})
        for p in params:
            opt.state[p] = {
                "step": torch.zeros((), device=DEVICE),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }
        with pytest.raises(RuntimeError, match="warm up"):
            capture(opt, monkeypatch)
        opt._ledger.keep_on(torch.device(DEVICE))
        opt.step()
        if controller is None:
            with pytest.warns(RuntimeWarning, match="torch takes odd"):
                capture(opt, monkeypatch)
        else:
            with pytest.raises(
                RuntimeError, match=r"only if the kernel takes every parameter.*torch takes odd"
            ):
                capture(opt, monkeypatch)
