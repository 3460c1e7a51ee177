"""Sharded runs against runs in one process: readings, steps, and what they cost in messages.

FSDP2 on 4 ranks, HSDP, tensor parallelism, both; on CPU with gloo.
"""

import contextlib
import functools

import pytest
import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from tests.support.sharded_runs import (
    ALONE,
    account,
    all_reduces,
    batch,
    differences,
    each,
    launch,
    mesh_of,
    mlp,
    net,
    observed,
    scales,
    shard,
    thermo,
    train,
    wholes,
)
from tests.support.strides import measured
from thermoopt import ThermoAdamW, autotune
from thermoopt.adamw.plans import PlanCache
from thermoopt.kernels.native_travel import TravelPlan
from thermoopt.physics.sums import Sum

pytestmark = pytest.mark.dist

ADAMW, SGD = torch.optim.AdamW, torch.optim.SGD
F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
STEPS, STEPS_KEPT = 10, 12

WIDTH = (len(Sum) + 5) * 8
"""Bytes a layer and measured step in a message: its sums, two flags, three sums of travel, in float64."""

KEPT = {
    "native given, kept": {1: 1, 4: 3, 7: 3, 10: 3},
    "torch, kept": {1: 1, 4: 3, 7: 3, 10: 3},
    "AdamW every 2nd, kept": {2: 1, 7: 2, 10: 1},
    "autotuned torch, kept": {1: 1, 6: 5, 11: 5},
}
"""Readings that are further apart than steps measured: after which step one is due, and of how many steps the
sums are added up then."""

CASES = {
    "native": (F32, False, lambda m: thermo(m, backend="native")),
    "native given": (F32, True, lambda m: thermo(m, backend="native")),
    "amsgrad given": (F32, True, lambda m: thermo(m, backend="native", amsgrad=True)),
    "torch": (F64, False, lambda m: thermo(m, backend="torch")),
    "foreach every 3rd": (F64, False, lambda m: thermo(m, foreach=True, measure_every=3)),
    "autotuned auto": (F32, True, lambda m: thermo(m, controller=autotune(STEPS))),
    "autotuned torch": (F64, False, lambda m: thermo(m, backend="torch", controller=autotune(STEPS))),
    "bf16 given": (BF16, True, lambda m: thermo(m, backend="native")),
    "bf16 torch given": (BF16, True, lambda m: thermo(m, backend="torch")),
    "AdamW": (F64, False, lambda m: observed(m, ADAMW, weight_decay=0.1)),
    "AdamW every 3rd": (F64, False, lambda m: observed(m, ADAMW, 3, track=(), weight_decay=0.1)),
    "AdamW fused given": (F32, True, lambda m: observed(m, ADAMW, fused=True, weight_decay=0.1)),
    "SGD": (F64, False, lambda m: observed(m, SGD, track=(), momentum=0.9)),
    "SGD every 3rd": (F64, False, lambda m: observed(m, SGD, 3, momentum=0.9)),
    "SGD bf16 given": (BF16, True, lambda m: observed(m, SGD)),
    "native given, kept": (F32, True, lambda m: thermo(m, backend="native", ema_steps=15)),
    "torch, kept": (F64, False, lambda m: thermo(m, backend="torch", ema_steps=15)),
    "AdamW every 2nd, kept": (F64, False, lambda m: observed(m, ADAMW, 2, track=(), ema_steps=15)),
    "autotuned torch, kept": (F64, False, lambda m: thermo(m, backend="torch", controller=autotune(1000))),
}
MESHES = {"4": (4,), "2x2": (2, 2)}  # on two ranks: test_distributed_runs.py
ONE_MESH = {
    "amsgrad given",
    "autotuned auto",
    "bf16 given",
    "bf16 torch given",
    "AdamW",
    "SGD every 3rd",
    "SGD bf16 given",
}
"""Cases on 4 ranks alone: replicas are to them what they are to the others of their kind."""
MESHED = [(name, mesh) for mesh in MESHES for name in CASES if mesh == "4" or name not in ONE_MESH]

TOLERANCE = {F64: 1e-9, F32: 1e-3, BF16: 1e-2}
"""Of a number in a reading, relative. Gradients are added up in another order over ranks, which float64 shows
at 1e-13 and float32 at 1e-5 and, where an average nearly cancels, at 1e-4 (measured)."""

GIVEN = 2e-6
"""The same where gradients are the very same: the sums' own tolerance (kernels/native.py)."""


# ------------------------------------------------------------------ what ranks do


