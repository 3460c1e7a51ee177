"""ThermoAdamW next to torch.optim.AdamW: the same bits with controllers off, and exact scales."""

import copy
import gc
import weakref

import pytest
import torch

from tests.support.small_net import assert_same_bits, model, train
from thermoopt import ThermoAdamW, autotune
from thermoopt.account import MAX_PENDING
from thermoopt.controllers import Controller, Scales
from thermoopt.tensors import Fetch

FLAGS = {
    "for-loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "capturable": {"capturable": True, "foreach": False},
    "amsgrad": {"amsgrad": True},
    "amsgrad-fused": {"amsgrad": True, "fused": True},
    "maximize": {"maximize": True},
    "maximize-fused": {"maximize": True, "fused": True},
    "tensor-lr": {"lr": torch.tensor(2e-3)},
    "tensor-lr-fused": {"lr": torch.tensor(2e-3), "fused": True},
    "tensor-betas": {"betas": (torch.tensor(0.9), torch.tensor(0.99))},
    "no-decay": {"weight_decay": 0.0},
    "differentiable": {"differentiable": True},
}
# torch's capturable path refuses to run on CPU tensors outside of torch.compile
SKIP_CAPTURABLE = "capturable needs CUDA, HPU or XLA parameters in torch's own step"


@pytest.mark.parametrize("measure_every", [1, 3, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_monitor_changes_not_one_bit(flags, dtype, measure_every):
    if flags.get("capturable"):
        pytest.skip(SKIP_CAPTURABLE)
    ours, theirs = model(dtype), model(dtype)
    if flags.get("differentiable"):
        # a differentiable step needs parameters that are not leaves asking for a gradient
        for net in (ours, theirs):
            for p in net.parameters():
                p.requires_grad_(False)
    opt = ThermoAdamW(ours.named_parameters(), measure_every=measure_every, backend="torch", **flags)
    ref = torch.optim.AdamW(theirs.named_parameters(), **flags)
    for step in range(12):
        rng = torch.Generator().manual_seed(step)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=rng).to(dtype)
            q.grad = p.grad.clone()
        opt.step()
        ref.step()
    assert_same_bits(ours, opt, theirs, ref)
    assert opt.reading.step == {1: 12, 3: 10, None: 10}[measure_every]


@pytest.mark.parametrize("flags", [{}, {"foreach": True}])
def test_monitor_changes_not_one_bit_complex(flags):
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(9, dtype=torch.complex64))
    q = torch.nn.Parameter(p.detach().clone())
    opt = ThermoAdamW([p], measure_every=1, backend="torch", **flags)
    ref = torch.optim.AdamW([q], **flags)
    for _ in range(5):
        p.grad = torch.randn(9, dtype=torch.complex64)
        q.grad = p.grad.clone()
        opt.step()
        ref.step()
    assert torch.equal(p, q)


def test_is_an_adamw():
    opt = ThermoAdamW(model().parameters())
    assert isinstance(opt, torch.optim.AdamW)
    assert not [name for name in vars(opt) if not name.startswith("_") and name not in PLAIN_ATTRIBUTES]


PLAIN_ATTRIBUTES = set(vars(torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])))


@pytest.mark.parametrize("flags", [{}, {"foreach": True}, {"fused": True}, {"lr": torch.tensor(2e-3)}])
def test_scale_of_a_half_is_adamw_at_half_the_rate(flags):
    lr = flags.get("lr", 2e-3)
    flags = {k: v for k, v in flags.items() if k != "lr"}
    ours, theirs = model(), model()
    opt = ThermoAdamW(ours.parameters(), lr=lr, weight_decay=0.2, backend="torch", **flags)
    opt.param_groups[0]["thermo"]["lr_scale"] = 0.5
    opt.param_groups[0]["thermo"]["wd_scale"] = 0.25
    ref = torch.optim.AdamW(theirs.parameters(), lr=lr * 0.5, weight_decay=0.2 * 0.25, **flags)
    train(ours, opt, 10)
    train(theirs, ref, 10)
    assert_same_bits(ours, opt, theirs, ref)
    assert opt.param_groups[0]["lr"] is lr  # the schedule owns it
    assert opt.reading.total.lr_eff == pytest.approx(1e-3)
    assert opt.reading.total.wd_eff == pytest.approx(0.05)


