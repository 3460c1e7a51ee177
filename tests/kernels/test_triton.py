"""The Triton kernels against the float64 reference, on a CUDA device or under Triton's interpreter.

The interpreter must be chosen before triton is imported, so one test runs this file again in a process of its
own with TRITON_INTERPRET=1; there, and where a CUDA device is, the others run.
"""

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.support.triton_world import (
    BLOCK,
    DEVICE,
    EDGES,
    FLOAT32,
    HYPER,
    INTERPRETED,
    STORED,
    check,
    clone,
    close,
    everything,
    needs_kernels,
    needs_triton,
    plan,
    world,
)
from thermoopt.kernels import triton as kernels
from thermoopt.kernels import triton_kernels as device_code

NAMES = ("param", "grad", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")


@pytest.mark.skipif(INTERPRETED, reason="this is the process with the interpreter")
@needs_triton
def test_under_the_interpreter():
    triton = pytest.importorskip("triton")
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 3):
        pytest.skip("the interpreter of Triton 3.2, that of torch 2.6, cannot invert a mask (get_int1_ty)")
    files = [
        str(Path(__file__).with_name(name))
        for name in (
            "test_triton.py",
            "test_triton_account.py",
            "test_triton_layout.py",
            "test_triton_optimizer.py",
            "test_triton_travel.py",
        )
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def compiled(kernel, pointers, constants, **options):
    """Compile a kernel for compute capability 8.0, no GPU needed; return its code."""
    import inspect

    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if "constexprs" not in inspect.signature(ASTSource).parameters:
        pytest.skip("this triton names constants differently")
    names = kernel.arg_names
    values = {**constants, "DTYPE": getattr(tl, constants.get("DTYPE", "float32"))}
    source = ASTSource(
        fn=kernel,
        signature={name: "constexpr" if name in constants else pointers[name] for name in names},
        constexprs={(names.index(name),): value for name, value in values.items() if name in names},
    )
    options = {"enable_fp_fusion": False, **options}
    return triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options).asm["ptx"]


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@needs_triton
@pytest.mark.parametrize(("dtype", "kind"), [("float32", "fp32"), ("bfloat16", "bf16")])
def test_the_kernels_of_travel_compile(tmp_path, monkeypatch, dtype, kind):
    from thermoopt.kernels import triton_travel as host
    from thermoopt.kernels import triton_travel_kernels as code

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    pointers = {"addresses": "*i64", "geometry": "*i64", "chunk_tensor": "*i32", "chunk_index": "*i32"}
    pointers |= {"rates": "*fp64", "weights": "*fp64", "impulse": "*fp32", "partials": "*fp64", "n": "i32"}
    pointers |= {"n_chunks": "i32", "done": "*fp64", "first_chunk": "*i64", "last_chunk": "*i64"}
    pointers |= {
        "start": f"*{kind}",
        "base": "*fp32",
        "grad_scale": "*fp32",
        "found_inf": "*fp32",
        "out": "*fp64",
    }
    block = {"BLOCK": host.BLOCK, "DTYPE": dtype}
    none = dict.fromkeys(("base", "grad_scale", "found_inf"))
    reduction = {"BLOCK": host.REDUCE_BLOCK}
    for kernel, constants in (
        (code.force_kernel, {**block, **none, "base_stride": 0}),
        (code.force_kernel, {**block, "base_stride": 0}),
        (code.distance_kernel, block),
        (code.distance_kernel, {**block, "impulse": None}),
        (code.work_kernel, {**reduction, "found_inf": None}),
        (code.work_kernel, reduction),
        (device_code.reduce_kernel, {**reduction, "settings": None, "flags": None, "COLUMNS": 2}),
    ):
        assert "ld.global" in compiled(kernel, pointers, constants)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@needs_triton
