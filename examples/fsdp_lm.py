"""Train an FSDP2-sharded language model without a learning rate; checkpoints fit any number of ranks.

Run it: python examples/fsdp_lm.py [--steps 100] [--seed 0] [--save 50] [--out runs/fsdp_lm] [--resume FOLDER]
"""
# on two processes or GPUs: torchrun --nproc-per-node 2 examples/fsdp_lm.py
# and on from half way, on one: python examples/fsdp_lm.py --resume runs/fsdp_lm/step_50

import argparse
import gc
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from thermoopt import ThermoAdamW, autotune
from thermoopt.demo import GPT, GPTConfig, batches, load_corpus, windows

CONFIG = GPTConfig(depth=3, width=96, heads=4, context=64)
WINDOWS = 16  # of one micro-batch, on all ranks together
MICRO_BATCHES = 2  # accumulated for one step
VALIDATION = 256  # windows


def begin() -> tuple[DeviceMesh, torch.device]:
    """Meet the other ranks that torchrun started; without torchrun be the only one."""
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    backend = "nccl" if kind == "cuda" else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if WINDOWS % dist.get_world_size():
        raise SystemExit(f"the number of ranks must divide {WINDOWS}, got {dist.get_world_size()}")
    return init_device_mesh(kind, (dist.get_world_size(),)), torch.device(kind)


def sharded_gpt(seed: int, mesh: DeviceMesh, device: torch.device) -> GPT:
    """Build the model, the same weights on all ranks, and shard it: every block, and the rest at the root."""
    torch.manual_seed(seed)
    model = GPT(CONFIG).to(device)
    policy = MixedPrecisionPolicy()
    if device.type == "cuda":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    return fully_shard(model, mesh=mesh, mp_policy=policy)


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor, device: torch.device) -> Tensor:
    """Return the mean cross-entropy of the next byte, on this rank's share of the windows."""
    rank, world = dist.get_rank(), dist.get_world_size()
    inputs, targets = (x.chunk(world)[rank].to(device) for x in (inputs, targets))
    return F.cross_entropy(model(inputs).float().flatten(0, 1), targets.flatten())


def mean_of_ranks(x: Tensor) -> float:
    """Average a number over all ranks, which must all ask."""
    x = x.detach().clone()
    dist.all_reduce(x)
    return x.item() / dist.get_world_size()


def save(model: nn.Module, optimizer: ThermoAdamW, folder: Path) -> None:
    """Write weights, moments, averages, scales and the controller; all ranks take part."""
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=str(folder))


def load(model: nn.Module, optimizer: ThermoAdamW, folder: Path) -> None:
    """Read what any number of ranks has written."""
    weights, state = get_state_dict(model, optimizer)  # where everything belongs on this rank
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=str(folder))
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)


def train_step(model: FSDPModule, optimizer: ThermoAdamW, text: Tensor, seed: int) -> tuple[Tensor, float]:
    """Take one step on accumulated, clipped gradients; return the rank's loss and the unclipped norm."""
    device = torch.device(model.head.weight.device.type)
    draws = batches(text, WINDOWS, CONFIG.context, seed)  # the same on all ranks, whatever their number
    optimizer.zero_grad()
    total = torch.zeros((), device=device)
    for micro in range(MICRO_BATCHES):
        # gradients are averaged over the ranks once, with the last micro-batch
        model.set_requires_gradient_sync(micro == MICRO_BATCHES - 1)
        loss = loss_of(model, *next(draws), device) / MICRO_BATCHES
        loss.backward()
        total += loss.detach()
    norm = clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return total, norm.full_tensor().item()


@torch.no_grad()
def validation_loss(model: nn.Module, text: Tensor, device: torch.device) -> float:
    """Return the loss on files that are not trained on; all ranks take part."""
    return mean_of_ranks(loss_of(model, *windows(text, VALIDATION, CONFIG.context), device))


def main() -> None:
    """Train, saving on the way; with ``--resume`` go on from a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and batches")
    parser.add_argument("--save", type=int, default=50, help="steps between two checkpoints")
    parser.add_argument("--out", type=Path, default=Path("runs/fsdp_lm"), help="folder for checkpoints")
    parser.add_argument("--resume", type=Path, help="checkpoint to resume from, of any number of ranks")
    args = parser.parse_args()

    mesh, device = begin()
    train(args, mesh, device)
    gc.collect()  # a sharded model must not outlive its process group: torch 2.13 may hang at exit
    dist.destroy_process_group()


def train(args: argparse.Namespace, mesh: DeviceMesh, device: torch.device) -> None:
    """Train, print, save, and say how good the model is on text that it has not seen."""
    text = load_corpus()
    model = sharded_gpt(args.seed, mesh, device)
    # named parameters after sharding: the optimizer steps and measures the shards, and adds up over the ranks
    optimizer = ThermoAdamW(
        model.named_parameters(), weight_decay=0.1, controller=autotune(total_steps=args.steps)
    )
    if args.resume is not None:
        load(model, optimizer, args.resume)

    main_rank = dist.get_rank() == 0
    if main_rank:
        print(f"{dist.get_world_size()} rank(s) on {device.type}, steps {optimizer.steps} to {args.steps}.")
        print(f"{'step':>5} {'loss':>8} {'grad norm':>10} {'sigma':>10} {'r':>7} {'lr_scale':>10}")
    while optimizer.steps < args.steps:
        seed = args.seed * 1_000_003 + optimizer.steps
        loss, norm = train_step(model, optimizer, text.train, seed)
        step = optimizer.steps
        if step % max(1, args.steps // 10) == 0:
            mean = mean_of_ranks(loss)
            reading, scale = optimizer.reading, optimizer.param_groups[0]["thermo"]["lr_scale"]
            if main_rank and reading is not None:
                total = reading.total
                numbers = f"{mean:8.3f} {norm:10.3f} {total.sigma:10.2e} {total.r:7.2f} {scale:10.2e}"
                print(f"{step:5} {numbers}", flush=True)
        if step % args.save == 0 or step == args.steps:
            save(model, optimizer, args.out / f"step_{step}")
    loss = validation_loss(model, text.valid, device)
    if main_rank:
        print(f"Validation loss {loss:.4f}. Checkpoints are in {args.out}")


if __name__ == "__main__":
    main()
