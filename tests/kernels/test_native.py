"""The native CPU kernel: bits of torch's fused AdamW, sums of the float64 reference, safe with any input."""

import os
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
import torch

from thermoopt.kernels import Sum, native, native_chunks, native_library, reference_step
from thermoopt.kernels.doctor import report

EXPECTED = os.environ.get("THERMOOPT_EXPECT_NATIVE") == "1"
needs_native = pytest.mark.skipif(
    not native.available() and not EXPECTED, reason=native.unavailable_reason() or "built"
)

SIZES = [0, 1, 7, 8, 15, 16, 17, 31, 33, 8191, 8192, 8193, 100_003]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
HYPER = {"lr": 1e-2, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8}
ISAS = ["portable", "avx2", "avx512"]
# torch's other builds may fuse other operations; the bits are promised on x86 (see the module's docstring)
X86 = native_library.TORCH_WIDTH == 8


def make(sizes=SIZES, dtype=torch.float32, seed=0, amsgrad=False):
    """Params, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps, as after five steps."""
    gen = torch.Generator().manual_seed(seed)

    def draw(scale):
        return [torch.randn(n, generator=gen).mul(scale).to(dtype) for n in sizes]

    squares = [[x.square() for x in draw(0.3)] for _ in range(2)]
    steps = [torch.tensor(5.0) for _ in sizes]
    return [draw(1), draw(0.1), squares[0], squares[1] if amsgrad else [None] * len(sizes), steps]


def copy(columns):
    return [[None if t is None else t.clone() for t in column] for column in columns]


def gradients(sizes=SIZES, dtype=torch.float32, seed=1):
    gen = torch.Generator().manual_seed(seed)
    return [torch.randn(n, generator=gen).to(dtype) for n in sizes]


def fused(columns, grads, *, amsgrad=False, maximize=False, grad_scale=None, **hyper):
    params, m, v, x, steps = columns
    torch._foreach_add_(steps, 1)
    torch._fused_adamw_(
        params, grads, m, v, x if amsgrad else [], steps,
        amsgrad=amsgrad, maximize=maximize, grad_scale=grad_scale, found_inf=None, **hyper,
    )  # fmt: skip


def reference(columns, grads, *, beta1, beta2, maximize=False, **hyper):
    params, m, v, x, steps = [[None if t is None else t.double() for t in c] for c in columns]
    maxima = [] if any(t is None for t in x) else x
    grads = [g.double() for g in grads]
    hyper["betas"] = beta1, beta2
    return reference_step(params, grads, m, v, maxima, steps, maximize=maximize, **hyper).numpy()


def errors(out, expected, columns, grads, *, lr=0.0, weight_decay=0.0, beta1=0.9, **_):
    """Error of each sum over the sum of the absolute values of its terms, or a bound below that."""
    size = np.maximum(np.abs(expected), 1e-30)
    # |<a, b>| of the signed sums against sums of absolute values, from float64
    for i, (p, g) in enumerate(zip(columns[0], grads, strict=True)):
        m = beta1 * columns[1][i].double() + (1 - beta1) * g.double()
        size[i, Sum.GT] = max(size[i, Sum.GT], float((p.double() * g.double()).abs().sum()))
        ratio = expected[i, Sum.UU] ** 0.5
        size[i, Sum.A] = max(size[i, Sum.A], float((m * g.double()).abs().sum()) * 1e-3)
        size[i, Sum.TU] = max(size[i, Sum.TU], 0.3 * ratio * expected[i, Sum.TT] ** 0.5)
    return np.abs(out - expected) / size


def same(one, other):
    return all(
        (a is None and b is None) or torch.equal(a, b)
        for x, y in zip(one, other, strict=True)
        for a, b in zip(x, y, strict=True)
    )


def test_native_is_there_where_it_is_expected():
    if not EXPECTED:
        pytest.skip("THERMOOPT_EXPECT_NATIVE is not 1")
    assert native.available(), native.unavailable_reason()


def test_reason_and_report():
    assert (native.unavailable_reason() is None) == native.available()
    text = report()
    assert "native" in text
    assert "triton" in text


