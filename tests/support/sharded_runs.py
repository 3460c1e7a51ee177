"""What the ranks of sharded runs do, and how they are started: by the fork server."""

import contextlib
import functools
import gc
import time
import traceback
from collections import OrderedDict
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from tests.support.processes import fork_server
from thermoopt import Observer, ThermoAdamW

PATIENCE = 30
"""Seconds a rank waits for another in a collective."""

LIMIT = 120
"""Seconds after which processes are killed."""


# ------------------------------------------------------------------ processes


@dataclass(frozen=True)
class Ranks:
    """Which of how many a process is."""

    rank: int
    world: int

    def part(self, x):
        """This rank's rows of a batch."""
        return x.chunk(self.world)[self.rank]


ALONE = Ranks(0, 1)


def launch(run, world, folder, *args, patience=PATIENCE, lost=()):
    """Let ``world`` processes run ``run(ranks, *args)``; return what each returned.

    Ranks in ``lost`` are expected to die; None stands for what they returned.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    context = fork_server()
    processes = [
        context.Process(target=_rank, args=(run, Ranks(rank, world), str(folder), patience, args))
        for rank in range(world)
    ]
    end = time.monotonic() + LIMIT
    for process in processes:
        process.start()
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    late = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for process in processes:
        process.kill()
        process.join()
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.close()
    errors = "\n".join(path.read_text() for path in sorted(folder.glob("*.txt")))
    assert not late, f"ranks {late} did not end within {LIMIT} s\n{errors}"
    died = [rank for rank, code in enumerate(codes) if code and rank not in lost]
    assert not died, f"ranks {died} of {run.__name__} failed (exit codes {codes})\n{errors}"
    files = [folder / f"{rank}.pt" for rank in range(world)]
    return [torch.load(file, weights_only=True) if file.exists() else None for file in files]


def _rank(run, ranks, folder, patience, args):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=ranks.rank,
        world_size=ranks.world,
        timeout=timedelta(seconds=patience),
    )
    try:
        torch.save(run(ranks, *args), f"{folder}/{ranks.rank}.pt")
        with contextlib.suppress(RuntimeError):  # of a rank that was to be lost
            dist.barrier()
    except BaseException:
        Path(f"{folder}/{ranks.rank}.txt").write_text(f"rank {ranks.rank}:\n{traceback.format_exc()}")
        raise SystemExit(1) from None
    finally:
        gc.collect()  # a sharded model must not outlive its group: torch 2.13 may hang or abort at exit
        dist.destroy_process_group()


def each(ranks, run, names, *args):
    """Run one scenario after another; of one that raises return its traceback instead of its result."""
    out = {}
    for name in names:
        try:
            out[name] = run(ranks, name, *args)
        except (Exception, CheckpointException):
            out[name] = traceback.format_exc()
        dist.barrier()
    return out


# ------------------------------------------------------------------ models and batches


def net(dtype=torch.float64):
    """Layers of 17, 3, 2 and 1 rows: on 4 ranks uneven shards, and empty ones."""
    torch.manual_seed(0)
    layers = (
        torch.nn.Linear(6, 17),
        torch.nn.Tanh(),
        torch.nn.Linear(17, 3),
        torch.nn.LayerNorm(3),
        torch.nn.Linear(3, 2),
        torch.nn.Linear(2, 1),
    )
    return torch.nn.Sequential(*layers).to(dtype)


@functools.cache
def mesh_of(shape, dims):
    """A mesh of all ranks, one object in a process: each new one has process groups of its own."""
    return init_device_mesh("cpu", shape, mesh_dim_names=dims[-len(shape) :])


def shard(model, shape):
    """FSDP2 on a mesh of that shape: one dimension shards, two are HSDP."""
    mesh = mesh_of(shape, ("replicate", "shard"))
    fully_shard(model[0], mesh=mesh)
    return fully_shard(model, mesh=mesh)


def mlp(dtype=torch.float64):
    """A norm before two layers for tensor parallelism."""
    torch.manual_seed(0)
    layers = OrderedDict(
        norm=torch.nn.LayerNorm(6),
        up=torch.nn.Linear(6, 10),
        act=torch.nn.Tanh(),
        down=torch.nn.Linear(10, 4),
    )
    model = torch.nn.Sequential(layers).to(dtype)
    with torch.no_grad():
        model.norm.weight.uniform_(0.5, 1.5)
    return model


def batch(step, dtype=torch.float64):
    return torch.randn(16, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64).to(dtype)


def error(model, x):
    out = model(x)
    return (out - 2 * x[..., : out.shape[-1]]).square().mean()


def put(full, like):
    """Lay a tensor out over the ranks as another one is."""
    if not isinstance(like, DTensor):
        return full.clone()
    return distribute_tensor(full, like.device_mesh, like.placements)


def give_gradients(params, step):
    """Gradients drawn for whole layers, so that every layout of ranks holds the very same."""
    rng = torch.Generator().manual_seed(1000 + step)
    for i, p in enumerate(params):
        g = 0.3 * (i + 1) + torch.randn(p.shape, generator=rng, dtype=torch.float64)
        p.grad = put(g.to(p.dtype), p)


def whole(p):
    p = p.detach()
    return (p.full_tensor() if isinstance(p, DTensor) else p).clone()


def wholes(model):
    return {name: whole(p) for name, p in model.named_parameters()}


def train(ranks, model, optimizer, steps, *, given=False, after=lambda step: None):
    """Take steps on this rank's part of each batch, or on gradients that are given.

    Returns:
        The all-reduces that each step of the optimizer has started.
    """
    dtype, calls = next(model.parameters()).dtype, []
    for step in steps:
        optimizer.zero_grad()
        if given:
            give_gradients(list(model.parameters()), step)
        else:
            error(model, ranks.part(batch(step, dtype))).backward()
        with all_reduces() as started:
            optimizer.step()
        calls.append(started)
        after(step)
    return calls


# ------------------------------------------------------------------ what is compared


def account(source):
    """A reading as plain numbers."""
    reading = source.reading
    return {
        "step": reading.step,
        "steps": source.steps,
        "skipped": dict(reading.skipped),
        "layers": {name: asdict(layer) for name, layer in reading.layers.items()},
        "total": asdict(reading.total),
        "groups": [asdict(group) for group in reading.groups],
        "sigma": torch.from_numpy(source.history.total("sigma").copy()),
    }


def scales(optimizer):
    """What a controller has set, as one row."""
    thermos = [group["thermo"] for group in optimizer.param_groups]
    rows = [torch.tensor([t["lr_scale"], t["wd_scale"]], dtype=torch.float64) for t in thermos]
    return torch.cat([*rows, *(t["layer_factors"] for t in thermos)])


def differences(got, expected, rtol, atol=1e-12, path=""):
    """List where two accounts differ by more than a tolerance; NaN equals NaN."""
    if isinstance(expected, dict):
        if not isinstance(got, dict) or got.keys() != expected.keys():
            return [f"{path}: {got!r:.200} is not {expected!r:.200}"]
        return [d for k in expected for d in differences(got[k], expected[k], rtol, atol, f"{path}/{k}")]
    if isinstance(expected, list):
        if len(got) != len(expected):
            return [f"{path}: {len(got)} items, not {len(expected)}"]
        return [d for i, x in enumerate(expected) for d in differences(got[i], x, rtol, atol, f"{path}/{i}")]
    if isinstance(expected, str) or expected is None:
        return [] if got == expected else [f"{path}: {got!r} is not {expected!r}"]
    a, b = (torch.as_tensor(x).double() for x in (got, expected))
    if a.shape != b.shape or not torch.allclose(a, b, rtol=rtol, atol=atol, equal_nan=True):
        return [f"{path}: {got} is not {expected}"]
    return []


@contextlib.contextmanager
def all_reduces():
    """List the all-reduces that are started within: (ranks, bytes)."""
    calls, true = [], dist.all_reduce

    def counted(tensor, *args, **kwargs):
        calls.append((dist.get_world_size(kwargs.get("group")), tensor.numel() * tensor.element_size()))
        return true(tensor, *args, **kwargs)

    dist.all_reduce = counted
    try:
        yield calls
    finally:
        dist.all_reduce = true


# ------------------------------------------------------------------ optimizers


def thermo(model, **kwargs):
    """A ThermoAdamW, which is its own account."""
    flags = {"lr": 1e-2, "weight_decay": 0.1, "measure_every": 1, "ema_steps": 5, **kwargs}
    optimizer = ThermoAdamW(model.named_parameters(), **flags)
    return optimizer, optimizer


def observed(model, kind, log_every=1, track=("rho", "distance"), ema_steps=5, **kwargs):
    """An optimizer of torch's and its observer."""
    optimizer = kind(model.named_parameters(), lr=1e-2, **kwargs)
    return optimizer, Observer(model, optimizer, log_every=log_every, ema_steps=ema_steps, track=track)
