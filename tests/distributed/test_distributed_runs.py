"""Runs on several ranks that do not go smoothly: uneven work, delays, infinities, ranks that fail.

FSDP2 and DDP on CPU with gloo.
"""

import functools
import os
import random
import signal
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from tests.support.sharded_runs import (
    ALONE,
    account,
    batch,
    differences,
    each,
    error,
    give_gradients,
    launch,
    net,
    observed,
    scales,
    shard,
    thermo,
    train,
    wholes,
)
from thermoopt import Observer, ThermoScheduler, autotune
from thermoopt.controllers import Controller, Scales

pytestmark = [pytest.mark.dist, pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")]

ADAMW, SGD = torch.optim.AdamW, torch.optim.SGD
F32, F64 = torch.float32, torch.float64
STEPS = 10


def shards(x):
    """This rank's part of a parameter or gradient."""
    return x.to_local() if isinstance(x, DTensor) else x


# ------------------------------------------------------------------ DDP


class Branches(torch.nn.Module):
    """Two branches, of which a batch may take one only."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = (torch.nn.Linear(6, 4, dtype=F64) for _ in range(2))
        self.out = torch.nn.Linear(4, 1, dtype=F64)

    def forward(self, x, branch):
        return self.out(torch.tanh(getattr(self, branch)(x)))


def branch_of(step, rank):
    """Ranks take different branches in two steps of three, and all the same in each third."""
    return ("left", "right")[(step + (rank if step % 3 else 0)) % 2]


def ddp_case(ranks, name):
    """One run under DDP; alone, the same batches in one process."""
    controller = autotune(STEPS)
    if name == "unused":
        model = Branches()
        wrapped = DistributedDataParallel(model, find_unused_parameters=True) if ranks.world > 1 else model
    else:
        model = net(F64)
        wrapped = DistributedDataParallel(model) if ranks.world > 1 else model
    optimizer, source = thermo(model, backend="torch", controller=controller)
    rows = []
    for step in range(STEPS):
        optimizer.zero_grad()
        x = batch(step)
        if name == "unused":
            for rank in range(2) if ranks.world == 1 else [ranks.rank]:
                part = x.chunk(2)[rank]
                loss = error(functools.partial(wrapped, branch=branch_of(step, rank)), part)
                (loss if ranks.world > 1 else loss / 2).backward()
        elif name == "accumulated":
            first, second = ranks.part(x).chunk(2)
            with wrapped.no_sync() if ranks.world > 1 else torch.enable_grad():
                (error(wrapped, first) / 2).backward()
            (error(wrapped, second) / 2).backward()
        else:
            error(wrapped, ranks.part(x)).backward()
        optimizer.step()
        rows.append(scales(optimizer))
    return {"reading": account(source), "scales": torch.stack(rows), "params": wholes(model)}


DDP = ("plain", "accumulated", "unused")


def ddp_cases(ranks):
    return each(ranks, ddp_case, DDP)


@pytest.fixture(scope="module")
def ddp(tmp_path_factory):
    return launch(ddp_cases, 2, tmp_path_factory.mktemp("ddp"))


@pytest.mark.parametrize("name", DDP)
def test_ddp_runs_read_and_decide_as_one_process(ddp, name):
    """no_sync accumulates; a branch unused on one rank, on all, on none waits for nobody."""
    expected = ddp_case(ALONE, name)
    for rank in ddp:
        assert isinstance(rank[name], dict), rank[name]
        assert torch.equal(rank[name]["scales"], ddp[0][name]["scales"])
        assert not differences(rank[name], expected, rtol=1e-9)


# ------------------------------------------------------------------ FSDP


class Each(Controller):
    """Drives lr by the readings it is given, and remembers which they were."""

    needs, ema_steps, every = frozenset({"distance"}), 5.0, 1

    def __init__(self):
        self.reset()

    def reset(self):
        self.lr, self.seen = 1.0, []

    def update(self, reading, step):
        if reading is not None:
            travel = 0.0 if reading.travel is None else float(reading.travel.distance2.sum())
            self.seen.append([step, reading.step, reading.total.sigma, travel])
            self.lr *= 1 + 0.1 * np.tanh(reading.total.sigma + travel)
        return Scales(lr=float(self.lr))

    def state_dict(self):
        return {"lr": self.lr}

    def load_state_dict(self, state):
        self.lr = state["lr"]


def scheduled(model, make, **kwargs):
    """An optimizer whose lr a ThermoScheduler drives by readings and the distance gone."""
    optimizer = make(model.named_parameters(), lr=1e-2, **kwargs)
    observer = Observer(model, optimizer, log_every=1, ema_steps=5)
    controller = Each()
    scheduler = ThermoScheduler(
        observer, optimizer, STEPS, warmup_steps=4, shape="constant", controller=controller
    )
    return optimizer, observer, scheduler, controller


def lagged(ranks, kind):
    """Rank 1 sleeps at random, rank 0 reads in every step, the others do not look."""
    model = shard(net(F64), (ranks.world,)) if ranks.world > 1 else net(F64)
    if kind == "thermoadamw":
        optimizer, source = thermo(model, backend="torch")
        source = Observer(model, optimizer)
        controller = Each()
        flags = {"warmup_steps": 4, "shape": "constant", "controller": controller}
        scheduler = ThermoScheduler(source, optimizer, STEPS, **flags)
    else:
        make, kwargs = {"sgd": (SGD, {"momentum": 0.9}), "adamw": (ADAMW, {})}[kind]
        optimizer, source, scheduler, controller = scheduled(model, make, **kwargs)
    rng, lrs = random.Random(ranks.rank), []
    for step in range(STEPS):
        optimizer.zero_grad()
        error(model, ranks.part(batch(step))).backward()
        if ranks.rank == 1:
            time.sleep(rng.random() * 0.02)
        optimizer.step()
        if ranks.rank == 1:
            time.sleep(rng.random() * 0.02)
        if ranks.rank == 0:
            assert source.reading is not None
        scheduler.step()
        lrs.append(optimizer.param_groups[0]["lr"])
    return {"lrs": lrs, "seen": controller.seen, "reading": account(source)}


def frozen(ranks, kind):
    """A layer is frozen in mid-run, and later set free."""
    model = shard(net(F32), (ranks.world,)) if ranks.world > 1 else net(F32)
    optimizer, source = (
        observed(model, SGD, track=(), ema_steps=1)
        if kind == "sgd"
        else thermo(model, backend="native", ema_steps=1)
    )
    sigma = []
    for step in range(STEPS):
        model[2].requires_grad_(not 4 <= step < 7)
        give_gradients([p for p in model.parameters() if p.requires_grad], step)
        for p in model.parameters():
            p.grad = p.grad if p.requires_grad else None
        optimizer.step()
        layer = source.reading.layers.get("2.weight")
        sigma.append(None if layer is None else layer.sigma)
    return {"sigma": sigma, "reading": account(source)}


def accumulated(ranks, kind):
    """FSDP's own accumulation: gradients meet in the last part of each batch."""
    model = shard(net(F64), (ranks.world,)) if ranks.world > 1 else net(F64)
    optimizer, source = (
        observed(model, ADAMW) if kind == "adamw" else thermo(model, controller=autotune(STEPS))
    )
    for step in range(STEPS):
        optimizer.zero_grad()
        for i, part in enumerate(ranks.part(batch(step)).chunk(2)):
            if ranks.world > 1:
                model.set_requires_gradient_sync(i == 1)
            (error(model, part) / 2).backward()
        optimizer.step()
    return {"reading": account(source)}


def tiny():
    """One row: all ranks but the first hold nothing."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 1, dtype=F64))


def warmed_up(ranks, kind):
    """The lr starts at 0, in steps of which one has gradients of 0 besides (no step at all)."""
    model = shard(tiny(), (ranks.world,)) if ranks.world > 1 else tiny()
    counts, scheduler = [], None
    if kind == "scheduler":
        optimizer, source, scheduler, _ = scheduled(model, SGD)
    elif kind == "thermoadamw":
        optimizer, source = thermo(model, backend="torch")
    else:
        optimizer, source = observed(model, {"sgd": SGD, "adamw": ADAMW}[kind])
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, max(0, step - 2) / 4))
    for step in range(8):
        optimizer.zero_grad()
        error(model, ranks.part(batch(step))).backward()
        if step == 1:
            for p in model.parameters():
                p.grad.zero_()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        warm_up.step()
        _ = source.reading
        counts.append([source.steps, -1 if scheduler is None else scheduler.last_epoch])
    return {"counts": counts, "reading": account(source)}


def broadcast(ranks, kind):
    """All decide on the reading of the first rank; without, each on its own copy of the same sums."""
    model = shard(net(F64), (ranks.world,)) if ranks.world > 1 else net(F64)
    group = dist.group.WORLD if kind == "group" and ranks.world > 1 else None
    optimizer, source = thermo(model, backend="torch", controller=autotune(STEPS), process_group=group)
    rows = []
    for step in range(STEPS):
        optimizer.zero_grad()
        error(model, ranks.part(batch(step))).backward()
        optimizer.step()
        rows.append(scales(optimizer))
    return {"scales": torch.stack(rows), "reading": account(source)}


INFINITE = (4, 7)


def scaled(ranks, kind):
    """A GradScaler, and an infinity in one rank's shard in two of the steps."""
    model = shard(net(F32), (ranks.world,)) if ranks.world > 1 else net(F32)
    fused = kind.endswith("fused")
    if kind.startswith("thermo"):
        optimizer, source = thermo(
            model, fused=True if fused else None, backend="torch" if fused else "native"
        )
    else:
        optimizer, source = observed(model, ADAMW, fused=True if fused else None)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1000)
    before, moved = None, []
    for step in range(STEPS):
        optimizer.zero_grad()
        scaler.scale(error(model, ranks.part(batch(step, F32)))).backward()
        if step in INFINITE and ranks.rank == ranks.world - 1:
            shards(model[0].weight.grad)[-1, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        now = source.reading.layers["0.weight"].sigma
        if step in INFINITE:
            moved.append(now != before)
        before = now
    return {"moved": moved, "reading": account(source), "scale": scaler.get_scale(), "params": wholes(model)}


def unscaled(ranks, kind):
    """The same infinity without a scaler: no layer's average moves, whichever rank met it."""
    model = shard(net(F32), (ranks.world,)) if ranks.world > 1 else net(F32)
    optimizer, source = thermo(model) if kind == "thermo" else observed(model, ADAMW, track=())
    for step in range(4):
        give_gradients(list(model.parameters()), step)
        if step == 3 and ranks.rank == ranks.world - 1:
            shards(model[0].weight.grad)[-1, 0] = torch.inf
        optimizer.step()
    return {"reading": account(source)}


SKIPPED = (4, 8, 9, 10)
"""Steps of a GradScaler's infinities: one in which a reading is due, and all that another is made of."""


def skipping(ranks, kind):
    """Readings of three steps each, some of which an infinity leaves out."""
    model = shard(net(F32), (ranks.world,)) if ranks.world > 1 else net(F32)
    optimizer, source = (
        thermo(model, fused=True, backend="native", ema_steps=15)
        if kind == "thermo"
        else observed(model, ADAMW, track=(), ema_steps=15, fused=True)
    )
    for step in range(1, 15):
        give_gradients(list(model.parameters()), step)
        optimizer.found_inf = torch.tensor(float(step in SKIPPED))
        optimizer.step()
    steps = source.history.steps.tolist()
    source.state_dict()
    return {"reading": account(source), "steps": steps}


def disagreeing(ranks, kind):
    """One layer has no gradient on the last rank in one step, and none of its layers has one in another."""
    model = shard(net(F64), (ranks.world,)) if ranks.world > 1 else net(F64)
    optimizer, source = {
        "thermo": lambda: thermo(model, backend="torch", ema_steps=1),
        "adamw": lambda: observed(model, ADAMW, track=("rho",)),
        "sgd": lambda: observed(model, SGD, track=("rho",)),
    }[kind]()
    last, sigma = ranks.rank == ranks.world - 1, []
    for step in range(6):
        params = list(model.parameters())
        give_gradients(params, step)
        if step == 2 and (last or ranks.world == 1):
            params[0].grad = None
        if step == 4 and last:
            optimizer.zero_grad()
        optimizer.step()
        reading = source.reading
        sigma.append([reading.layers["0.weight"].sigma, reading.layers["2.weight"].sigma])
    return {"sigma": sigma, "step": source.reading.step, "skipped": dict(source.skipped)}


RUNS = {
    lagged: ("sgd", "adamw", "thermoadamw"),
    frozen: ("native", "sgd"),
    accumulated: ("adamw", "thermo"),
    warmed_up: ("sgd", "adamw", "thermoadamw", "scheduler"),
    broadcast: ("group", "none"),
    scaled: ("thermo", "thermo fused", "adamw", "adamw fused"),
    unscaled: ("thermo", "adamw"),
    skipping: ("thermo", "adamw"),
    disagreeing: ("thermo", "adamw", "sgd"),
}


MORE_RANKS = (lagged, disagreeing)
"""Runs in which it matters that the other ranks are not all alike; half of the layers are empty on two."""


def fsdp_runs(ranks):
    runs = RUNS if ranks.world == 2 else MORE_RANKS
    return {run.__name__: each(ranks, run, RUNS[run]) for run in runs}


on_two = pytest.mark.parametrize("fsdp", [2], indirect=True)
on_four = pytest.mark.parametrize("fsdp", [2, 4], indirect=True)


@pytest.fixture(scope="module")
def fsdp(request, tmp_path_factory):
    """A function of run and kind that gives each rank's results."""
    results = launch(fsdp_runs, request.param, tmp_path_factory.mktemp("fsdp"))

    def of(run, kind):
        found = [rank[run.__name__][kind] for rank in results]
        failed = [x for x in found if isinstance(x, str)]
        assert not failed, failed[0]
        return found

    return of


@on_four
@pytest.mark.parametrize("kind", RUNS[lagged])
def test_ranks_out_of_step_set_the_same_rates(fsdp, kind):
    """However late sums are, and whoever reads them: the same readings are acted on in the same steps."""
    first, *others = fsdp(lagged, kind)
    for other in others:
        assert other["lrs"] == first["lrs"]
        assert other["seen"] == first["seen"]
    steps = [row[0] for row in first["seen"]]
    assert steps == list(range(2, STEPS + 2))  # on CPU the reading of each step is there for the next
    assert [row[1] for row in first["seen"]] == [step - 1 for step in steps]
    assert len(set(first["lrs"])) == STEPS
    assert all(row[3] > 0 for row in first["seen"][1:])


@on_two
@pytest.mark.parametrize("kind", RUNS[frozen])
def test_a_layer_frozen_in_mid_run_leaves_the_reading_and_comes_back(fsdp, kind):
    """Its last average holds for ``ema_steps`` steps, here one, and is of no reading after that."""
    expected = frozen(ALONE, kind)
    for rank in fsdp(frozen, kind):
        assert not differences(rank, expected, rtol=1e-5, atol=1e-7)
        sigma = rank["sigma"]
        assert sigma[4] == sigma[3]
        assert sigma[5:7] == [None] * 2
        assert sigma[7] is not None
        assert sigma[7] != sigma[3]


@on_two
@pytest.mark.parametrize("kind", RUNS[accumulated])
def test_accumulated_gradients_read_as_in_one_process(fsdp, kind):
    expected = accumulated(ALONE, kind)
    for rank in fsdp(accumulated, kind):
        assert not differences(rank, expected, rtol=1e-9)


@on_two
@pytest.mark.parametrize("kind", RUNS[warmed_up])
def test_ranks_without_elements_count_the_same_steps(fsdp, kind):
    """Step 2 is a dry one; lr 0 with gradients is a step, whether or not this rank holds any."""
    expected = warmed_up(ALONE, kind)
    assert [count for count, _ in expected["counts"]] == [1, 1, 2, 3, 4, 5, 6, 7]
    for rank in fsdp(warmed_up, kind):
        assert not differences(rank, expected, rtol=1e-9)


@on_two
@pytest.mark.parametrize("kind", RUNS[broadcast])
def test_scales_are_the_same_with_and_without_a_process_group(fsdp, kind):
    first, *others = fsdp(broadcast, kind)
    expected = broadcast(ALONE, kind)
    for rank in (first, *others):
        assert torch.equal(rank["scales"], first["scales"])
        assert not differences(rank, expected, rtol=1e-9)
    assert (first["scales"][-1] / first["scales"][0] - 1).abs().max() > 0.1


@on_two
@pytest.mark.parametrize("kind", RUNS[scaled])
def test_an_infinity_on_one_rank_is_met_by_all(fsdp, kind):
    """No average moves; a fused optimizer counts it, an unfused one is not stepped at all."""
    expected = scaled(ALONE, kind)
    found_inf = len(INFINITE) if kind.endswith("fused") else 0
    for rank in fsdp(scaled, kind):
        assert rank["moved"] == [False, False]
        assert rank["scale"] == 2.0
        assert rank["reading"]["skipped"]["found_inf"] == found_inf
        assert not differences(rank, expected, rtol=2e-3, atol=1e-4)


@on_two
@pytest.mark.parametrize("kind", RUNS[unscaled])
def test_a_gradient_that_is_not_finite_on_one_rank_is_skipped_by_all(fsdp, kind):
    expected = unscaled(ALONE, kind)
    assert expected["reading"]["skipped"]["nonfinite"] == 1
    for rank in fsdp(unscaled, kind):
        assert not differences(rank, expected, rtol=1e-5, atol=1e-7)


@on_two
@pytest.mark.parametrize("kind", RUNS[skipping])
def test_steps_left_out_are_none_of_a_reading(fsdp, kind):
    """A reading is of the last step that counts, and there is none where none does; ranks go on alike."""
    expected = skipping(ALONE, kind)
    assert expected["reading"]["skipped"]["found_inf"] == len(SKIPPED)
    for rank in fsdp(skipping, kind):
        assert rank["steps"] == [1, 3, 7, 13]
        for run in (rank, expected):  # its rows are of the readings' steps
            run["reading"].pop("sigma", None)
        assert not differences(rank["reading"], expected["reading"], rtol=1e-5, atol=1e-7)


@on_four
@pytest.mark.parametrize("kind", RUNS[disagreeing])
def test_a_layer_that_one_rank_has_no_gradient_of_is_left_out_by_all(fsdp, kind):
    first, *others = fsdp(disagreeing, kind)
    for other in others:
        assert other["step"] == first["step"] == 6
        # a rank without any gradient says so where the others leave out all layers
        assert not differences(other["sigma"], first["sigma"], rtol=1e-12)
    layers = list(zip(*first["sigma"], strict=True))
    assert layers[0][2] == layers[0][1]  # left out in step 3
    assert layers[1][2] != layers[1][1]  # the others are not
    assert layers[0][4] == layers[0][3]  # step 5: no layer is whole
    assert layers[1][4] == layers[1][3]


# ------------------------------------------------------------------ ranks that fail

FAILS_AT, PATIENCE = 4, 20


def failing(ranks, how, kind):
    """Rank 1 goes away in mid-run; the others say what they met, in which step, and after how long."""
    model = shard(net(F64), (ranks.world,))
    optimizer, source = thermo(model) if kind == "thermo" else observed(model, SGD, track=())
    failed = None
    for step in range(1, STEPS):
        # no message but the sums': gradients are made on the spot
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        if step == FAILS_AT and ranks.rank == 1:
            if how == "raises":
                raise ArithmeticError("on purpose")
            if how == "exits":
                os._exit(3)
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(5 if how == "hangs" else 0)
        begun = time.monotonic()
        try:
            optimizer.step()
            _ = source.reading
        except RuntimeError as error:
            failed = str(error)
            break
    return {"failed": failed, "step": step, "waited": time.monotonic() - begun}


FAILURES = [
    ("raises", "thermo"),
    ("raises", "sgd"),
    ("exits", "thermo"),
    ("killed", "sgd"),
    ("hangs", "thermo"),
]


@pytest.mark.parametrize(("how", "kind"), FAILURES)
def test_the_others_are_told_in_which_step_a_rank_failed(tmp_path, how, kind):
    patience = 3 if how == "hangs" else PATIENCE
    results = launch(failing, 3, tmp_path, how, kind, patience=patience, lost=(1,))
    for rank in (0, 2):
        assert results[rank] is not None
        assert results[rank]["failed"] is not None
        assert f"step {FAILS_AT}" in results[rank]["failed"]
        assert results[rank]["waited"] < patience + 10


def alone_in(ranks, call):
    """Rank 0 does what all ranks must do; what it is told."""
    model = shard(net(F64), (ranks.world,))
    optimizer, _ = thermo(model)
    train(ranks, model, optimizer, range(2))
    if ranks.rank:
        return ""
    calls = {
        "observer": lambda: Observer(model, ADAMW(model.parameters())),
        "step": optimizer.step,
    }
    try:
        calls[call]()
        optimizer.state_dict()
    except RuntimeError as failed:
        return str(failed)
    return "nothing"


@pytest.mark.parametrize("call", ["observer", "step"])
def test_a_call_of_one_rank_alone_says_what_all_must_do(tmp_path, call):
    told, _ = launch(alone_in, 2, tmp_path, call, patience=3)
    assert "could not be added up with those of the other ranks" in told
    assert "step() and state_dict()" in told
    assert ("must create the optimizer, Observer" in told) == (call == "observer")