@needs_native
@pytest.mark.skipif(not X86, reason="bit equality is promised on x86")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"amsgrad": True},
        {"maximize": True},
        {"weight_decay": 0.0},
        {"beta1": 0.3},
        {"beta1": 0.0, "beta2": 0.0},
        {"beta2": 0.999999},
        {"lr": 0.0},
        {"grad_scale": torch.tensor(3.0)},
        {"grad_scale": torch.tensor(1024.0), "amsgrad": True, "maximize": True},
    ],
    ids=lambda o: "-".join(o) or "plain",
)
def test_same_bits_as_torch_fused(dtype, options):
    amsgrad = options.get("amsgrad", False)
    hyper = HYPER | {k: v for k, v in options.items() if k != "amsgrad"}
    ours = make(dtype=dtype, amsgrad=amsgrad)
    theirs = copy(ours)
    plan = native.Plan(*ours)
    for step in range(20):
        grads = gradients(dtype=dtype, seed=step)
        other = [g.clone() for g in grads]
        out = plan.step(grads, measure=step % 2 == 0, **hyper)
        assert (out is None) == (step % 2 == 1)
        fused(theirs, other, amsgrad=amsgrad, **hyper)
        assert same(ours, theirs)
        assert same([grads], [other])  # unscaled alike


@needs_native
@pytest.mark.skipif(not X86, reason="bit equality is promised on x86")
def test_same_bits_over_the_range_of_floats():
    n = 200_000
    gen = torch.Generator().manual_seed(0)
    exponents = torch.empty(4, n).uniform_(-60, 30, generator=gen)
    p, g, m, v = torch.randn(4, n, generator=gen) * torch.exp2(exponents)
    v = v.abs()
    v[::7] = 0
    m[::5] = g[::5] = 0
    ours = [[p], [m], [v], [None], [torch.tensor(0.0)]]
    theirs = copy(ours)
    plan = native.Plan(*ours)
    for _ in range(3):
        plan.step([g], **HYPER)
        fused(theirs, [g], **HYPER)
        assert same(ours, theirs)


@needs_native
@pytest.mark.skipif(not X86, reason="bit equality is promised on x86")
@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_same_bits_where_a_quotient_is_nearly_halfway_between_two_floats(isa):
    # sqrt(v) / sqrt(bias2) is a product with two halves of a reciprocal: give it, for many bias corrections,
    # the numerators whose quotients lie closest to where rounding changes. beta2 rounds to 1, so v stays
    rng = np.random.default_rng(0)
    counts = np.float32(np.concatenate([10 ** rng.uniform(6, 9, 200), 10 ** rng.uniform(9.2, 10.2, 400)]))
    hyper = {"lr": 1.0, "weight_decay": 0.0, "beta1": 0.9, "beta2": 1 - 1e-9, "eps": 1e-30}
    ours = [[], [], [], [None] * len(counts), [torch.tensor(float(t)) for t in counts]]
    for t in counts:
        root = np.sqrt(1 - hyper["beta2"] ** float(t + np.float32(1))).astype(np.float32)
        b = int(np.ldexp(np.frexp(root)[0], 24))
        while b % 2 == 0 and b > 1:
            b //= 2
        inverse = pow(2**25, -1, b)
        a = np.array([j * inverse % b for j in range(-150, 150)], np.int64)
        a = (a[:, None] + b * np.arange(3 if b > 2**22 else 1)).ravel()
        s = np.float32(a * 2.0 ** rng.integers(-40, -10))
        v = np.float32(s.astype(np.float64) ** 2)
        v[::37] = np.inf
        for column, x in zip(ours, (np.zeros_like(v), rng.normal(size=len(v)), v), strict=False):
            column.append(torch.from_numpy(x.astype(np.float32)))
    theirs = copy(ours)
    grads = [torch.zeros_like(p) for p in ours[0]]
    native.Plan(*ours, isa=isa).step(grads, **hyper)
    fused(theirs, grads, **hyper)
    assert same(ours, theirs)


@needs_native
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("amsgrad", [False, True])
def test_sums_agree_with_the_float64_reference(isa, dtype, amsgrad):
    columns = make(dtype=dtype, amsgrad=amsgrad)
    plan = native.Plan(*columns, isa=isa)
    for step in range(3):
        grads = gradients(dtype=dtype, seed=step)
        before = copy(columns)
        expected = reference(before, grads, maximize=True, **HYPER)
        out = plan.step(grads, maximize=True, **HYPER)
        assert errors(out, expected, before, grads, **HYPER).max() < 1e-6
        assert (out[:, Sum.D] == expected[:, Sum.D]).all()