@pytest.mark.parametrize("flags", [{"foreach": False}, {"foreach": True}, {"fused": True}])
def test_layer_factors_are_groups_of_their_own(flags):
    ours, theirs = model(), model()
    opt = ThermoAdamW(ours.named_parameters(), lr=1e-3, backend="torch", measure_every=1, **flags)
    factors = {"0.weight": 0.5, "0.bias": 3.0, "2.bias": 0.0}
    opt.set_layer_factors(factors)
    ref = torch.optim.AdamW(
        [{"params": [p], "lr": 1e-3 * factors.get(n, 1.0)} for n, p in theirs.named_parameters()], **flags
    )
    train(ours, opt, 10)
    train(theirs, ref, 10)
    assert_same_bits(ours, opt, theirs, ref)
    assert opt.reading.layers["0.bias"].lr_eff == pytest.approx(3e-3)
    assert len(opt.param_groups) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 30),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.01, total_steps=40),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda s: min(1.0, s / 5)),
        lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
    ],
)
def test_scales_survive_every_scheduler(make):
    """A scale of 0.5 under a schedule is the same schedule from half the lr (OneCycle's is absolute)."""
    ours = model()
    opt = ThermoAdamW(ours.parameters(), lr=4e-3, measure_every=1, backend="torch")
    opt.param_groups[0]["thermo"]["lr_scale"] = 0.5
    scheduler = make(opt)
    for step in range(20):
        before = opt.param_groups[0]["lr"]
        train(ours, opt, 1, start=step)
        scheduler.step()
        assert opt.reading.total.lr_eff == pytest.approx(0.5 * before)


def test_hooks_run_once_even_after_a_plain_adamw():
    """torch wraps AdamW.step for hooks as soon as one AdamW exists; ours must not run them twice."""
    torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])
    net = model()
    opt = ThermoAdamW(net.parameters())
    calls = []
    opt.register_step_pre_hook(lambda *_: calls.append("pre"))
    opt.register_step_post_hook(lambda *_: calls.append("post"))
    train(net, opt, 3)
    assert calls == ["pre", "post"] * 3


def test_closure_runs_first_and_gives_the_loss():
    """Gradients are read after the closure, as Lightning needs it."""
    ours, theirs = model(), model()
    opt = ThermoAdamW(ours.parameters(), measure_every=1, ema_steps=1, backend="torch")
    ref = torch.optim.AdamW(theirs.parameters())
    x = torch.randn(8, 6)

    def closure(net, optimizer):
        optimizer.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        return loss

    for _ in range(3):
        loss = opt.step(lambda: closure(ours, opt))
        other = ref.step(lambda: closure(theirs, ref))
        assert torch.equal(loss, other)
    norm = torch.nn.utils.get_total_norm([p.grad for p in ours.parameters()])
    assert opt.reading.total.grad_norm == pytest.approx(float(norm), rel=1e-5)
    assert_same_bits(ours, opt, theirs, ref)


def test_sums_add_over_layers_and_ratios_come_after():
    net = model()
    params = dict(net.named_parameters())
    opt = ThermoAdamW(
        [
            {"params": [("a", params["0.weight"]), ("b", params["0.bias"])], "lr": 1e-3, "name": "first"},
            {"params": [("c", params["2.weight"]), ("d", params["2.bias"])], "lr": 3e-3},
        ],
        measure_every=1,
        backend="torch",
    )
    train(net, opt, 7)
    reading = opt.reading
    assert reading.group_names == ("first", "group1")
    assert list(reading.layers) == ["a", "b", "c", "d"]
    for name in ("sigma", "sigma_sgd", "d_eS", "d_iS", "phi", "phi_star", "thermal_loss", "numel"):
        layers = [getattr(reading.layers[n], name) for n in "abcd"]
        assert getattr(reading.groups[0], name) == pytest.approx(sum(layers[:2]))
        assert getattr(reading.total, name) == pytest.approx(sum(layers))
    for name in ("grad_norm", "param_norm", "update_norm"):
        layers = [getattr(reading.layers[n], name) ** 2 for n in "abcd"]
        assert getattr(reading.total, name) == pytest.approx(sum(layers) ** 0.5)
    assert reading.groups[0].r == pytest.approx(reading.groups[0].phi / reading.groups[0].phi_star)
    assert reading.groups[0].lr_eff == pytest.approx(1e-3)
    assert reading.groups[1].lr_eff == pytest.approx(3e-3)


def test_frozen_and_unused_layers_are_absent():
    net = model()
    next(net.parameters()).requires_grad_(False)
    opt = ThermoAdamW(net.named_parameters(), measure_every=1)
    train(net, opt, 3)
    assert set(opt.reading.layers) == {"0.bias", "2.weight", "2.bias"}


def test_a_group_added_in_mid_run_is_measured():
    net, extra = model(), torch.nn.Parameter(torch.ones(4))
    opt = ThermoAdamW(net.parameters(), measure_every=1, backend="torch")
    train(net, opt, 4)
    before = opt.reading.layers["group0.0"].sigma
    opt.add_param_group({"params": [extra], "lr": 0.1, "name": "late"})
    assert opt.reading.layers["group0.0"].sigma == before
    extra.grad = torch.ones(4)
    train(net, opt, 1, start=4)
    extra.grad = torch.ones(4)
    opt.step()
    assert opt.reading.step == 6
    assert opt.reading.layers["group1.0"].lr_eff == pytest.approx(0.1)
    assert opt.reading.group_names == ("group0", "late")


