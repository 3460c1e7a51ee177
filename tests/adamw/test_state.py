"""Nothing is lost: checkpoints, pickles and copies continue bit for bit."""

import copy
import gc
import pickle
import warnings
import weakref

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp

from tests.support.disk import through_disk
from tests.support.small_net import assert_same_bits, model, train
from thermoopt import ThermoAdamW

OPTIONS = {"lr": 3e-3, "weight_decay": 0.1, "measure_every": 3, "backend": "torch"}


def same_reading(a, b):
    assert a.step == b.step
    assert a.names == b.names
    assert a.skipped == b.skipped
    assert np.array_equal(a.terms, b.terms, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resume_in_the_middle_is_bit_for_bit(dtype):
    whole, opt = model(dtype), None
    opt = ThermoAdamW(whole.named_parameters(), **OPTIONS)
    opt.param_groups[0]["thermo"]["lr_scale"] = 0.7
    opt.set_layer_factors({"2.weight": 1.5})
    train(whole, opt, 8)
    saved, weights = through_disk(opt.state_dict()), copy.deepcopy(whole.state_dict())
    train(whole, opt, 9, start=8)

    other = model(dtype, seed=5)
    other.load_state_dict(weights)
    resumed = ThermoAdamW(other.named_parameters(), **OPTIONS)
    resumed.load_state_dict(saved)
    train(other, resumed, 9, start=8)
    assert_same_bits(whole, opt, other, resumed)
    same_reading(opt.reading, resumed.reading)
    assert opt.reading.step == 17


def test_numbers_of_numpy_are_plain_in_a_checkpoint():
    net = model()
    lr, decay = np.float64(1e-3), np.float32(0.5)
    opt = ThermoAdamW(net.named_parameters(), lr=lr, weight_decay=decay, betas=(np.float64(0.9), 0.999))
    group = through_disk(opt.state_dict())["param_groups"][0]  # torch.load reads no number of numpy
    assert (group["lr"], group["weight_decay"], group["betas"]) == (1e-3, 0.5, (0.9, 0.999))

    law = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 0.5 * (1 + np.cos(np.pi * step / 4)))
    train(net, opt, 2, scheduler=law)
    assert through_disk(opt.state_dict())["param_groups"][0]["lr"] == pytest.approx(5e-4)


def test_a_checkpoint_without_moments_is_told_of(tmp_path):
    net = model()
    opt = ThermoAdamW(net.named_parameters(), **OPTIONS)
    train(net, opt, 4)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.save({"optimizer": opt.state_dict()}, checkpoint_id=tmp_path)
        fresh = ThermoAdamW(model().named_parameters(), **OPTIONS)
        state = {"optimizer": fresh.state_dict()}
        dcp.load(state, checkpoint_id=tmp_path)  # fills in what a fresh state_dict has: no moments
    with pytest.warns(RuntimeWarning, match="counts 4 steps but holds no moments"):
        fresh.load_state_dict(state["optimizer"])
    assert fresh.reading.step == opt.reading.step
    fresh.load_state_dict(through_disk(opt.state_dict()))
    fresh.load_state_dict(through_disk(ThermoAdamW(net.named_parameters(), **OPTIONS).state_dict()))


def test_reading_is_there_right_after_loading():
    net = model()
    opt = ThermoAdamW(net.named_parameters(), **OPTIONS)
    train(net, opt, 7)
    other = ThermoAdamW(model().named_parameters(), **OPTIONS)
    other.load_state_dict(through_disk(opt.state_dict()))
    same_reading(opt.reading, other.reading)


def test_state_dict_is_a_snapshot():
    net = model()
    opt = ThermoAdamW(net.parameters(), **OPTIONS)
    train(net, opt, 6)
    snapshot = opt.state_dict()["param_groups"][0]["thermo"]
    kept = copy.deepcopy(snapshot)
    opt.param_groups[0]["thermo"]["lr_scale"] = 0.1
    opt.set_layer_factors({"group0.0": 4.0})
    train(net, opt, 6, start=6)
    assert snapshot.keys() == kept.keys()
    for key, value in kept.items():
        assert torch.equal(torch.as_tensor(snapshot[key]), torch.as_tensor(value)), key