@contextlib.contextmanager
def kernel_takes():
    """List for each step how many tensors a kernel took, how many were DTensors, fresh, and left over."""
    seen, true, true_whole = [], PlanCache.run, PlanCache.whole

    def run(self, optimizer, rates, tensors, measure, half=None):
        out = true(self, optimizer, rates, tensors, measure, half)
        taken = sum(len(batch.layer) for batch, _ in out)
        held = [
            x for c in tensors.columns.values() for x in (*c.params, *c.grads, *c.exp_avgs, *c.exp_avg_sqs)
        ]
        foreign = sum(isinstance(x, DTensor) for x in held)
        seen.append((taken, foreign, len(tensors.fresh), len(tensors.rest)))
        return out

    def whole(self, optimizer, tensors, ledger):
        out = true_whole(self, optimizer, tensors, ledger)
        if out is not None:
            seen.append((len(out[0].layer), 0, 0, 0))
        return out

    PlanCache.run, PlanCache.whole = run, whole
    try:
        yield seen
    finally:
        PlanCache.run, PlanCache.whole = true, true_whole


@contextlib.contextmanager
def kernel_sums_forces():
    """List, for each step of a bucket whose forces the kernel was given, whether it could read them."""
    seen, true = [], TravelPlan.push

    def push(self, *args, **kwargs):
        seen.append(true(self, *args, **kwargs))
        return seen[-1]

    TravelPlan.push = push
    try:
        yield seen
    finally:
        TravelPlan.push = true


def case(ranks, name, shape):
    """One of CASES, on a mesh of that shape or alone."""
    dtype, given, make = CASES[name]
    steps = STEPS_KEPT if name in KEPT else STEPS
    model = net(dtype) if shape is None else shard(net(dtype), shape)
    optimizer, source = make(model)
    controlled = isinstance(optimizer, ThermoAdamW) and optimizer.controller is not None
    rows = []
    with kernel_takes() as taken, kernel_sums_forces() as forces:
        calls = train(
            ranks,
            model,
            optimizer,
            range(steps),
            given=given,
            after=lambda _: rows.append(scales(optimizer)) if controlled else None,
        )
    if name in KEPT:
        assert source.reading.step == (max(KEPT[name]) if ranks.world > 1 else steps)
        source.state_dict()  # adds up what was measured since the last reading
    out = {
        "reading": account(source),
        "params": wholes(model),
        "calls": calls,
        "taken": taken,
        "forces": forces,
    }
    return {**out, "scales": torch.stack(rows) if rows else None}


def cases(ranks, shape):
    return each(ranks, case, [name for name, mesh in MESHED if MESHES[mesh] == shape], shape)


# ------------------------------------------------------------------ results


def by_mesh(work, meshes, folders, name):
    """A function of case and mesh that gives each rank's results; a mesh is run when first asked for."""

    @functools.cache
    def on(mesh):
        shape = meshes[mesh]
        return launch(work, torch.tensor(shape).prod().item(), folders.mktemp(name), shape)

    def of(key, mesh):
        found = [rank[key] for rank in on(mesh)]
        failed = [x for x in found if isinstance(x, str)]
        assert not failed, failed[0]
        return found

    return of


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return by_mesh(cases, MESHES, tmp_path_factory, "sharded")


@functools.cache
def alone(name):
    return case(ALONE, name, None)


every_mesh = pytest.mark.parametrize("mesh", MESHES)
every_case = pytest.mark.parametrize(("name", "mesh"), MESHED)


@every_case
def test_readings_are_those_of_one_process_on_every_rank(results, name, mesh):
    """All quantities of each layer, each group and in total, the counters, and sigma of the whole history."""
    expected = alone(name)["reading"]
    assert expected["step"] == (STEPS_KEPT if name in KEPT else STEPS)
    dtype, given, _ = CASES[name]
    exact = given and (dtype is F32 or name.startswith("bf16"))
    tolerance = GIVEN if exact else TOLERANCE[dtype]
    for rank in results(name, mesh):
        assert not differences(rank["reading"], expected, tolerance, atol=tolerance * 1e-3)


@every_case
def test_steps_are_those_of_one_process(results, name, mesh):
    dtype, _, _ = CASES[name]
    atol = {F64: 1e-12, F32: 2e-5, BF16: 4e-3}[dtype]
    for rank in results(name, mesh):
        assert not differences(rank["params"], alone(name)["params"], rtol=0.0, atol=atol)


@pytest.mark.parametrize(("name", "mesh"), [key for key in MESHED if key[0].startswith("autotuned")])
def test_autotune_sets_the_same_scales_on_every_rank(results, name, mesh):
    first, *others = (rank["scales"] for rank in results(name, mesh))
    assert len(others) > 0
    assert all(torch.equal(first, other) for other in others)
    assert (first[-1] / first[0] - 1).abs().max() > 0.1  # it has done something
    torch.testing.assert_close(first, alone(name)["scales"], rtol=1e-6, atol=0)


@every_mesh
def test_the_kernel_takes_local_shards_all_of_them(results, mesh):
    """From the second step on it holds all ten layers, empty shards too, and torch none."""
    for rank in results("native", mesh):
        assert rank["taken"] == [(0, 0, 10, 0)] + [(10, 0, 0, 0)] * (STEPS - 1)