def test_compiles_with_wide_loads(tmp_path, monkeypatch):
    """The main kernel compiles for compute capability 8.0, no GPU needed, and moves 16 bytes at a time."""
    pointers = {"settings": "*fp64", "chunk_tensor": "*i32", "chunk_index": "*i32", "partials": "*fp32"}
    pointers |= {"addresses": "*i64", "numels": "*i64", "n": "i32", "first": "i32", "n_chunks": "i32"}
    constants = {"grad_scale": None, "DTYPE": "float32", "AMSGRAD": False, "MEASURE": True, "ALIGNED": True}
    constants |= {"BLOCK": kernels.BLOCK, "CHUNK": kernels.BLOCK * 8, "DRY": False}
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    ptx = compiled(device_code.adamw_kernel, pointers, constants, num_warps=kernels.NUM_WARPS)
    # parameter, gradient, m and v in; parameter, m and v out
    assert ptx.count("ld.global.v4.b32") == 4
    assert ptx.count("st.global.v4.b32") == 3


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@needs_triton
@pytest.mark.parametrize(("dtype", "most"), [("float32", 88), ("bfloat16", 80)])
def test_the_sums_leave_room_for_many_threads(tmp_path, monkeypatch, dtype, most):
    """Registers a thread decide how many loads are under way: one a sum, not four as before (118)."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    pointers = {"settings": "*fp64", "chunk_tensor": "*i32", "chunk_index": "*i32", "partials": "*fp32"}
    pointers |= {"addresses": "*i64", "numels": "*i64", "n": "i32", "first": "i32", "n_chunks": "i32"}
    constants = {"grad_scale": None, "DTYPE": dtype, "AMSGRAD": False, "MEASURE": True, "ALIGNED": True}
    constants |= {"BLOCK": kernels.BLOCK, "CHUNK": kernels.BLOCK * 8, "DRY": False}
    code = compiled(device_code.adamw_kernel, pointers, constants, num_warps=kernels.NUM_WARPS)
    (tmp_path / "kernel.ptx").write_text(code)
    command = [ptxas(), "-v", "--gpu-name=sm_80", str(tmp_path / "kernel.ptx"), "-o", str(tmp_path / "out")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert int(re.search(r"Used (\d+) registers", said).group(1)) <= most
    assert "0 bytes spill stores, 0 bytes spill loads" in said
    # the sums of all threads are added at once, and nothing goes through shared memory before
    assert code.count("bar.sync") <= 4
    assert code.index("bar.sync") > code.rindex("st.global.v")
    assert "f64" not in code[code.index("ld.global.v") :].partition(".section")[0]
    assert ("cvt.rn.bf16" in code) == (dtype == "bfloat16")  # to the nearest; tests.support rounds so too


def ptxas():
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas")


@needs_kernels
@pytest.mark.parametrize(("amsgrad", "maximize"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("dtype", STORED)
def test_reference(dtype, amsgrad, maximize):
    """Block edges, every tensor with its own rate, decay (one without) and step count; two steps."""
    w = world(EDGES, dtype, amsgrad)
    n = len(EDGES)
    hyper = {**HYPER, "maximize": maximize}
    hyper["lr"] = [1e-3 * (1 + i) for i in range(n)]
    hyper["weight_decay"] = [0.05 * (n - 1 - i) for i in range(n)]
    stepper = plan(w)
    for _ in range(2):
        before = clone(w)
        check(w, before, stepper.step(w.grads, **hyper), **hyper)


@needs_kernels
def test_many_tiny_tensors(monkeypatch):
    """Three programs write the settings, the last of them those of a few tensors."""
    monkeypatch.setattr(kernels, "TENSORS_PER_PROGRAM", 16)
    w = world([1 + 7 * i % 64 for i in range(36)])
    before = clone(w)
    check(w, before, plan(w).step(w.grads, **HYPER), **HYPER)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_fused(dtype):
    """Three steps beside torch's fused AdamW from a fresh state."""
    sizes = [1, BLOCK + 1, 3 * BLOCK]
    w = world(sizes, dtype, step=0)
    for x in (*w.exp_avgs, *w.exp_avg_sqs):
        x.zero_()
    theirs = [torch.nn.Parameter(p.cpu().clone()) for p in w.params]
    lr, decay = HYPER["lr"], HYPER["weight_decay"]
    torch_adamw = torch.optim.AdamW(theirs, lr=lr, weight_decay=decay, fused=True)
    stepper = plan(w)
    rng = torch.Generator().manual_seed(1)
    count = 3
    for _ in range(count):
        for p, g in zip(theirs, w.grads, strict=True):
            p.grad = torch.randn(p.shape, generator=rng).to(dtype)
            g.copy_(p.grad)
        torch_adamw.step()
        stepper.step(w.grads, **HYPER, measure=False)
    # a step may round the result apart, and its update by what eight roundings of |U| < 4 give; in bfloat16
    # a moment rounded apart by one unit moves the next updates too
    apart = 8 * FLOAT32 if dtype == torch.float32 else 8 * STORED[dtype]
    for p, q in zip(w.params, theirs, strict=True):
        close(p, q.detach(), count * 2 * STORED[dtype], count * apart * lr * 4)


