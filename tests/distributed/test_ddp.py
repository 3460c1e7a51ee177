"""Two processes under DistributedDataParallel: ranks take the same decisions, bit for bit."""

import gc
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from tests.support.processes import run_processes
from thermoopt import ThermoAdamW, autotune
from thermoopt.controllers import Thermostat

pytestmark = [pytest.mark.dist, pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")]

RANKS, STEPS, TIMEOUT = 2, 30, 60


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 17), torch.nn.Tanh(), torch.nn.Linear(17, 3))


def what_decides(opt):
    """Everything that has to be the same on all ranks after a step, as one tensor."""
    rows = []
    for group in opt.param_groups:
        thermo = group["thermo"]
        rates = [float(group["lr"]), float(group["weight_decay"]), thermo["lr_scale"], thermo["wd_scale"]]
        rows += [torch.tensor(rates, dtype=torch.float64), thermo["layer_factors"]]
        rows += [p.detach().double().reshape(-1) for p in group["params"]]
    return torch.cat(rows)


def train(rank, law, shared, backend):
    """Return what decides after every step on this rank's own data, losses reported and losses acted on."""
    net = torch.nn.parallel.DistributedDataParallel(model())
    if law == "autotune":
        controller = autotune(STEPS)
    else:
        controller = Thermostat("polyak", total_steps=STEPS, k=0.1)
    names = net.module.named_parameters()
    group = dist.group.WORLD if shared else None
    flags = {"measure_every": 1, "weight_decay": 0.1, "process_group": group, "backend": backend}
    opt = ThermoAdamW(names, lr=1e-3, controller=controller, **flags)
    rng, out, losses = torch.Generator().manual_seed(10 + rank), [], []
    for _ in range(STEPS):
        x = torch.randn(16, 6, generator=rng)
        opt.zero_grad()
        loss = (net(x) - x[:, :3] * 2).square().mean()
        loss.backward()
        opt.report_loss(loss)  # of the rank's own data: not the same number on all
        opt.step()
        losses.append(loss.item())
        out.append(what_decides(opt))
    assert len(controller.log) > 2
    acted_on = [action.evidence["loss"][0] for action in controller.log if "loss" in action.evidence]
    return {"trace": torch.stack(out), "losses": losses, "acted_on": acted_on}


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
        torch.save({run: train(rank, *run) for run in runs}, f"{folder}/{rank}.pt")
        dist.barrier()
    finally:
        gc.collect()  # a model under DDP must not outlive its process group: torch 2.13 may hang at exit
        dist.destroy_process_group()


RUNS = [(law, shared, "torch") for law in ("autotune", "polyak") for shared in (False, True)]
RUNS += [("autotune", False, "auto")]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each rank recorded in each run: one start of two processes for all."""
    folder = tmp_path_factory.mktemp("ddp")
    run_processes(worker, (str(folder), RUNS), RANKS, TIMEOUT)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("run", [run for run in RUNS if run[0] == "autotune"], ids=str)
def test_ranks_hold_the_same_gradients_and_decide_alike(ranks, run):
    """Scales, layer factors, lrs and parameters after every step, with and without a process group."""
    first, second = (rank[run]["trace"] for rank in ranks)
    assert torch.equal(first, second)
    assert not torch.equal(first[10], first[20])  # and something went on


def test_losses_of_their_own_drive_ranks_apart_without_a_process_group(ranks):
    first, second = (rank[("polyak", False, "torch")]["trace"] for rank in ranks)
    assert not torch.equal(first, second)
    scale = 2  # place of lr_scale
    assert (first[5:, scale] / second[5:, scale] - 1).abs().max() > 0.01


def test_with_a_process_group_all_decide_on_the_first_ranks_reading(ranks):
    first, second = (rank[("polyak", True, "torch")] for rank in ranks)
    assert torch.equal(first["trace"], second["trace"])
    assert first["acted_on"] == second["acted_on"]
    assert set(second["acted_on"]) <= set(first["losses"])
    assert not set(second["acted_on"]) & set(second["losses"])