@needs_native
@pytest.mark.parametrize("isa", ISAS)
def test_sums_of_equal_terms_where_rounding_never_cancels(isa):
    n = 50_001
    for value in (0.1, 1 / 3, 0.7):
        columns = [[torch.full((n,), value)], [torch.full((n,), 0.3)], [torch.full((n,), 0.6)], [None]]
        columns.append([torch.tensor(2.0)])
        grads = [torch.full((n,), value / 7)]
        expected = reference(columns, grads, **HYPER)
        out = native.Plan(*columns, isa=isa).step(grads, **HYPER)
        assert (np.abs(out - expected) / np.abs(expected)).max() < 1e-6


@needs_native
def test_update_stays_near_the_float64_reference():
    columns = make()
    grads = gradients()
    params, m, v, _, steps = [[None if t is None else t.double() for t in c] for c in columns]
    hyper = {k: x for k, x in HYPER.items() if not k.startswith("beta")}
    reference_step(params, [g.double() for g in grads], m, v, [], steps, betas=(0.9, 0.95), **hyper)
    native.Plan(*columns).step(grads, **HYPER)
    for ours, exact in zip(columns[:3], (params, m, v), strict=True):
        for a, b in zip(ours, exact, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-6, atol=1e-6)


@needs_native
def test_the_number_of_threads_changes_no_bit():
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            columns = make()
            results.append((native.Plan(*columns).step(gradients(), **HYPER), columns))
    finally:
        torch.set_num_threads(before)
    for out, columns in results[1:]:
        assert (out == results[0][0]).all()
        assert same(columns, results[0][1])


@needs_native
@pytest.mark.skipif(native.instruction_set() != "avx512", reason="has no AVX-512 to compare with AVX2")
def test_vectors_of_another_length_move_the_same_bits():
    wide, narrow = make(), make()
    one = native.Plan(*wide, isa="avx512").step(gradients(), **HYPER)
    other = native.Plan(*narrow, isa="avx2").step(gradients(), **HYPER)
    assert same(wide, narrow)
    np.testing.assert_allclose(one, other, rtol=1e-6)


@needs_native
def test_one_number_a_tensor():
    n = len(SIZES)
    lr = np.linspace(0, 1e-2, n)
    decay = np.linspace(0.3, 0, n)
    maximize = np.arange(n) % 2 == 0
    ours = make()
    theirs = copy(ours)
    grads = gradients()
    options = HYPER | {"lr": lr, "weight_decay": decay, "maximize": maximize}
    out = native.Plan(*ours).step(grads, **options)
    for i in range(n):
        one = [[c[i]] for c in theirs]
        single = HYPER | {"lr": lr[i], "weight_decay": decay[i], "maximize": bool(maximize[i])}
        row = native.Plan(*one).step([grads[i]], **single)
        assert (row[0] == out[i]).all()
    assert same(ours, theirs)


@needs_native
def test_steps_at_different_counts():
    ours = make([100, 100, 100])
    for i, t in enumerate((0.0, 7.0, 7.0)):
        ours[4][i].fill_(t)
    theirs = copy(ours)
    grads = gradients([100] * 3)
    native.Plan(*ours).step(grads, **HYPER)
    fused(theirs, grads, **HYPER)
    assert [float(t) for t in ours[4]] == [1, 8, 8]
    assert not X86 or same(ours, theirs)


@needs_native
def test_found_inf_moves_nothing():
    columns = make()
    before = copy(columns)
    grads = gradients()
    kept = [g.clone() for g in grads]
    scale = torch.tensor([2.0])
    plan = native.Plan(*columns)
    assert plan.step(grads, found_inf=torch.tensor([1.0]), grad_scale=scale, **HYPER) is None
    assert same(columns, before)
    assert same([grads], [kept])
    assert plan.step(grads, found_inf=torch.tensor([0.0]), grad_scale=scale, **HYPER) is not None
    assert float(columns[4][0]) == 6


@needs_native
def test_dry_step_writes_nothing_and_sums_the_same():
    columns = make(amsgrad=True)
    before = copy(columns)
    grads = gradients()
    kept = [g.clone() for g in grads]
    plan = native.Plan(*columns)
    scale = torch.tensor(2.0)
    dry = plan.step(grads, dry=True, grad_scale=scale, **HYPER)
    assert same(columns, before)
    assert same([grads], [kept])
    assert (plan.step(grads, grad_scale=scale, **HYPER) == dry).all()