@needs_kernels
def test_grad_scale():
    w = world([BLOCK + 1, 5])
    before = clone(w)
    for g in w.grads:
        g.mul_(1024)
    sums = plan(w).step(w.grads, **HYPER, grad_scale=torch.tensor([1024.0], device=DEVICE))
    check(w, before, sums, **HYPER)
    for g, unscaled in zip(w.grads, before.grads, strict=True):
        assert torch.equal(g, unscaled)


@needs_kernels
def test_found_inf():
    w = world([BLOCK + 1, 5])
    w.grads[0][3] = torch.inf
    before = everything(w)
    stepper = plan(w)
    scale, found = torch.tensor(1024.0, device=DEVICE), torch.tensor(1.0, device=DEVICE)
    sums = stepper.step(w.grads, **HYPER, grad_scale=scale, found_inf=found)
    assert not sums.any()
    assert all(torch.equal(x, y) for x, y in zip(everything(w), before, strict=True))
    # the same plan moves again once the flag is down
    w.grads[0][3] = 0.0
    start = clone(w)
    found.zero_()
    check(w, start, stepper.step(w.grads, **HYPER, found_inf=found), **HYPER)


@needs_kernels
def test_same_bits_again_and_unmeasured():
    first = world([BLOCK - 1, 3 * BLOCK + 7])
    again, unmeasured = clone(first), clone(first)
    sums = plan(first).step(first.grads, **HYPER)
    assert torch.equal(sums, plan(again).step(again.grads, **HYPER))
    assert plan(unmeasured).step(unmeasured.grads, **HYPER, measure=False) is None
    for x, y, z in zip(everything(first), everything(again), everything(unmeasured), strict=True):
        assert torch.equal(x, y)
        assert torch.equal(x, z)


@needs_kernels
def test_settings_on_the_device():
    """Tensors changed in place between steps are read by the same plan."""
    w = world([BLOCK, 7, 1])
    lr = torch.tensor(1e-2, device=DEVICE, dtype=torch.float64)
    decay = torch.zeros(3, device=DEVICE, dtype=torch.float64)
    beta1 = torch.tensor(0.9, dtype=torch.float64)
    stepper = plan(w)
    for k in range(3):
        before = clone(w)
        hyper = {**HYPER, "lr": 1e-2 / 4**k, "weight_decay": [0.1 * k, 0.0, 0.2], "beta1": 0.9 - 0.3 * k}
        lr.fill_(hyper["lr"])
        decay.copy_(torch.tensor(hyper["weight_decay"]))
        beta1.fill_(hyper["beta1"])
        given = {**hyper, "lr": lr, "weight_decay": decay, "beta1": beta1}
        check(w, before, stepper.step(w.grads, **given), **{**hyper, "weight_decay": decay.tolist()})


