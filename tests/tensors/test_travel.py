"""TravelProbe against float64 loops over all coordinates, or over sampled ones by their memory address."""

import math

import numpy as np
import pytest
import torch

from tests.support.samples import logical, sampled
from thermoopt.physics.travel import Weights
from thermoopt.tensors.travel_probe import TravelProbe

BLOCK, STRIDE = 16, 17
WHOLE = 65_536


def flat(x):
    """Real elements in the order of memory, float64."""
    x = x.detach()
    x = torch.view_as_real(x) if x.is_complex() else x
    return torch.as_strided(x, (x.numel(),), (1,), x.storage_offset()).double().numpy().copy()


def probe_of(params, needs=("impulse",)):
    probe = TravelProbe(needs)
    probe.start(params)
    return probe


def param(*shape, dtype=torch.float64, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.nn.Parameter(torch.randn(shape, generator=rng, dtype=dtype))


def zoo():
    """Small layers of every kind: 32-bit, 16-bit, complex, other memory orders, empty, scalar, frozen."""
    conv = param(4, 3, 5, 5, dtype=torch.float32, seed=2)
    frozen = param(7, 3, dtype=torch.float32, seed=7)
    frozen.requires_grad_(False)
    return {
        "float32": param(9, 11, dtype=torch.float32, seed=0),
        "float64": param(5, 4, seed=1),
        "channels_last": torch.nn.Parameter(conv.detach().to(memory_format=torch.channels_last)),
        "transposed": torch.nn.Parameter(param(6, 13, dtype=torch.float32, seed=3).detach().t()),
        "strided": torch.nn.Parameter(param(6, 10, seed=8).detach()[:, ::2]),
        "complex": param(8, 3, dtype=torch.complex64, seed=4),
        "bfloat16": param(12, 2, dtype=torch.bfloat16, seed=5),
        "empty": param(0, 3, dtype=torch.float32),
        "scalar": param(dtype=torch.float32, seed=6),
        "frozen": frozen,
    }


def shift(params, size=0.1, seed=50):
    """Move every parameter but frozen ones."""
    for i, p in enumerate(params):
        if p.requires_grad:
            rng = torch.Generator().manual_seed(seed + i)
            p.data += (size * torch.randn(p.shape, generator=rng, dtype=torch.float64)).to(p.dtype)


def big():
    """Two matrices, a long vector, and vectors shorter than a stretch of 272 and than 17; 96,352 in all."""
    shapes = [(300, 200), (64, 528), (2300,), (250,), (10,)]
    return [param(*shape, dtype=torch.float32, seed=i) for i, shape in enumerate(shapes)]


# ------------------------------------------------------------------ distance


@pytest.mark.parametrize("needs", [("distance",), ("impulse",), ("distance", "impulse")])
def test_distance_of_a_small_model_is_exact(needs):
    layers = zoo()
    params = list(layers.values())
    start = [logical(p) for p in params]
    probe = probe_of(params, needs)
    shift(params)
    shift(params, seed=90)
    got = probe.measure().travel().distance2
    for name, p, x0, value in zip(layers, params, start, got, strict=True):
        assert value == pytest.approx(math.fsum((logical(p) - x0) ** 2), rel=1e-5, abs=1e-12), name
    assert got[list(layers).index("frozen")] == 0.0
    assert got[list(layers).index("empty")] == 0.0


def test_distance_of_a_model_of_just_65536_elements_is_exact():
    p = param(256, 256)
    probe = probe_of([p])
    p.data[77, 5] += 3.0
    assert probe.measure().travel().distance2.tolist() == pytest.approx([9.0], rel=1e-12)


def test_distance_of_a_large_model_is_right_within_sampling_error():
    params = big()
    probe = probe_of(params)
    start = [logical(p) for p in params]
    for size, p in zip([0.1, 1.0, 3.0, 0.01, 1.0], params, strict=True):
        p.data += size * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    got = probe.measure().travel().distance2
    for p, x0, value in zip(params[:4], start, got, strict=False):
        m = len(sampled(p, large=True))
        # the mean of m squares of normal numbers has relative spread sqrt(2/m)
        assert value == pytest.approx(math.fsum((logical(p) - x0) ** 2), rel=5 * math.sqrt(2 / m))
    assert got[4] == 0.0  # ten elements: nothing sampled, nothing known


def test_each_layer_is_scaled_by_its_own_share():
    """A shift that is the same everywhere is seen exactly, however few coordinates of a layer are sampled."""
    params = big()
    probe = probe_of(params)
    for p in params:
        p.data.zero_()
    probe.forget()
    probe.start(params)
    for c, p in enumerate(params, start=1):
        p.data += c / 4
    got = probe.measure().travel().distance2
    assert got[:4] == pytest.approx([c * c / 16 * p.numel() for c, p in enumerate(params[:4], start=1)])


# ------------------------------------------------------------------ the sample


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
def test_samples_are_blocks_of_16_neighbours_in_memory(layout):
    """A parameter that holds its own memory addresses tells which of them were taken."""
    p = torch.empty(96, 30, 5, 5)
    if layout == "channels_last":
        p = p.to(memory_format=torch.channels_last)
    if layout == "transposed":
        p = p.view(240, 300).t()
    torch.as_strided(p, (p.numel(),), (1,)).copy_(torch.arange(p.numel()))
    taken = export(probe_of([torch.nn.Parameter(p)]), [0])["travel_start"].long().tolist()
    assert taken == sampled(p, large=True)
    blocks = np.array(taken).reshape(-1, 16)
    assert (np.diff(blocks, axis=1) == 1).all()
    assert (np.diff(blocks[:, 0]) == 272).all()
    # of every row length that is a power of two, all stretches of 16 columns are met
    assert {int(b) % 512 // 16 for b in blocks[:, 0]} == set(range(32))


def test_start_and_impulse_take_at_most_two_sixteenths():
    params = big()
    probe = probe_of(params)
    for p in params:
        p.grad = torch.ones_like(p)
    probe.push([0.1] * 5, Weights(1.0, 1.0, 1.0))
    n = sum(p.numel() for p in params)
    state = export(probe, range(5))
    assert state["travel_start"].numel() + state["travel_impulse"].numel() <= 2 / 16 * n
    assert state["travel_start"].numel() > 0.9 * n / STRIDE
    held = [x for b in probe._buckets for x in vars(b).values() if isinstance(x, torch.Tensor)]
    assert sum(x.numel() for x in held) <= 3 / STRIDE * n + 5  # with scratch


def test_a_restored_probe_holds_no_more_than_a_fresh_one():
    params = big()
    saved = export(probe_of(params), range(5))
    probe = TravelProbe(["impulse"])
    probe.import_layers(range(5), params, sum(p.numel() for p in params), saved)
    probe.start(params)
    assert not probe._saved


# ------------------------------------------------------------------ work and impulse


class Loop:
    """N and S of one layer by the recursion, on all elements, or on those at some positions."""

    def __init__(self, p, where=None, get=logical):
        self.get, self.where = get, where
        self.x0 = self.take(p)
        self.scale = 1.0 if where is None else len(get(p)) / max(1, len(where))
        self.s, self.n = np.zeros_like(self.x0), 0.0

    def take(self, x):
        values = self.get(x)
        return values if self.where is None else values[self.where]

    def step(self, p, g, lr, w):
        inner = 0.0
        for gi, xi, x0i in zip(self.take(g), self.take(p), self.x0, strict=True) if g is not None else ():
            inner += gi * (x0i - xi)
        self.n = w.keep * self.n + w.work * lr * inner
        self.s = w.keep * self.s + (0.0 if g is None else w.impulse * lr * self.take(g))

    @property
    def impulse(self):
        return self.scale * np.abs(self.s).sum()

    @property
    def work(self):
        return self.scale * self.n


def random_grad(p, seed):
    rng = torch.Generator().manual_seed(seed)
    g = torch.randn(p.shape, generator=rng, dtype=torch.float64).to(p.dtype)
    out = torch.empty_like(p)
    return out.copy_(g)


def drive(probe, params, loops, steps=5, grads=random_grad, **flags):
    """Steps with changing rates and weights; the second layer has no gradient in the third."""
    for t in range(1, steps + 1):
        w = Weights(keep=1 - 0.1 * t / steps, work=0.5 * t, impulse=1.5**t)
        lrs = [0.01 * (i + 1) / t * (-1) ** (i == 0) for i in range(len(params))]
        for i, p in enumerate(params):
            p.grad = None if (t == 3 and i == 1) or not p.requires_grad else grads(p, 100 * t + i)
        probe.push(lrs, w, **flags)
        for p, loop, lr in zip(params, loops, lrs, strict=True):
            loop.step(p, p.grad, lr, w)
        shift(params, seed=1000 * t)


def test_work_and_impulse_of_every_kind_of_layer():
    layers = zoo()
    params = list(layers.values())
    probe, loops = probe_of(params), [Loop(p) for p in params]
    drive(probe, params, loops)
    got = probe.measure().travel()
    for name, loop, work, impulse in zip(layers, loops, got.work, got.impulse, strict=True):
        size = np.abs(loop.s).max(initial=0.0) * np.abs(loop.x0).sum() + 1e-12
        assert impulse == pytest.approx(loop.impulse, rel=1e-5, abs=1e-12), name
        assert work == pytest.approx(loop.work, rel=1e-4, abs=1e-5 * size), name
    by_name = dict(zip(layers, got.impulse, strict=True))
    assert by_name["frozen"] == by_name["empty"] == 0.0
    assert by_name["float32"] > 1.0


def test_work_and_impulse_in_double_precision():
    params = [param(5, 7, seed=1), param(11, seed=2)]
    probe, loops = probe_of(params), [Loop(p) for p in params]
    drive(probe, params, loops, steps=8)
    got = probe.measure().travel()
    assert got.impulse == pytest.approx([loop.impulse for loop in loops], rel=1e-12)
    assert got.work == pytest.approx([loop.work for loop in loops], rel=1e-12)


@pytest.mark.parametrize("width", [1, 16, 17, 32, 60, 64, 100, 128, 271, 272, 512])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_sample_leaves_out_no_row_of_a_look_up_table(width, transposed):
    rows = 1 + 70_000 // width
    p = torch.empty(rows, width) if not transposed else torch.empty(width, rows).t()
    p.copy_(torch.arange(rows).double()[:, None].expand(rows, width))
    if transposed:  # in memory, a row is what the fastest index runs over
        p.copy_(torch.arange(width)[None, :].expand(rows, width))
    taken = export(probe_of([torch.nn.Parameter(p)]), [0])["travel_start"]
    assert taken.numel() <= p.numel() / STRIDE
    last = (rows if not transposed else width) - 1
    if (rows if transposed else width) >= STRIDE:
        assert set(taken.long().tolist()) >= set(range(last))


def test_a_table_with_one_trained_row_moves_as_that_row():
    """The distance of an idle table with one moving row lies near that of the row alone."""
    p = param(3000, 64)
    probe = probe_of([p])
    p.data[2713] += 0.5
    assert probe.measure().travel().distance2[0] == pytest.approx(64 / 4, rel=0.4)


def test_work_and_impulse_of_a_large_model_are_those_of_its_sample():
    params = big()
    probe = probe_of(params)
    loops = [Loop(p, sampled(p, large=True), flat) for p in params]
    full = [Loop(p) for p in params]
    drive(probe, params, loops)
    drive_full(full, big())
    got = probe.measure().travel()
    assert got.impulse == pytest.approx([loop.impulse for loop in loops], rel=1e-5)
    assert got.work == pytest.approx([loop.work for loop in loops], rel=1e-4, abs=1e-3)
    # and the sample speaks for all: |S| of normal numbers has relative spread sqrt(pi/2 - 1) = 0.76
    for p, loop, value in zip(params[:4], full, got.impulse, strict=False):
        m = len(sampled(p, large=True))
        assert value == pytest.approx(loop.impulse, rel=5 * 0.76 / math.sqrt(m))


def drive_full(loops, params):
    class Nothing:
        def push(self, *args, **flags):
            pass

    drive(Nothing(), params, loops)


@pytest.mark.parametrize(
    "kind", ["channels_last parameter", "channels_last gradient", "transposed", "strided"]
)
@pytest.mark.parametrize("large", [False, True])
def test_a_gradient_that_lies_in_memory_another_way_meets_its_own_parameter(kind, large):
    p = param(300, 30, 4, 4) if large else param(6, 5, 3, 3)
    g = param(*p.shape, seed=9).detach()
    if kind == "channels_last parameter":
        p = torch.nn.Parameter(p.detach().to(memory_format=torch.channels_last))
    elif kind == "channels_last gradient":
        g = g.to(memory_format=torch.channels_last)
    elif kind == "transposed":
        p = torch.nn.Parameter(p.detach().flatten(1).t())
        g = g.flatten(1).t().contiguous()
    else:
        p = torch.nn.Parameter(p.detach().flatten(1)[:, ::2])
        g = g.flatten(1)[:, ::2].t().contiguous().t()
    assert p.stride() != g.stride()
    probe = probe_of([p])
    away = 0.1 * param(*p.shape, seed=4).detach()
    p.data += away
    p.grad = g
    probe.push([0.1], Weights(1.0, 1.0, 1.0))
    # which element lies where in the parameter's memory; what has gaps is taken in the order of indices
    addresses = torch.arange(p.numel()).double().view(p.shape)
    if kind != "strided":
        addresses = torch.empty_like(p).copy_(addresses)
    where = (logical if kind == "strided" else flat)(addresses).astype(int)[sampled(p, large)]
    scale = p.numel() / len(where)
    force = 0.1 * logical(g)[where]
    got = probe.measure().travel()
    assert got.work == pytest.approx([-scale * (force * logical(away)[where]).sum()], rel=1e-9)
    assert got.impulse == pytest.approx([scale * np.abs(force).sum()], rel=1e-9)


def test_work_and_impulse_are_zero_where_nobody_asked():
    p = param(4, 4)
    got = probe_of([p], ["distance"]).measure().travel()
    assert got.work.tolist() == got.impulse.tolist() == [0.0]


def test_sums_asked_for_are_those_of_that_moment():
    p = param(4, 4)
    probe = probe_of([p])
    p.data += 1.0
    p.grad = torch.ones_like(p)
    probe.push([0.1], Weights(1.0, 1.0, 1.0))
    pending = probe.measure()
    p.data += 1.0
    probe.push([0.1], Weights(1.0, 1.0, 1.0))
    got = pending.travel()
    assert got.distance2.tolist() == pytest.approx([16.0])
    assert got.work.tolist() == pytest.approx([-1.6])
    assert got.impulse.tolist() == pytest.approx([1.6])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_in_a_gradient_does_not_enter(bad):
    p = param(6)
    probe, loop = probe_of([p]), Loop(p)
    drive(probe, [p], [loop], steps=2)
    before = export(probe, [0])
    p.grad = torch.full_like(p, bad)
    probe.push([0.1], Weights(1.0, 7.0, 7.0))
    after = export(probe, [0])
    assert all(torch.equal(before[key], after[key]) for key in before)
    # a single bad coordinate: the others enter
    p.grad = torch.arange(6.0, dtype=torch.float64)
    p.grad[2] = bad
    probe.push([0.1], Weights(0.5, 1.0, 1.0))
    s = before["travel_impulse"] * 0.5 + 0.1 * torch.tensor([0.0, 1, 0, 3, 4, 5], dtype=torch.float64)
    torch.testing.assert_close(export(probe, [0])["travel_impulse"], s)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_step_that_a_grad_scaler_skips_leaves_all_as_it_was(shape):
    params = [param(6, 3, dtype=torch.float32), param(4, seed=2)]
    probe, loops = probe_of(params), [Loop(p) for p in params]
    drive(probe, params, loops, steps=3)
    before = exports(probe)
    for p in params:
        p.grad = torch.full_like(p, 3.0)
        p.grad.view(-1)[0] = math.inf
    probe.push([0.1] * 2, Weights(0.5, 1.0, 1.0), found_inf=torch.ones(shape))
    assert same(before, exports(probe))
    # and a flag that is down changes nothing; the scale is taken out
    for p in params:
        p.grad = torch.full_like(p, 3.0 * 1024)
    w = Weights(0.5, 1.0, 1.0)
    probe.push([0.1] * 2, w, torch.tensor(1024.0), torch.zeros(shape))
    for p, loop in zip(params, loops, strict=True):
        loop.step(p, torch.full_like(p, 3.0), 0.1, w)
    got = probe.measure().travel()
    assert got.impulse == pytest.approx([loop.impulse for loop in loops], rel=1e-6)
    assert got.work == pytest.approx([loop.work for loop in loops], rel=1e-5)


# ------------------------------------------------------------------ state


def export(probe, layers, params=None):
    """What a group of these layers carries; the parameters are the probe's where it has been started."""
    params = probe._params if params is None else params
    total = sum(len(logical(p)) for p in params)
    return probe.export_layers(layers, [params[i] for i in layers], total)


def exports(probe, layers=2):
    return [export(probe, [i]) for i in range(layers)]


def same(a, b):
    """The same numbers to the last bit."""
    return all(
        x.keys() == y.keys() and all(torch.equal(x[key], y[key]) for key in x)
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("needs", ["distance", "impulse"])
@pytest.mark.parametrize("make", [lambda: list(zoo().values()), big], ids=["small", "large"])
def test_a_restored_probe_goes_on_bit_for_bit(make, needs):
    params = make()
    n = len(params)
    probe = probe_of(params, [needs])
    if needs == "impulse":
        drive(probe, params, [Loop(p) for p in params], steps=2)
    else:
        shift(params)
    halves = [range(n // 2), range(n // 2, n)]  # as two parameter groups
    saved = [export(probe, half) for half in halves]
    other = TravelProbe([needs])
    total = sum(len(logical(p)) for p in params)
    for half, part in zip(halves, saved, strict=True):
        other.import_layers(half, [params[i] for i in half], total, part)
    assert same(saved, [export(other, half, params) for half in halves])  # also before it started
    other.start(params)
    for p in (probe, other):
        for i, q in enumerate(params):
            q.grad = random_grad(q, i) if q.requires_grad else None
        if needs == "impulse":
            p.push([0.2] * n, Weights(0.9, 1.0, 2.0))
    assert same(exports(probe, n), exports(other, n))
    a, b = probe.measure().travel(), other.measure().travel()
    assert a.distance2.tolist() == b.distance2.tolist()
    assert a.distance2.max() > 0
    assert a.work.tolist() == b.work.tolist()
    assert a.impulse.tolist() == b.impulse.tolist()


def test_exports_are_copies():
    p = param(3, 3)
    probe = probe_of([p])
    p.grad = torch.ones_like(p)
    saved = export(probe, [0])
    kept = {key: value.clone() for key, value in saved.items()}
    probe.push([0.1], Weights(0.5, 1.0, 1.0))
    p.data.zero_()
    assert all(torch.equal(saved[key], kept[key]) for key in kept)


def test_before_the_first_step_the_parameters_are_the_start():
    """A checkpoint library that loads into a fresh optimizer's state must find the place of every key."""
    params = [param(4, 4), param(3)]
    saved = export(TravelProbe(["impulse"]), [0, 1], params)
    assert torch.equal(saved["travel_start"], torch.cat([p.detach().reshape(-1) for p in params]))
    assert {key: value.tolist() for key, value in saved.items() if key != "travel_start"} == {
        "travel_impulse": [0.0] * 19,
        "travel_work": [0.0] * 2,
    }
    assert {key: value.shape for key, value in saved.items()} == {
        key: value.shape for key, value in export(probe_of(params), [0, 1]).items()
    }


@pytest.mark.parametrize("added", [(5, 5), (1400, 50)], ids=["stays small", "grows beyond whole samples"])
def test_a_layer_added_later_starts_late_and_the_others_keep_their_start(added):
    first = [param(30, 20), param(40, seed=1)]
    start = [logical(p) for p in first]
    probe, loops = probe_of(first), [Loop(p) for p in first]
    drive(probe, first, loops, steps=2)
    late = param(*added, seed=5)
    params = [*first, late]
    probe.start(params)
    x_late = logical(late)
    for p in params:
        p.data += 0.25
    got = probe.measure().travel()
    large = sum(p.numel() for p in params) > WHOLE
    for p, x0, loop, value, impulse in zip(first, start, loops, got.distance2, got.impulse, strict=False):
        where = sampled(p, large)
        scale = p.numel() / len(where)
        assert value == pytest.approx(scale * ((logical(p) - x0)[where] ** 2).sum(), rel=1e-9)
        assert impulse == pytest.approx(scale * np.abs(loop.s[where]).sum(), rel=1e-9)
    assert got.distance2[2] == pytest.approx(((logical(late) - x_late) ** 2).sum())
    assert got.impulse[2] == got.work[2] == 0.0
    # a checkpoint of that
    other = TravelProbe(["impulse"])
    other.import_layers(range(3), params, sum(p.numel() for p in params), export(probe, range(3)))
    other.start(params)
    assert same(exports(probe, 3), exports(other, 3))


def test_starting_again_with_the_same_layers_keeps_their_start():
    p = param(4, 4)
    probe = probe_of([p])
    p.data += 1.0
    probe.start([p])
    assert probe.measure().travel().distance2.tolist() == pytest.approx([16.0])
    probe.forget()
    probe.start([p])
    assert probe.measure().travel().distance2.tolist() == [0.0]


def test_state_of_another_layout_is_left_out():
    p, q = param(4, 4), param(5, 5)
    saved = export(probe_of([p]), [0])
    probe = TravelProbe(["impulse"])
    probe.import_layers([0], [q], 25, saved)
    probe.import_layers([0], [q], 25, {})
    probe.start([q])
    q.data += 1.0
    assert probe.measure().travel().distance2.tolist() == pytest.approx([25.0])


def test_unknown_needs_are_refused():
    with pytest.raises(ValueError, match="needs") as caught:
        TravelProbe(["impulse", "velocity"])
    assert "velocity" in str(caught.value)
    assert "distance" in str(caught.value)