@needs_native
def test_halves_of_a_dry_step_stand_for_all():
    """Small tensors are read whole; of large ones both halves together are the sums of all."""
    long = native_chunks.CHUNK
    sizes = [5, (native_chunks.HALVED - 1) * long, native_chunks.HALVED * long, 500_003]
    columns, grads = make(sizes), gradients(sizes)
    grads[3] *= torch.linspace(0, 3, sizes[3])
    plan = native.Plan(*columns)
    kept = copy(columns)
    whole = plan.step(grads, dry=True, **HYPER)
    halves = [plan.step(grads, dry=True, half=half, **HYPER) for half in (0, 1)]
    for half in halves:
        assert (half[:2] == whole[:2]).all()
        assert (half[2:, Sum.GG] != whole[2:, Sum.GG]).all()
        assert half[2:, Sum.D].tolist() == pytest.approx(sizes[2:])
        assert half[2:, Sum.GG] == pytest.approx(whole[2:, Sum.GG], rel=0.1)
    assert np.mean(halves, axis=0)[2] == pytest.approx(whole[2], rel=1e-12)
    chunk = torch.arange(sizes[3]) // native_chunks.CHUNK % 2
    for half, sums in enumerate(halves):
        own = grads[3][chunk == half].double()
        assert sums[3, Sum.GG] == pytest.approx(float(own @ own) * sizes[3] / own.numel(), rel=1e-6)
    # the next calls go over all chunks again
    assert (plan.step(grads, dry=True, **HYPER) == whole).all()
    for column, before in zip(columns[:3], kept[:3], strict=True):
        assert all(map(torch.equal, column, before))
    assert (plan.step(grads, **HYPER) == whole).all()


@needs_native
def test_a_gradient_that_is_not_finite_stays_in_its_row():
    columns = make([100, 100])
    grads = gradients([100, 100])
    grads[0][3] = float("nan")
    out = native.Plan(*columns).step(grads, **HYPER)
    assert not np.isfinite(out[0, Sum.GG])
    assert np.isfinite(out[1]).all()


@needs_native
def test_dense_layouts_walk_in_memory_order():
    def channels_last():
        return torch.randn(4, 3, 5, 2).to(memory_format=torch.channels_last)

    for draw in (channels_last, lambda: torch.randn(30, 20).t()):
        ours = [[draw()], [draw()], [draw().square()], [None], [torch.tensor(1.0)]]
        grad = draw()
        theirs = [[None if t is None else t.clone().contiguous() for t in c] for c in ours]
        native.Plan(*ours).step([grad], **HYPER)
        native.Plan(*theirs).step([grad.contiguous()], **HYPER)
        assert same([[t.contiguous() for t in c] for c in ours[:3]], theirs[:3])
        with pytest.raises(native.GradientRefused, match="tensor 0: grad has strides"):
            native.Plan(*ours).step([grad.contiguous()], **HYPER)


class Subclass(torch.Tensor):
    pass


@needs_native
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda g: g.double(), "float64"),
        (lambda g: g.bfloat16(), "bfloat16"),
        (lambda g: g[:-1], "shape"),
        (lambda g: torch.cat([g, g])[::2], "strides"),
        (lambda g: g[:1].expand(len(g)), "strides"),
        (lambda g: g.to("meta"), "meta"),
        (lambda g: g.to_sparse(), "layout"),
        (lambda g: g.as_subclass(Subclass), "Subclass"),
        (torch._neg_view, "negated"),
    ],
)
def test_a_gradient_that_cannot_be_read_is_refused_before_anything_moves(spoil, message):
    columns = make([64, 64])
    before = copy(columns)
    grads = gradients([64, 64])
    grads[1] = spoil(grads[1])
    plan = native.Plan(*columns, names=["first", "second"])
    with pytest.raises(native.GradientRefused, match=rf"second: .*{message}"):
        plan.step(grads, **HYPER)
    assert list(plan.rejected(grads)) == [1]
    assert same(columns, before)


@needs_native
def test_arguments_of_the_wrong_kind():
    plan = native.Plan(*make([8, 8]))
    g = gradients([8, 8])
    with pytest.raises(ValueError, match="found_inf"):
        plan.step(g, found_inf=torch.tensor(1), **HYPER)
    with pytest.raises(ValueError, match="share a gradient"):
        plan.step([g[0], g[0]], grad_scale=torch.tensor(2.0), **HYPER)
    with pytest.raises(ValueError, match="1 gradients for 2"):
        plan.step(g[:1], **HYPER)