@needs_kernels
def test_settings_change_between_steps():
    """Numbers too, in kind and value; a beta of 0 is allowed."""
    w = world([BLOCK, 7])
    stepper = plan(w)
    for change in ({}, {"lr": 1e-3}, {"lr": [1e-3, 2e-3]}, {"beta1": 0.0, "eps": 1e-3}):
        before, hyper = clone(w), {**HYPER, **change}
        check(w, before, stepper.step(w.grads, **hyper), **hyper)


@needs_kernels
def test_one_plan_of_many_kinds():
    """Dtypes, amsgrad and maximize may differ between tensors; a view off 16 bytes is handled."""
    kinds = [(torch.bfloat16, False), (torch.float32, True), (torch.float16, False), (torch.float32, False)]
    worlds = [world([9, BLOCK + 3], dtype, amsgrad, seed=i) for i, (dtype, amsgrad) in enumerate(kinds)]
    worlds[3].params = [torch.cat([p[:1], p])[1:] for p in worlds[3].params]
    # the tensors of one world are not neighbours in the plan
    w = SimpleNamespace(**{k: [getattr(x, k)[j] for j in range(2) for x in worlds] for k in vars(worlds[0])})
    flips = [False, True, False, True] * 2
    before = [clone(x) for x in worlds]
    sums = plan(w).step(w.grads, **{**HYPER, "maximize": flips})
    for i, x in enumerate(worlds):
        check(x, before[i], sums[[i, i + 4]], **{**HYPER, "maximize": flips[i]})


@needs_kernels
def test_nothing_to_update():
    w = world([0, 0])
    assert not plan(w).step(w.grads, **HYPER).any()
    assert [s.item() for s in w.steps] == [1, 4]


@needs_kernels
def test_moved_storage_is_noticed():
    w = world([BLOCK, 7])
    stepper = plan(w)
    stepper.step(w.grads, **HYPER)
    for x in (w.params[0], w.exp_avgs[1], w.steps[0]):
        x.data = x.data.clone()
    w.grads = [g.clone() for g in w.grads]
    before = clone(w)
    check(w, before, stepper.step(w.grads, **HYPER), **HYPER)


@needs_kernels
def test_refusals():
    w = world([4, 4])
    stepper = plan(w)
    before = everything(w)
    with pytest.raises(ValueError, match="1 gradients for a plan of 2"):
        stepper.step(w.grads[:1], **HYPER)
    with pytest.raises(ValueError, match=r"tensor 1: the gradient differs"):
        stepper.step([w.grads[0], w.grads[1][:3]], **HYPER)
    with pytest.raises(ValueError, match="lr has 3 entries for 2"):
        stepper.step(w.grads, **{**HYPER, "lr": [1e-3] * 3})
    with pytest.raises(ValueError, match="eps must have no dimension or 2 entries"):
        stepper.step(w.grads, **{**HYPER, "eps": torch.ones(3, device=DEVICE)})
    assert all(torch.equal(x, y) for x, y in zip(everything(w), before, strict=True))
    with pytest.raises(ValueError, match="one or more parameters"):
        kernels.Plan([], [], [], [], [])
    with pytest.raises(ValueError, match="one or more parameters"):
        kernels.Plan(w.params, w.exp_avgs, w.exp_avg_sqs, [None], w.steps)
    shared = clone(w)
    shared.params[1] = shared.params[0]
    with pytest.raises(ValueError, match="tensor 0 and tensor 1 share memory"):
        plan(shared)
    shared = clone(w)
    shared.steps[1] = shared.steps[0]
    with pytest.raises(ValueError, match="tensor 0 and tensor 1 share memory"):
        plan(shared)