def test_the_kernel_sums_the_forces_on_local_shards(results):
    """Operations on DTensors took 3 times as long as the step at 5 M parameters."""
    for rank in results("autotuned auto", "4"):
        assert len(rank["forces"]) >= STEPS - 1
        assert all(rank["forces"])


@every_mesh
def test_the_kernel_steps_as_torch_on_the_same_sharding(results, mesh):
    for native, fused in zip(results("native given", mesh), results("AdamW fused given", mesh), strict=True):
        assert not differences(native["params"], fused["params"], rtol=1e-6, atol=1e-8)


UNTRACKED = {"native": 1, "torch": 1, "foreach every 3rd": 3, "AdamW every 3rd": 3, "SGD": 1}


@every_mesh
@pytest.mark.parametrize(("name", "every"), UNTRACKED.items())
def test_a_measured_step_sends_one_message_and_others_none(results, name, every, mesh):
    shards = MESHES[mesh][-1]  # under HSDP replicas hold the same sums
    for rank in results(name, mesh):
        for step, calls in enumerate(rank["calls"], 1):
            assert calls == ([(shards, 10 * WIDTH)] if step in measured(every, step) else [])


def at_start(shards):
    """Messages of a controller's start: every layer's size, and five sums of its rows."""
    return [(shards, 10 * 8), (shards, 10 * 5 * 8)]


@every_mesh
@pytest.mark.parametrize("name", KEPT)
def test_a_reading_sends_one_message_for_all_steps_since_the_last(results, name, mesh):
    shards, counts = MESHES[mesh][-1], KEPT[name]
    for rank in results(name, mesh):
        for step, calls in enumerate(rank["calls"], 1):
            start = at_start(shards) if name.startswith("autotuned") and step == 1 else []
            assert calls == start + ([(shards, 10 * WIDTH * counts[step])] if step in counts else [])


@every_mesh
def test_the_controllers_sums_go_in_the_same_message(results, mesh):
    """In the first step two more tell every rank the size of the layers and of their rows."""
    shards = MESHES[mesh][-1]
    for rank in results("autotuned torch", mesh):
        first, *others = rank["calls"]
        assert first == [*at_start(shards), (shards, 10 * WIDTH)]
        assert others == [[(shards, 10 * WIDTH)]] * (STEPS - 1)


def test_tracking_sends_a_second_message(results):
    for rank in results("SGD every 3rd", "4"):
        for step, calls in enumerate(rank["calls"], 1):
            assert calls == ([(4, 10 * 6 * 8), (4, 10 * WIDTH)] if step in measured(3, step) else [])


# ------------------------------------------------------------------ tensor parallelism

SP_PLAN = {
    "norm": SequenceParallel(),
    "up": ColwiseParallel(input_layouts=Shard(1)),
    "down": RowwiseParallel(output_layouts=Replicate()),
}
TP_PLAN = {"up": ColwiseParallel(), "down": RowwiseParallel()}

PARALLEL = {
    "native": (F32, lambda m: thermo(m, backend="native")),
    "torch": (F64, lambda m: thermo(m, backend="torch")),
    "autotuned": (F64, lambda m: thermo(m, backend="torch", controller=autotune(STEPS))),
    "AdamW": (F64, lambda m: observed(m, ADAMW, weight_decay=0.1)),
    "SGD": (F64, lambda m: observed(m, SGD)),
}
NORMS = ("plain", "replicated", "sequence")
"""How the norm before the parallel layers is held: as plain tensors, as DTensors, as DTensors whose gradients
come from a part of the sequence on each rank."""


def parallelize(model, norm, mesh):
    if norm == "sequence":
        return parallelize_module(model, mesh, SP_PLAN)
    if norm == "replicated":
        distribute_module(
            model.norm,
            mesh,
            input_fn=lambda _, inputs, mesh: DTensor.from_local(inputs[0], mesh, [Replicate()]),
            output_fn=lambda _, out, mesh: out.to_local(),
        )
    return parallelize_module(model, mesh, TP_PLAN)


def parallel_case(ranks, key, shape):
    kind, norm = key
    dtype, make = PARALLEL[kind]
    model, row, part = mlp(dtype), 0, 0
    dims = ("dp", "tp")[-len(shape) :] if shape else ()
    if shape:
        mesh = mesh_of(shape, ("dp", "tp"))
        parallelize(model, norm, mesh["tp"])
        part = mesh["tp"].get_local_rank()
        if "dp" in dims:
            fully_shard(model, mesh=mesh["dp"])
            row = mesh["dp"].get_local_rank()
    optimizer, source = make(model)
    calls = []
    for step in range(STEPS):
        x = batch(step, dtype).view(8, 2, 6)
        if "dp" in dims:
            x = x.chunk(2)[row]
        optimizer.zero_grad()
        out = model(x.chunk(2, dim=1)[part] if shape and norm == "sequence" else x)
        (out - 2 * x[..., :4]).square().mean().backward()
        with all_reduces() as started:
            optimizer.step()
        calls.append(started)
    return {"reading": account(source), "params": wholes(model), "calls": calls}


