"""What cuts or hands out parameters without DTensors: FSDP1, ZeroRedundancyOptimizer, PostLocalSGDOptimizer.

Two ranks on CPU with gloo.
"""

import copy
import warnings

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp import ShardingStrategy
from torch.nn.parallel import DistributedDataParallel

from tests.support.sharded_runs import (
    ALONE,
    account,
    batch,
    differences,
    each,
    error,
    launch,
    net,
    scales,
    wholes,
)
from thermoopt import Observer, ThermoAdamW, ThermoScheduler, autotune
from thermoopt.integrations.unwrapping import unwrap

pytestmark = [pytest.mark.dist, pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")]

STEPS, SAVED_AT = 12, 5
FLAGS = {"lr": 1e-2, "weight_decay": 0.1, "measure_every": 1, "backend": "torch"}


def train(ranks, model, optimizer, steps, after=lambda: None):
    for step in steps:
        optimizer.zero_grad()
        error(model, ranks.part(batch(step))).backward()
        optimizer.step()
        after()


# ------------------------------------------------------------------ FSDP1


def fsdp1(model, cut, orig=True):
    strategy = ShardingStrategy.FULL_SHARD if cut else ShardingStrategy.NO_SHARD
    device = torch.device("cpu")
    return FSDP(model, sharding_strategy=strategy, use_orig_params=orig, device_id=device)


def refused(make):
    try:
        make()
    except ValueError as failed:
        return str(failed)
    return ""


def controlled(ranks, name):
    """A controller on parameters that FSDP1 has cut, or cuts after the optimizer was made."""
    if name == "late":
        model = net()
        optimizer = ThermoAdamW(model.named_parameters(), controller=autotune(STEPS), **FLAGS)
        wrapped = fsdp1(model, cut=True)
        before = [p.detach().clone() for p in wrapped.parameters()]
        message = refused(lambda: train(ranks, wrapped, optimizer, range(1)))
        return message if all(map(torch.equal, before, wrapped.parameters())) else "the parameters have moved"
    model = fsdp1(net(), cut=True, orig=name != "flat")
    if name == "scheduled":
        adamw = torch.optim.AdamW(model.parameters())
        return refused(lambda: ThermoScheduler(adamw, STEPS, shape="constant", controller=autotune(STEPS)))
    return refused(lambda: ThermoAdamW(model.named_parameters(), controller=autotune(STEPS), **FLAGS))


def watched(ranks, name):
    """A monitor of parts, which FSDP1 has cut or cuts later: what is warned of, and where the run ends."""
    model = net()
    wrapped = fsdp1(model, cut=True) if name != "late" else None
    if name == "observer":
        optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-2, weight_decay=0.1)
        Observer(wrapped, optimizer)
    elif name == "adamw":
        optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-2, weight_decay=0.1)
    else:
        optimizer = ThermoAdamW(model.named_parameters(), **FLAGS)
    wrapped = wrapped or fsdp1(model, cut=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        train(ranks, wrapped, optimizer, range(STEPS))
    told = [str(w.message) for w in caught if "readings are of this rank's part only" in str(w.message)]
    return {"told": len(told), "params": [p.detach().clone() for p in wrapped.parameters()]}


def whole(ranks, name):
    """Parameters that FSDP1 leaves whole, those of no weight decay in a group of vectors."""
    model = fsdp1(net(), cut=False) if ranks.world > 1 else net()
    named = list(model.named_parameters())
    groups = [
        {"params": [x for x in named if x[1].ndim > 1]},
        {"params": [x for x in named if x[1].ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = ThermoAdamW(groups, controller=autotune(STEPS), **FLAGS)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        train(ranks, model, optimizer, range(STEPS))
    reading = account(optimizer)
    return {"scales": scales(optimizer), "layers": reading["layers"], "total": reading["total"]}


# ------------------------------------------------------------------ ZeRO


def zero(kind):
    from torch.distributed.optim import ZeroRedundancyOptimizer  # its import warns

    model = net()
    kinds = {"adamw": {}, "monitor": {}, "autotuned": {"controller": autotune(STEPS)}}
    flags, own = {"lr": 1e-2, "weight_decay": 0.1}, torch.optim.AdamW
    if kind != "adamw":
        flags, own = FLAGS | kinds[kind], ThermoAdamW
    optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=own, **flags)
    return model, DistributedDataParallel(model), optimizer


def resumed(ranks, kind):
    """A run from the checkpoint that one rank consolidated, and the one that went on."""
    model, wrapped, optimizer = zero(kind)
    train(ranks, wrapped, optimizer, range(SAVED_AT))
    optimizer.consolidate_state_dict(to=0)
    box = [(optimizer.state_dict(), model.state_dict()) if ranks.rank == 0 else None]
    dist.broadcast_object_list(box, src=0)
    state, weights = copy.deepcopy(box[0])
    train(ranks, wrapped, optimizer, range(SAVED_AT, STEPS))
    uninterrupted = wholes(model)
    model, wrapped, optimizer = zero(kind)
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        train(ranks, wrapped, optimizer, range(SAVED_AT, STEPS))
    out = {
        "warned": [str(w.message) for w in caught if "Averages and controller start over" in str(w.message)]
    }
    out |= {"params": wholes(model), "uninterrupted": uninterrupted}
    if kind != "adamw":
        reading = optimizer.optim.reading
        out |= {"steps": optimizer.optim.steps, "layers": len(reading.layers), "sigma": reading.total.sigma}
        out["factors"] = [len(group["thermo"]["layer_factors"]) for group in optimizer.optim.param_groups]
    return out


def averaged(ranks, name):
    """Ranks that average their weights now and then, and act on the readings of the first."""
    from torch.distributed.optim import PostLocalSGDOptimizer

    model, group = net(), dist.group.WORLD
    inner = ThermoAdamW(model.named_parameters(), controller=autotune(STEPS), process_group=group, **FLAGS)
    optimizer = PostLocalSGDOptimizer(inner, PeriodicModelAverager(period=3))
    rows, found = [], unwrap(optimizer) is inner
    train(ranks, model, optimizer, range(STEPS), lambda: rows.append(scales(inner)))
    try:
        Observer(model, optimizer)
    except TypeError as failed:
        return {"scales": torch.stack(rows), "found": found, "message": str(failed)}
    return {}


# ------------------------------------------------------------------ results

CONTROLLED, WATCHED = ("parts", "flat", "scheduled", "late"), ("monitor", "observer", "late", "adamw")
ZERO = ("adamw", "monitor", "autotuned")


def everything(ranks):
    works = {"controlled": CONTROLLED, "watched": WATCHED, "whole": ("",), "resumed": ZERO, "averaged": ("",)}
    return {work: each(ranks, globals()[work], names) for work, names in works.items()}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    results = launch(everything, 2, tmp_path_factory.mktemp("sharders"))

    def of(work, name=""):
        found = [rank[work][name] for rank in results]
        failed = [x for x in found if isinstance(x, str) and x.startswith("Traceback")]
        assert not failed, failed[0]
        return found

    return of


@pytest.mark.parametrize("name", CONTROLLED)
def test_no_controller_acts_on_parts_that_fsdp1_has_cut(results, name):
    """Every rank would decide for its own; a controller that met them at the first step has moved nothing."""
    for message in results("controlled", name):
        assert message.startswith("controller must be None with params that FullyShardedDataParallel (FSDP1)")
        assert "fully_shard (FSDP2" in message


@pytest.mark.parametrize("name", WATCHED)
def test_a_monitor_of_parts_says_so_and_changes_no_bit(results, name):
    plain = results("watched", "adamw")
    for rank, expected in zip(results("watched", name), plain, strict=True):
        assert rank["told"] == (name != "adamw")
        assert all(map(torch.equal, rank["params"], expected["params"]))


def test_what_fsdp1_leaves_whole_is_read_and_controlled_as_in_one_process(results):
    expected = whole(ALONE, "")
    for rank in results("whole"):
        assert not differences(rank, expected, rtol=1e-9)


@pytest.mark.parametrize("kind", ZERO)
def test_a_checkpoint_of_zero_starts_the_account_of_other_layers_over(results, kind):
    """Its groups are those of one rank: other ranks would fail, and that one wait for them."""
    for rank in results("resumed", kind):
        assert len(rank["warned"]) == (kind != "adamw")
        if kind == "adamw":
            continue
        assert rank["steps"] == STEPS
        assert rank["factors"] == [rank["layers"]]
        assert rank["sigma"] > 0
        if kind == "monitor":
            assert not differences(rank["params"], rank["uninterrupted"], 0.0, 0.0)
    plain, monitor = (results("resumed", kind)[0]["params"] for kind in ("adamw", "monitor"))
    assert not differences(monitor, plain, 0.0, 0.0)


def test_ranks_that_average_their_weights_decide_alike(results):
    """And the wrapper, which runs no hooks, is refused with the place of what it holds."""
    first, second = results("averaged")
    assert torch.equal(first["scales"], second["scales"])
    assert (first["scales"][-1] / first["scales"][0] - 1).abs().max() > 0.1
    for rank in (first, second):
        assert rank["found"]
        assert rank["message"].endswith("the one that it wraps is its .optim")