class Halving(Controller):
    """Halves every lr at each reading, stops one layer, and remembers what it was told."""

    def __init__(self):
        self.readings = []
        self.steps = []

    def update(self, reading, step):
        self.steps.append(step)
        if reading is not None:
            self.readings.append(reading.step)
        return Scales(lr=0.5 ** len(self.readings), layers={"0.bias": 0.0} if self.readings else {})

    def state_dict(self):
        return {"readings": list(self.readings), "steps": list(self.steps)}

    def load_state_dict(self, state):
        self.readings, self.steps = list(state["readings"]), list(state["steps"])

    def reset(self):
        self.readings, self.steps = [], []


def test_a_controller_acts_on_the_next_step_and_resumes():
    def build(net):
        return ThermoAdamW(
            net.named_parameters(),
            lr=1e-2,
            controller=Halving(),
            measure_every=1,
            ema_steps=10,
            backend="torch",
        )

    net = model()
    opt = build(net)
    bias = net[0].bias
    train(net, opt, 1)
    assert opt.reading.total.lr_eff == pytest.approx(1e-2)  # it had nothing to act on yet
    held = bias.detach().clone()
    train(net, opt, 4, start=1)
    assert torch.equal(bias, held)  # factor 0: the layer stands still
    assert opt.param_groups[0]["lr"] == 1e-2
    # saved with a reading recorded that the controller has not seen
    assert opt.history.steps.tolist() == [1, 3, 5]
    assert opt.controller.readings == [1, 3]
    saved, weights = copy.deepcopy(opt.state_dict()), copy.deepcopy(net.state_dict())
    train(net, opt, 4, start=5)
    other = model(seed=9)
    other.load_state_dict(weights)
    resumed = build(other)
    resumed.load_state_dict(saved)
    train(other, resumed, 4, start=5)
    assert_same_bits(net, opt, other, resumed)
    assert opt.controller.readings == resumed.controller.readings == [1, 3, 5, 7]
    assert opt.controller.steps == resumed.controller.steps == list(range(1, 10))
    assert resumed.param_groups[0]["thermo"]["lr_scale"] == 0.5**4


@pytest.mark.parametrize("controller", [None, Halving, lambda: autotune(20)], ids=["none", "own", "autotune"])
def test_a_dropped_optimizer_frees_its_model_at_once(controller):
    """As torch's does: a cell that is run again must not wait for the garbage collector."""
    train(
        net := model(), ThermoAdamW(net.parameters()), 1
    )  # torch's first import of its compiler keeps frames
    gc.collect()
    gc.disable()
    try:
        net = model()
        opt = ThermoAdamW(net.named_parameters(), controller=controller and controller())
        train(net, opt, 15)
        weight = weakref.ref(net[0].weight)
        del net, opt
        assert weight() is None
    finally:
        gc.enable()


def test_scales_of_a_controller_without_one_are_told_of():
    net = model()
    opt = ThermoAdamW(net.named_parameters(), lr=1e-2, controller=Halving())
    train(net, opt, 6)
    state = opt.state_dict()
    alone = ThermoAdamW(net.named_parameters(), lr=1e-2)
    with pytest.warns(RuntimeWarning, match=r"keeps the last scales .*lr_scale of its groups: 0\.5\)"):
        alone.load_state_dict(state)
    plain = ThermoAdamW(net.named_parameters(), lr=1e-2)
    for group in state["param_groups"]:
        del group["thermo"]
    plain.load_state_dict(state)  # as the warning says, and none now
    assert plain.param_groups[0]["thermo"]["lr_scale"] == 1.0


def test_what_a_closure_returns_need_be_no_loss():
    """As in torch, where anything is handed through: losses of each sample, counts."""
    for returned in (torch.ones(3), torch.ones(1, dtype=torch.int64), {"loss": 1.0}, None):
        net = model()
        opt = ThermoAdamW(net.named_parameters(), lr=1e-2, controller=Halving())

        def closure(net=net, returned=returned):
            for p in net.parameters():
                p.grad = torch.ones_like(p)
            return returned

        assert opt.step(closure) is returned
        assert opt.reading.step == 1


def test_scales_for_another_number_of_groups_are_refused():
    class Wrong(Halving):
        def update(self, reading, step):
            return Scales(lr=[1.0, 1.0])

    net = model()
    opt = ThermoAdamW(net.parameters(), controller=Wrong())
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="2 factors for 1 parameter groups"):
        train(net, opt, 1)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key])


def test_no_host_sync_on_the_way(monkeypatch):
    """step() reads sums only when its fetch says they have arrived, and waits when too many are pending."""
    monkeypatch.setattr(Fetch, "ready", lambda self: False)
    net = model().double()  # torch operations measure it, and their sums are fetched
    opt = ThermoAdamW(net.parameters(), measure_every=1, backend="torch")

    def arrived():
        return opt._ledger.run.readings

    for step in range(MAX_PENDING):
        for p in net.parameters():
            p.grad = torch.ones_like(p)
        opt.step()
        assert arrived() == 0, step
    opt.step()
    assert arrived() == 1
    assert opt.reading.step == MAX_PENDING + 1  # reading waits for all of them