@needs_kernels
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"param": torch.ones(2, 2, dtype=torch.float64)}, "torch.float64, not float32"),
        ({"param": torch.ones(2, 2, dtype=torch.complex64)}, "torch.complex64, not float32"),
        ({"param": torch.ones(2, 2, device="meta")}, "the parameter is on meta"),
        ({"grad": torch.ones(2, 2).to_sparse()}, "the gradient is sparse"),
        ({"grad": lambda: torch.ones(2, 3, device=DEVICE)[:, :2]}, "lies in memory in another order"),
        ({"param": lambda: torch.ones(2, 3, device=DEVICE)[:, :2]}, "the parameter has gaps or overlaps"),
        ({name: torch.ones(2, 2).t() for name in NAMES}, None),
        ({"grad": torch.ones(3)}, "the gradient differs"),
        ({"grad": lambda: torch.ones(2, 2, device=DEVICE)._neg_view()}, "the gradient is negated lazily"),
        ({"exp_avg": torch.ones(2, 2, dtype=torch.bfloat16)}, "the exp_avg differs"),
        ({"exp_avg_sq": torch.nn.Buffer(torch.ones(2, 2))}, None),
        ({"max_exp_avg_sq": torch.ones(2, 2, dtype=torch.float16)}, "the max_exp_avg_sq differs"),
        ({"step": torch.ones(1)}, "the step is not a 0-d float32"),
        ({"step": torch.ones((), dtype=torch.int64)}, "the step is not a 0-d float32"),
    ],
)
def test_ineligible(change, message):
    given = {name: torch.ones(2, 2) for name in NAMES} | {"step": torch.tensor(1.0)} | change
    # what a copy to the device would straighten is made there
    given = {name: x() if callable(x) else x for name, x in given.items()}
    given = {name: x if x.device.type == "meta" else x.to(DEVICE) for name, x in given.items()}
    reason = kernels.ineligible(**given)
    assert reason is None if message is None else message in reason


def test_unavailable_without_a_device():
    if kernels.available():
        assert kernels.unavailable_reason() is None
        return
    with pytest.raises(RuntimeError, match="cannot run here"):
        kernels.Plan([torch.ones(1)], [torch.ones(1)], [torch.ones(1)], [None], [torch.tensor(0.0)])


@needs_kernels
@pytest.mark.parametrize("flags", [{}, {"amsgrad": True}, {"maximize": True}, {"lr": torch.tensor(3e-3)}])
def test_inside_the_optimizer(flags):
    """ThermoAdamW steps and measures through the kernel; scales, groups and layers find their rows."""
    from thermoopt import ThermoAdamW

    def build(cls, **kw):
        torch.manual_seed(0)
        a, b, c = (torch.nn.Parameter(torch.randn(n, device=DEVICE)) for n in (70, 3, 130))
        groups = [{"params": [("a", a), ("b", b)]}, {"params": [("c", c)], "weight_decay": 0.5}]
        return cls(groups, **flags, **kw), (a, b, c)

    ours, mine = build(ThermoAdamW, backend="triton", measure_every=1, ema_steps=3)
    slow, twins = build(ThermoAdamW, backend="torch", measure_every=1, ema_steps=3)
    ours.set_layer_factors({"b": 2.0})
    slow.set_layer_factors({"b": 2.0})
    for step in range(4):
        rng = torch.Generator().manual_seed(step)
        for p, q in zip(mine, twins, strict=True):
            p.grad = torch.randn(p.shape, generator=rng).to(DEVICE)
            q.grad = p.grad.clone()
        ours.step()
        slow.step()
    assert ours.backend == "triton"
    for p, q in zip(mine, twins, strict=True):
        assert torch.allclose(p, q, rtol=1e-5, atol=1e-7)
    assert ours.reading.step == 4
    for name, values in vars(slow.reading.total).items():
        if name != "R_ie":  # its error of work is a difference of nearly equal numbers
            expected = pytest.approx(values, rel=1e-4, abs=1e-9, nan_ok=name in ("rho", "distance"))
            assert getattr(ours.reading.total, name) == expected, name
    assert ours.reading.layers["b"].lr_eff == pytest.approx(2 * ours.reading.layers["a"].lr_eff)
    # an ordinary checkpoint comes back: step counts on the host are sent to the device again
    ours.load_state_dict(ours.state_dict())
    for p in mine:
        p.grad = torch.ones_like(p)
    ours.step()
    assert ours.reading.step == 5