@needs_native
def test_ineligible_says_why():
    def why(**changes):
        t = torch.zeros(4)
        row = {k: t.clone() for k in ("param", "grad", "exp_avg", "exp_avg_sq")}
        row |= {"max_exp_avg_sq": None, "step": torch.tensor(0.0)} | changes
        return native.ineligible(**row)

    assert why() is None
    assert why(param=torch.nn.Parameter(torch.zeros(4))) is None
    assert "float64" in why(param=torch.zeros(4).double())
    assert "complex64" in why(param=torch.zeros(4, dtype=torch.complex64))
    assert "bfloat16" in why(exp_avg=torch.zeros(4).bfloat16())
    assert "step is torch.float64" in why(step=torch.tensor(0.0).double())
    assert "gaps" in why(param=torch.zeros(8)[::2])
    assert "gaps" in why(param=torch.zeros(1).expand(4))
    assert "layout" in why(grad=torch.zeros(4).to_sparse())
    assert "meta" in why(exp_avg_sq=torch.zeros(4, device="meta"))
    assert "Subclass" in why(param=torch.zeros(4).as_subclass(Subclass))


@needs_native
def test_shared_memory_is_refused_by_name():
    columns = make([10, 10])
    columns[0][1] = columns[0][0]
    with pytest.raises(ValueError, match=r"param of a and param of b share memory"):
        native.Plan(*columns, names=["a", "b"])
    columns = make([10, 10])
    flat = torch.zeros(15)
    columns[0][0], columns[1][1] = flat[:10], flat[5:]
    with pytest.raises(ValueError, match=r"param of tensor 0 and exp_avg of tensor 1"):
        native.Plan(*columns)
    columns[0][0], columns[1][1] = torch.zeros(20).split(10)  # neighbours do not overlap
    native.Plan(*columns)


@needs_native
def test_matches_sees_what_moved():
    columns = make(amsgrad=True)
    plan = native.Plan(*columns)
    assert plan.matches(*columns)
    for k in range(5):
        other = [list(c) for c in columns]
        other[k][3] = other[k][3].clone()
        assert not plan.matches(*other)
    param = columns[0][-1]
    param.data = param.data.clone()
    assert not plan.matches(*columns)
    assert not plan.matches(*[c[:-1] for c in columns])


@needs_native
def test_plans_in_threads():
    expected = native.Plan(*make()).step(gradients(), **HYPER)
    results = []

    def work():
        results.append(native.Plan(*make()).step(gradients(), **HYPER))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(results) == 4
    assert all((r == expected).all() for r in results)


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, timeout=100, env=os.environ | environment, check=False,
    )  # fmt: skip


STEP = """
    import os, re, torch
    from thermoopt.kernels import native
    torch.set_num_threads(2)
    p, m, v, g = (torch.rand(400_000) for _ in range(4))
    plan = native.Plan([p], [m], [v], [None], [torch.tensor(0.0)])
    def step():
        return plan.step([g], lr=1e-3, weight_decay=0.1, beta1=0.9, beta2=0.99, eps=1e-8)
"""


@needs_native
def test_a_forked_child_steps():
    done = python(
        STEP
        + """
    parent = step()
    pid = os.fork()
    if pid == 0:
        step()
        os._exit(7)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), step() is not None)
    """
    )
    assert done.stdout.split() == ["7", "True"], done.stderr


@needs_native
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_one_openmp_runtime_and_one_pool():
    done = python(
        STEP
        + """
    a = torch.rand(4_000_000)
    (a + a).sum()
    before = len(os.listdir("/proc/self/task"))
    step()
    after = len(os.listdir("/proc/self/task"))
    maps = open("/proc/self/maps").read()
    print(before, after, len(set(re.findall(r"/\\S*lib(?:gomp|iomp5|omp)\\S*", maps))))
    """
    )
    before, after, runtimes = map(int, done.stdout.split())
    assert before == after, done.stderr
    assert runtimes == 1


@needs_native
@pytest.mark.skipif(not X86, reason="bit equality is promised on x86")
def test_same_bits_under_torchs_portable_kernels():
    done = python(
        STEP
        + """
    q = [t.clone() for t in (p, m, v)]
    step()
    torch._fused_adamw_([q[0]], [g], [q[1]], [q[2]], [], [torch.tensor(1.0)], amsgrad=False, lr=1e-3,
        beta1=0.9, beta2=0.99, weight_decay=0.1, eps=1e-8, maximize=False)
    print(native.instruction_set(), all(map(torch.equal, (p, m, v), q)))
    """,
        ATEN_CPU_CAPABILITY="default",
    )
    assert done.stdout.split() == ["portable", "True"], done.stderr
