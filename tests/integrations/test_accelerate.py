"""Accelerate: what its wrappers do to ThermoAdamW, ThermoScheduler and Observer, in one process and two."""

import copy
import gc
import os
import warnings
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.support.processes import run_processes
from thermoopt import Observer, ThermoAdamW, ThermoScheduler, autotune

with warnings.catch_warnings():  # at import: its dependencies' own deprecations
    warnings.simplefilter("ignore")
    accelerate = pytest.importorskip("accelerate")
    from accelerate.state import AcceleratorState, GradientState, PartialState

RANKS, STEPS, HALF, TIMEOUT, ACCUMULATE = 2, 30, 14, 90, 3


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 17), torch.nn.Tanh(), torch.nn.Linear(17, 3))


def batch(step, rank):
    return torch.randn(16, 6, generator=torch.Generator().manual_seed(100 * rank + step))


def loss_of(net, x):
    return (net(x) - x[:, :3] * 2).square().mean()


def thermo(net, **flags):
    return ThermoAdamW(net.named_parameters(), weight_decay=0.1, measure_every=1, **flags)


def adamw(net, schedule=None):
    """AdamW and its ThermoScheduler: a plain shape, or a controller's rates."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.1)
    if schedule == "controlled":
        return optimizer, ThermoScheduler(optimizer, STEPS, shape="constant", controller=autotune(STEPS))
    return optimizer, ThermoScheduler(optimizer, STEPS, warmup_steps=4, shape="cosine")


def flat(net):
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


def scales(optimizer):
    """Everything that a controller sets, as one tensor."""
    rows = []
    for group in optimizer.param_groups:
        thermo = group["thermo"]
        rows.append(torch.tensor([group["lr"], thermo["lr_scale"], thermo["wd_scale"]], dtype=torch.float64))
        rows.append(thermo["layer_factors"].clone())
    return torch.cat(rows)


def same(a, b):
    """Whether two state dicts hold the same, tensors and NaN included."""
    if isinstance(a, torch.Tensor):
        return torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b or (a != a and b != b)


# ---------------------------------------------------------------- one process


@pytest.fixture
def accelerator():
    """An accelerator on CPU whose global state is taken away again."""
    yield accelerate.Accelerator(cpu=True)
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()


def train(net, optimizer, steps, first=0, backward=torch.Tensor.backward):
    for step in range(first, first + steps):
        optimizer.zero_grad()
        backward(loss_of(net, batch(step, 0)))
        optimizer.step()


def test_prepare_in_mid_run_loses_nothing(accelerator):
    """It reads the optimizer's state and loads it again."""
    plain, net = model(), model()
    expected = thermo(plain, controller=autotune(STEPS))
    train(plain, expected, STEPS)
    optimizer = thermo(net, controller=autotune(STEPS))
    train(net, optimizer, HALF)
    before = copy.deepcopy(optimizer.state_dict())
    wrapped, prepared = accelerator.prepare(net, optimizer)
    assert prepared.optimizer is optimizer
    assert same(before, prepared.state_dict())
    assert len(optimizer.history) == HALF
    train(wrapped, prepared, STEPS - HALF, HALF, accelerator.backward)
    assert torch.equal(flat(plain), flat(net))
    assert same(expected.state_dict(), optimizer.state_dict())
    assert repr(optimizer.controller.log) == repr(expected.controller.log)  # NaN is not equal to itself
    assert len(optimizer.controller.log) > 3
    assert optimizer.history.steps.tolist() == expected.history.steps.tolist()


def test_an_observer_made_before_prepare_goes_on(accelerator):
    plain, net = model(), model()
    expected, optimizer = adamw(plain)[0], adamw(net)[0]
    alone, observer = (Observer(m, o, log_every=1) for m, o in ((plain, expected), (net, optimizer)))
    train(plain, expected, STEPS)
    wrapped, prepared = accelerator.prepare(net, optimizer)
    train(wrapped, prepared, STEPS, backward=accelerator.backward)
    assert torch.equal(flat(plain), flat(net))
    assert np.array_equal(observer.reading.terms, alone.reading.terms, equal_nan=True)
    assert observer.steps == STEPS


def test_an_observer_can_be_registered_for_checkpoints(accelerator, tmp_path):
    net = model()
    optimizer = adamw(net)[0]
    observer = Observer(net, optimizer, log_every=1)
    wrapped, prepared = accelerator.prepare(net, optimizer)
    accelerator.register_for_checkpointing(observer)
    train(wrapped, prepared, HALF, backward=accelerator.backward)
    accelerator.save_state(str(tmp_path))
    train(wrapped, prepared, STEPS - HALF, HALF, accelerator.backward)
    terms, weights = observer.reading.terms, flat(net)
    accelerator.load_state(str(tmp_path))
    assert observer.steps == HALF
    train(wrapped, prepared, STEPS - HALF, HALF, accelerator.backward)
    assert torch.equal(flat(net), weights)
    assert np.array_equal(observer.reading.terms, terms, equal_nan=True)


# ---------------------------------------------------------------- two processes


def run_thermo(rank, folder):
    """ThermoAdamW with a controller: straight, and saved half way and loaded into new objects."""
    out = {}
    for way in ("straight", "resumed"):
        for first, last in ((0, STEPS),) if way == "straight" else ((0, HALF), (HALF, STEPS)):
            accelerator = accelerate.Accelerator(cpu=True)
            assert accelerator.num_processes == RANKS
            inner = model()
            optimizer = thermo(inner, controller=autotune(STEPS))
            net, wrapped = accelerator.prepare(inner, optimizer)
            if first:
                accelerator.load_state(f"{folder}/half")
            trace = []
            for step in range(first, last):
                wrapped.zero_grad()
                accelerator.backward(loss_of(net, batch(step, rank)))
                wrapped.step()
                trace.append(torch.cat([scales(optimizer), flat(inner).double()]))
            if last == HALF:
                accelerator.save_state(f"{folder}/half")
                accelerator.wait_for_everyone()
        assert optimizer.steps == STEPS
        out[way] = {"trace": torch.stack(trace), "terms": torch.from_numpy(optimizer.reading.terms)}
    return out