def test_state_is_plain():
    net = model()
    opt = ThermoAdamW(net.parameters(), **OPTIONS)
    train(net, opt, 4)
    state = opt.state_dict()
    assert all(isinstance(key, int) for key in state["state"])
    for group in state["param_groups"]:
        assert {type(v) for v in group["thermo"].values()} <= {int, float, torch.Tensor}
        assert all(torch.isfinite(v).all() for v in group["thermo"].values() if isinstance(v, torch.Tensor))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_go_on_like_the_original(clone):
    net = model()
    opt = ThermoAdamW(net.named_parameters(), ema_steps=7, **OPTIONS)
    train(net, opt, 8)
    net2, opt2 = clone((net, opt))
    train(net, opt, 7, start=8)
    train(net2, opt2, 7, start=8)
    assert_same_bits(net, opt, net2, opt2)
    same_reading(opt.reading, opt2.reading)
    assert opt.history.steps.tolist() == opt2.history.steps.tolist() == [3, 6, 10, 14]
    assert opt2.backend == "torch"


def test_tensors_of_a_pickle_outlive_it():
    """A spawned process gets tensors as file descriptors that it opens later: they must be open then."""
    net = model()
    opt = ThermoAdamW(net.named_parameters(), **OPTIONS)
    train(net, opt, 4)
    state = opt.__getstate__()
    values = [value for group in state["param_groups"] for value in group["thermo"].values()]
    held = [weakref.ref(value) for value in values if isinstance(value, torch.Tensor)]
    del state, values
    gc.collect()
    assert len(held) > 1
    assert all(ref() is not None for ref in held)


def test_plain_adamw_checkpoints_go_both_ways():
    plain_net = model()
    plain = torch.optim.AdamW(plain_net.named_parameters(), lr=3e-3, weight_decay=0.1)
    train(plain_net, plain, 7)
    ours_net = copy.deepcopy(plain_net)
    ours = ThermoAdamW(ours_net.named_parameters(), **OPTIONS)
    ours.load_state_dict(through_disk(plain.state_dict()))
    train(plain_net, plain, 5, start=7)
    train(ours_net, ours, 5, start=7)
    assert_same_bits(ours_net, ours, plain_net, plain)
    assert (ours.steps, ours.reading.step) == (12, 10)  # counting went on where the checkpoint stood
    # and back
    back_net = copy.deepcopy(ours_net)
    back = torch.optim.AdamW(back_net.named_parameters())
    back.load_state_dict(through_disk(ours.state_dict()))
    train(back_net, back, 5, start=12)
    train(plain_net, plain, 5, start=12)
    assert_same_bits(back_net, back, plain_net, plain)


def test_an_older_checkpoint_without_some_keys_loads():
    net = model()
    opt = ThermoAdamW(net.parameters(), **OPTIONS)
    train(net, opt, 6)
    state = through_disk(opt.state_dict())
    for key in ("wd_scale", "layer_factors", "skipped_dry"):
        del state["param_groups"][0]["thermo"][key]
    other_net = copy.deepcopy(net)
    other = ThermoAdamW(other_net.parameters(), **OPTIONS)
    other.load_state_dict(state)
    train(other_net, other, 4, start=6)
    train(net, opt, 4, start=6)
    assert_same_bits(net, opt, other_net, other)
    same_reading(net_reading := opt.reading, other.reading)
    assert net_reading.step == 10


def test_averages_of_another_layout_start_afresh_with_a_warning():
    net = model()
    opt = ThermoAdamW(net.parameters(), **OPTIONS)
    train(net, opt, 6)
    state = opt.state_dict()
    state["param_groups"][0]["thermo"]["meter"] = torch.zeros(3, 4, dtype=torch.float64)
    other = ThermoAdamW(model().parameters(), **OPTIONS)
    with pytest.warns(RuntimeWarning, match="start afresh"):
        other.load_state_dict(state)
    assert other.state_dict()["state"]


def test_loading_rewinds_the_history():
    net = model()
    opt = ThermoAdamW(net.parameters(), **OPTIONS)
    train(net, opt, 6)
    saved = copy.deepcopy(opt.state_dict())
    train(net, opt, 9, start=6)
    assert opt.history.steps.tolist() == [3, 14]
    opt.load_state_dict(saved)
    assert opt.history.steps.max() <= 6
    assert opt.reading.step == 6