@pytest.fixture
def benchmark():
    from thermoopt.benchmarks.overhead import cuda

    return cuda


def test_benchmark_table(benchmark):
    rows = [
        benchmark.Row("5 M", "torch fused", 5_000_000, [0.2, 0.1, 0.3]),
        benchmark.Row("5 M", "Triton, measuring", 5_000_000, [0.1]),
        benchmark.Row("alone", "Triton, measuring", 1_000, [0.01, 0.03]),
    ]
    lines = benchmark.table(rows, copy_gb_per_s=1400).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    # 5 M elements of 28 bytes in 0.2 ms are 700 GB/s
    assert lines[2:] == [
        "| 5 M | torch fused | 0.200 | 0.150 to 0.250 | 1.00 | 700 | 50% |",
        "| 5 M | Triton, measuring | 0.100 | 0.100 to 0.100 | 0.50 | 1400 | 100% |",
        "| alone | Triton, measuring | 0.020 | 0.015 to 0.025 | - | 1 | 0% |",
    ]


def test_benchmark_sets(benchmark):
    sizes = {name: sum(map(math.prod, shapes)) for name, shapes in benchmark.SETS.items()}
    for name, size in sizes.items():
        if name.startswith("GPT"):
            assert size == pytest.approx(float(name.split()[1]) * 1e6, rel=0.02)
    assert sizes["200 x 1 K"] == 200 * 1024


def test_benchmark_says_what_was_wanted(benchmark):
    def rows(ratio):
        names = ("torch fused", "ThermoAdamW as imported")
        return [benchmark.Row("GPT 27 M", m, 1, [x]) for m, x in zip(names, (1.0, ratio), strict=True)]

    assert benchmark.wanted(rows(0.79))[0].endswith("0.790, target 0.80: met")
    assert benchmark.wanted(rows(0.81))[0].endswith("0.810, target 0.80: not met")
    assert benchmark.wanted(rows(0.81)[:1]) == []
    for name, method, other, _ in benchmark.WANTED:
        assert name in benchmark.SETS
        assert {method, other} <= set(benchmark.METHODS)
    assert set(benchmark.HOST_METHODS) | set(benchmark.SILENT) <= set(benchmark.METHODS)


@needs_kernels
def test_benchmark_compares_with_float64_first(benchmark, monkeypatch):
    assert benchmark.wrong() == []
    true = benchmark.reference_step

    def other(params, *args, **kwargs):
        out = true(params, *args, **kwargs)
        params[1].add_(1.0)
        return out * 1.00001

    monkeypatch.setattr(benchmark, "reference_step", other)
    found = benchmark.wrong()
    assert len([line for line in found if "a sum is off" in line]) == 2
    assert len([line for line in found if "a parameter is off by 1.0e+00" in line]) == 2


@pytest.mark.skipif(not INTERPRETED, reason="the dry run is the interpreter's")
def test_benchmark_runs_dry(benchmark, capsys, monkeypatch):
    """Every method takes its steps: the script does not fail on the first GPU for a mistake of its own."""
    monkeypatch.setattr(benchmark, "SHAPES", dict([*benchmark.SHAPES.items()][:1]))
    assert benchmark.main(["--dry-run"]) == 0
    out, errors = capsys.readouterr()
    assert errors == ""
    for method in (*benchmark.METHODS, *benchmark.SHAPES):
        assert f"| {benchmark.DRY} | {method} |" in out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_benchmark_says_why_not(benchmark, capsys):
    assert benchmark.main([]) == 2
    assert "torch sees no CUDA device" in capsys.readouterr().err