def run_scheduled(rank, schedule):
    """The lr of every step, with a scheduler that Accelerate steps once for every process."""
    accelerator = accelerate.Accelerator(cpu=True)
    inner = model()
    optimizer, scheduler = adamw(inner, schedule)
    net, wrapped, stepped = accelerator.prepare(inner, optimizer, scheduler)
    lrs = []
    calls = [0]
    step_of = scheduler.step
    scheduler.step = lambda *args: (calls.__setitem__(0, calls[0] + 1), step_of(*args))[1]
    for step in range(STEPS):
        wrapped.zero_grad()
        accelerator.backward(loss_of(net, batch(step, rank)))
        lrs.append(optimizer.param_groups[0]["lr"])
        wrapped.step()
        stepped.step()
    return {"lrs": lrs, "calls": calls[0]}


def run_accumulated(rank):
    """Counters after every batch where every third one steps."""
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATE)
    inner = model()
    optimizer = thermo(inner, controller=autotune(STEPS // ACCUMULATE))
    net, wrapped = accelerator.prepare(inner, optimizer)
    counts, trace = [], []
    for step in range(STEPS):
        with accelerator.accumulate(net):
            accelerator.backward(loss_of(net, batch(step, rank)))
            wrapped.step()
            wrapped.zero_grad()
        counts.append([optimizer.steps, len(optimizer.history), sum(optimizer.skipped.values())])
        trace.append(scales(optimizer))
    return {"counts": counts, "trace": torch.stack(trace), "weights": flat(inner)}


def worker(rank, folder):
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS), LOCAL_WORLD_SIZE=str(RANKS)
    )
    os.environ.update(ACCELERATE_USE_CPU="true", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(seconds=TIMEOUT / 2),
    )
    try:
        out = {
            "thermo": run_thermo(rank, folder),
            "plain": run_scheduled(rank, "plain"),
            "controlled": run_scheduled(rank, "controlled"),
        }
        for state in (AcceleratorState, GradientState):  # the number of steps to accumulate is global
            state._reset_state()
        out["accumulated"] = run_accumulated(rank)
        torch.save(out, f"{folder}/{rank}.pt")
        dist.barrier()
    finally:
        gc.collect()  # a DDP that outlives its process group may deadlock when it goes (torch 2.13)
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each rank recorded: one start of two processes for all tests."""
    folder = tmp_path_factory.mktemp("accelerate")
    run_processes(worker, (str(folder),), RANKS, TIMEOUT)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


def alone(make, per_step=1):
    """A plain loop over the batches of all ranks together, ``per_step`` of each for one optimizer step."""
    net = model()
    made = make(net)
    optimizer, scheduler = made if isinstance(made, tuple) else (made, None)
    lrs = []
    for first in range(0, STEPS, per_step):
        steps = range(first, first + per_step)
        optimizer.zero_grad()
        loss_of(net, torch.cat([batch(step, rank) for step in steps for rank in range(RANKS)])).backward()
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return net, optimizer, lrs


@pytest.mark.dist
def test_ranks_hold_the_same_scales_and_weights(ranks):
    first, second = (rank["thermo"]["straight"]["trace"] for rank in ranks)
    assert torch.equal(first, second)
    assert not torch.equal(first[10], first[20])


@pytest.mark.dist
def test_save_state_and_load_state_resume_bit_for_bit(ranks):
    for rank in ranks:
        straight, resumed = rank["thermo"]["straight"], rank["thermo"]["resumed"]
        assert len(resumed["trace"]) == STEPS - HALF
        assert torch.equal(straight["trace"][HALF:], resumed["trace"])
        assert same(straight["terms"], resumed["terms"])


@pytest.mark.dist
@pytest.mark.parametrize(("schedule", "tolerance"), [("plain", 0), ("controlled", 1e-3)])
def test_rates_are_those_of_a_single_process(ranks, schedule, tolerance):
    """Though the scheduler is stepped twice a step. A controller's gradients differ in their last bits."""
    first, second = (rank[schedule] for rank in ranks)
    assert first == second
    assert first["calls"] == RANKS * STEPS
    _, _, lrs = alone(lambda net: adamw(net, schedule))
    assert first["lrs"] == pytest.approx(lrs, rel=tolerance, abs=0)
    assert len(set(lrs)) > 10


@pytest.mark.dist
def test_skipped_steps_of_accumulation_move_nothing(ranks):
    first, second = (rank["accumulated"] for rank in ranks)
    taken = [(step + 1) // ACCUMULATE for step in range(STEPS)]
    assert first["counts"] == [[n, n, 0] for n in taken]
    assert torch.equal(first["trace"], second["trace"])
    for step in range(1, STEPS):
        if taken[step] == taken[step - 1]:
            assert torch.equal(first["trace"][step], first["trace"][step - 1])
    assert len(first["trace"].unique(dim=0)) > 3
    net, optimizer, _ = alone(
        lambda net: thermo(net, controller=autotune(STEPS // ACCUMULATE)), per_step=ACCUMULATE
    )
    assert optimizer.steps == taken[-1]
    assert torch.allclose(first["weights"], flat(net), rtol=1e-3, atol=1e-4)