def test_a_dry_step_moves_nothing():
    """Checkpoint libraries call step() on a fresh optimizer with lr 0 and zero gradients."""
    net = model()
    opt = ThermoAdamW(net.named_parameters(), measure_every=10, backend="torch")
    before = copy.deepcopy(net.state_dict())
    lrs = [group["lr"] for group in opt.param_groups]
    for group in opt.param_groups:
        group["lr"] = 0.0
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    opt.step()
    for group, lr in zip(opt.param_groups, lrs, strict=True):
        group["lr"] = lr
    thermo = opt.state_dict()["param_groups"][0]["thermo"]
    assert thermo["step"] == 0
    assert thermo["readings"] == 0
    assert thermo["skipped_dry"] == 1
    assert not thermo["meter"].any()
    assert opt.reading is None
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key])


def test_a_warmup_from_zero_is_not_a_dry_step():
    net = model()
    opt = ThermoAdamW(net.parameters(), lr=1e-3, measure_every=2, backend="torch")
    scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda s: min(1.0, s / 4))
    train(net, opt, 4, scheduler=scheduler)
    assert opt.reading.step == 4
    assert opt.reading.skipped["dry"] == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_gradient_is_counted_and_moves_no_average(bad):
    net = model()
    opt = ThermoAdamW(net.named_parameters(), measure_every=1, backend="torch")
    train(net, opt, 5)
    before = opt.reading
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    net[0].bias.grad[0] = bad
    opt.step()
    after = opt.reading
    assert after.step == before.step == 5
    assert np.array_equal(after.terms, before.terms, equal_nan=True)
    assert after.skipped == {"nonfinite": 1, "found_inf": 0, "dry": 0, "no_gradients": 0}


def test_a_step_without_gradients_is_counted():
    net = model()
    opt = ThermoAdamW(net.parameters(), measure_every=1)
    train(net, opt, 2)
    opt.zero_grad()
    opt.step()
    assert opt.reading.skipped["no_gradients"] == 1
    assert opt.reading.step == 2


def test_found_inf_of_a_fused_grad_scaler():
    """A fused GradScaler calls step() with found_inf set: neither weights nor averages move."""
    net = model()
    opt = ThermoAdamW(net.parameters(), fused=True, measure_every=1)
    train(net, opt, 3)
    before, reading = copy.deepcopy(net.state_dict()), opt.reading
    opt.grad_scale, opt.found_inf = torch.tensor(4.0), torch.tensor(1.0)
    for p in net.parameters():
        p.grad = torch.full_like(p, float("inf"))
    opt.step()
    del opt.grad_scale, opt.found_inf
    assert opt.reading.skipped["found_inf"] == 1
    assert np.array_equal(opt.reading.terms, reading.terms, equal_nan=True)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key])


def test_grad_scale_is_taken_out_of_the_sums():
    plain, scaled = model(), model()
    a = ThermoAdamW(plain.parameters(), fused=True, measure_every=1, backend="torch")
    b = ThermoAdamW(scaled.parameters(), fused=True, measure_every=1, backend="torch")
    for step in range(3):
        rng = torch.Generator().manual_seed(step)
        for p, q in zip(plain.parameters(), scaled.parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=rng)
            q.grad = 1024 * p.grad
        b.grad_scale, b.found_inf = torch.tensor(1024.0), torch.tensor(0.0)
        a.step()
        b.step()
    assert np.allclose(a.reading.terms, b.reading.terms, rtol=1e-6, equal_nan=True)


def test_grad_scaler_for_real():
    """torch's GradScaler on CPU with an injected infinity: one skip, and training goes on."""
    net = model()
    opt = ThermoAdamW(net.parameters(), measure_every=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(6):
        opt.zero_grad()
        loss = net(torch.randn(8, 6)).square().mean()
        scaler.scale(loss).backward()
        if step == 2:
            net[0].weight.grad[0, 0] = float("inf")
        scaler.step(opt)
        scaler.update()
    assert opt.reading.step == 5  # an unfused scaler does not call step() at all
    assert opt.reading.skipped["nonfinite"] == 0
