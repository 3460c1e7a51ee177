"""Two processes under DistributedDataParallel: ranks take the same decisions, bit for bit."""

import gc
import warnings
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from tests.support.processes import run_processes
from thermoopt import ThermoAdamW, ThermoScheduler, autotune
from thermoopt.account import reading
from thermoopt.controllers import Thermostat

pytestmark = [pytest.mark.dist, pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")]

RANKS, STEPS, TIMEOUT = 2, 30, 60


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 17), torch.nn.Tanh(), torch.nn.Linear(17, 3))


ALONE = {"lr_scale": 1.0, "wd_scale": 1.0, "layer_factors": torch.ones(1, dtype=torch.float64)}


def what_decides(opt):
    """Everything that has to be the same on all ranks after a step, as one tensor."""
    rows = []
    for group in opt.param_groups:
        thermo = group.get("thermo", ALONE)
        rates = [float(group["lr"]), float(group["weight_decay"]), thermo["lr_scale"], thermo["wd_scale"]]
        rows += [torch.tensor(rates, dtype=torch.float64), thermo["layer_factors"]]
        rows += [p.detach().double().reshape(-1) for p in group["params"]]
    return torch.cat(rows)


def train(rank, law, shared, backend):
    """Return what decides after every step on this rank's own data, losses reported and losses acted on."""
    net = torch.nn.parallel.DistributedDataParallel(model())
    if law != "polyak":
        controller = autotune(STEPS)
    else:
        controller = Thermostat("polyak", total_steps=STEPS, k=0.1)
    names = net.module.named_parameters()
    group = dist.group.WORLD if shared else None
    flags = {"measure_every": 1, "weight_decay": 0.1, "process_group": group, "backend": backend}
    if law == "scheduled":
        opt = torch.optim.AdamW(names, lr=1e-3, weight_decay=0.1)
        scheduler = ThermoScheduler(opt, STEPS, shape="constant", controller=controller)
    else:
        opt = ThermoAdamW(names, lr=1e-3, controller=controller, **flags)
    rng, out, losses = torch.Generator().manual_seed(10 + rank), [], []
    for step in range(STEPS):
        x = torch.randn(16, 6, generator=rng)
        opt.zero_grad()
        loss = (net(x) - x[:, :3] * 2).square().mean()
        loss.backward()
        lost = law in ("lost", "scheduled") and rank == 1 and step > 8
        own = loss.detach() + (100.0 if lost else 0.0)  # of the rank's own data
        if law == "scheduled":
            opt.step()
            scheduler.step(own)
        else:
            opt.report_loss(own)
            opt.step()
        losses.append(loss.item())
        out.append(what_decides(opt))
    acted_on = [action.evidence["loss"][0] for action in controller.log if "loss" in action.evidence]
    actions = len(controller.log)
    return {"trace": torch.stack(out), "losses": losses, "acted_on": acted_on, "actions": actions}


def told(*run):
    """A run, and what it warned of."""
    reading._tell_of_own_loss.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        out = train(*run)
    return out | {"told": [str(w.message) for w in caught if "this rank's own data" in str(w.message)]}


def worker(rank, folder, runs):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(seconds=TIMEOUT / 2),
    )
    try:
        torch.save({run: told(rank, *run) for run in runs}, f"{folder}/{rank}.pt")
        dist.barrier()
    finally:
        gc.collect()  # a model under DDP must not outlive its process group: torch 2.13 may hang at exit
        dist.destroy_process_group()


RUNS = [(law, shared, "torch") for law in ("autotune", "polyak") for shared in (False, True)]
RUNS += [("autotune", False, "auto"), ("lost", False, "torch"), ("scheduled", False, "torch")]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each rank recorded in each run: one start of two processes for all."""
    folder = tmp_path_factory.mktemp("ddp")
    run_processes(worker, (str(folder), RUNS), RANKS, TIMEOUT)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("run", [run for run in RUNS if run[0] != "polyak"], ids=str)
def test_ranks_hold_the_same_gradients_and_decide_alike(ranks, run):
    """Scales, layer factors, lrs and parameters after every step, with and without a process group."""
    first, second = (rank[run] for rank in ranks)
    assert torch.equal(first["trace"], second["trace"])
    assert first["actions"] == second["actions"] > 2  # and something went on


@pytest.mark.parametrize("law", ["polyak", "lost", "scheduled"])
def test_losses_of_their_own_do_not_drive_ranks_apart(ranks, law):
    """The default law lowers the rate where a loss is lost again, as one rank's is here."""
    first, second = (rank[(law, False, "torch")] for rank in ranks)
    assert torch.equal(first["trace"], second["trace"])
    assert not first["acted_on"]
    for rank in (first, second):
        assert len(rank["told"]) == 1
        assert "process_group=" in rank["told"][0]


def test_with_a_process_group_all_decide_on_the_first_ranks_reading(ranks):
    first, second = (rank[("polyak", True, "torch")] for rank in ranks)
    assert torch.equal(first["trace"], second["trace"])
    assert first["acted_on"] == second["acted_on"]
    assert set() != set(second["acted_on"]) <= set(first["losses"])
    assert not second["told"]
    assert not set(second["acted_on"]) & set(second["losses"])