class Tokens(torch.nn.Module):
    """An embedding whose rows are split over ranks: its gradient comes whole to each of them."""

    def __init__(self, dtype):
        super().__init__()
        torch.manual_seed(0)
        self.tokens = torch.nn.Embedding(10, 6, dtype=dtype)
        self.out = torch.nn.Linear(6, 3, dtype=dtype)

    def forward(self, x):
        return self.out(self.tokens(x))


EMBEDDED = {
    "native": (F32, lambda m: thermo(m, backend="native")),
    "torch": (F64, lambda m: thermo(m, backend="torch")),
    "autotuned": (F64, lambda m: thermo(m, backend="torch", controller=autotune(STEPS))),
    "SGD": (F64, lambda m: observed(m, SGD)),
}


def embedded_case(ranks, kind):
    dtype, make = EMBEDDED[kind]
    model = Tokens(dtype)
    if ranks.world > 1:
        plan = {
            "tokens": RowwiseParallel(input_layouts=Replicate()),
            "out": ColwiseParallel(output_layouts=Replicate()),
        }
        parallelize_module(model, mesh_of((2,), ("dp", "tp")), plan)
    optimizer, source = make(model)
    for step in range(STEPS):
        rng = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        (model(torch.randint(10, (8,), generator=rng)) - 1).square().mean().backward()
        with kernel_takes() as taken:
            optimizer.step()
    return {"reading": account(source), "params": wholes(model), "taken": taken}


def embedded_cases(ranks):
    return each(ranks, embedded_case, EMBEDDED)


TP_MESHES = {"tp": (2,), "fsdp x tp": (2, 2)}
KEYS = {
    "tp": [(kind, norm) for kind in PARALLEL for norm in NORMS],
    "fsdp x tp": [  # each optimizer and each norm once, one optimizer with each norm
        *(("torch", norm) for norm in NORMS),
        ("native", "sequence"),
        ("autotuned", "replicated"),
        ("AdamW", "sequence"),
        ("SGD", "plain"),
    ],
}


def parallel_cases(ranks, shape):
    mesh = next(name for name, other in TP_MESHES.items() if other == shape)
    return each(ranks, parallel_case, KEYS[mesh], shape)


@pytest.fixture(scope="module")
def parallel(tmp_path_factory):
    return by_mesh(parallel_cases, TP_MESHES, tmp_path_factory, "parallel")


@functools.cache
def alone_parallel(kind):
    return parallel_case(ALONE, (kind, "plain"), None)


@pytest.mark.parametrize(("kind", "norm", "mesh"), [(*key, mesh) for mesh in KEYS for key in KEYS[mesh]])
def test_tensor_parallel_layers_count_once(parallel, kind, norm, mesh):
    """Sums of split layers are added up, those of a norm or bias that all ranks hold are not."""
    dtype, _ = PARALLEL[kind]
    expected, tolerance = alone_parallel(kind), TOLERANCE[dtype]
    for rank in parallel((kind, norm), mesh):
        assert not differences(rank["reading"], expected["reading"], tolerance, atol=tolerance * 1e-3)
        atol = 1e-12 if dtype is F64 else 2e-5
        assert not differences(rank["params"], expected["params"], rtol=0.0, atol=atol)


@pytest.mark.parametrize("norm", NORMS)
def test_one_message_for_each_dimension_that_shards(parallel, norm):
    """Six layers, of which the tensor-parallel group shares the three that are split."""
    for rank in parallel(("torch", norm), "tp"):
        assert rank["calls"] == [[(2, 3 * WIDTH)]] * STEPS
    for rank in parallel(("torch", norm), "fsdp x tp"):
        assert [sorted(calls) for calls in rank["calls"]] == [[(2, 3 * WIDTH), (2, 6 * WIDTH)]] * STEPS


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    return launch(embedded_cases, 2, tmp_path_factory.mktemp("embedded"))


@pytest.mark.parametrize("kind", EMBEDDED)
def test_a_gradient_that_is_laid_out_otherwise_than_its_parameter(embedded, kind):
    """Tensor parallelism splits an embedding by rows and hands every rank the gradient of all."""
    dtype, _ = EMBEDDED[kind]
    expected, tolerance = embedded_case(ALONE, kind), TOLERANCE[dtype]
    for rank in embedded:
        assert isinstance(rank[kind], dict), rank[kind]
        assert not differences(rank[kind], expected, tolerance, atol=tolerance * 1e-2)
