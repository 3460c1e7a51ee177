"""The measuring pass against the float64 loop that defines the sums."""

import numpy as np
import pytest
import torch

from thermoopt import ThermoAdamW
from thermoopt.kernels import Sum, reference_step, torch_pass

SIGNED = {
    Sum.A: ("g", "u"),
    Sum.TU: ("th", "u"),
    Sum.GT: ("g", "th"),
}
# relative to the sum of absolute values of the terms; half precision gradients are exact inputs, but
# moments held in half precision are rounded by torch after the sums are formed
RTOL = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 5e-6, torch.float16: 5e-6}


def make(shapes, dtype, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(s, generator=rng, dtype=torch.float64).to(dtype)) for s in shapes]


def draw_grads(params, rng, none=(), scale=1.0):
    for i, p in enumerate(params):
        like = torch.view_as_real(p.detach()) if p.is_complex() else p
        g = scale * torch.randn(like.shape, generator=rng, dtype=torch.float64)
        g = torch.view_as_complex(g) if p.is_complex() else g
        p.grad = None if i in none else g.to(p.dtype)


def expected_sums(opt, params, group):
    """Reference sums from float64 copies of everything as it stands before the step."""
    rows = []
    for p in params:
        if p.grad is None or p.numel() == 0:
            rows.append(None)
            continue
        state = opt.state.get(p) or {}
        wide = torch.complex128 if p.is_complex() else torch.float64

        def copy(key, state=state, p=p, wide=wide):
            return state[key].detach().clone().to(wide) if key in state else torch.zeros_like(p, dtype=wide)

        tops = [copy("max_exp_avg_sq")] if group["amsgrad"] else []
        step = torch.tensor(float(state.get("step", 0.0)))
        rows.append(
            reference_step(
                [p.detach().clone().to(wide)],
                [p.grad.to(wide)],
                [copy("exp_avg")],
                [copy("exp_avg_sq")],
                tops,
                [step],
                lr=1e-3,
                betas=group["betas"],
                eps=group["eps"],
                weight_decay=0.01,
                maximize=group["maximize"],
            )[0].numpy()
        )
    return rows


def raw_step(opt):
    """One step; the sums that its reading was made of, ``[len(Sum), n_layers]`` (ema_steps = 1)."""
    opt.step()
    return opt.reading, opt._ledger.meter._state[: len(Sum)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("flags", [{}, {"amsgrad": True}, {"maximize": True}, {"eps": 1e-3}])
def test_sums_match_the_definition(dtype, flags):
    if dtype == torch.float16:
        flags = {"eps": 1e-3, **flags}  # 1e-8 is 0 in float16, and torch's own step divides by it
    shapes = [(7,), (0,), (1,), (33, 5), (3, 4, 5), (64,)]
    params = make(shapes, dtype)
    frozen = torch.nn.Parameter(torch.ones(3, dtype=dtype), requires_grad=False)
    opt = ThermoAdamW([*params, frozen], measure_every=1, ema_steps=1, backend="torch", **flags)
    rng = torch.Generator().manual_seed(1)
    for step in range(4):
        draw_grads(params, rng, none={0} if step == 2 else ())
        expected = expected_sums(opt, params, opt.param_groups[0])
        _, sums = raw_step(opt)
        for i, row in enumerate(expected):
            if row is None:
                continue
            absolute = np.abs(row)
            # Cauchy-Schwarz bounds the sum of absolute values of a signed sum's terms
            absolute[Sum.A] = np.sqrt(row[Sum.GG] * row[Sum.UU])
            absolute[Sum.TU] = np.sqrt(row[Sum.TT] * row[Sum.UU])
            absolute[Sum.GT] = np.sqrt(row[Sum.GG] * row[Sum.TT])
            assert (np.abs(sums[:, i] - row) <= RTOL[dtype] * absolute).all(), (i, sums[:, i] / row - 1)
    reading = opt.reading
    assert "group0.6" not in reading.layers  # frozen
    assert reading.layers["group0.1"].numel == 0  # zero-size


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_counts_as_its_real_view(dtype):
    params = make([(5,), (2, 3)], dtype)
    opt = ThermoAdamW(params, measure_every=1, ema_steps=1, backend="torch")
    rng = torch.Generator().manual_seed(1)
    for _ in range(3):
        draw_grads(params, rng)
        expected = expected_sums(opt, params, opt.param_groups[0])
        _, sums = raw_step(opt)
        for i, row in enumerate(expected):
            assert np.allclose(sums[:, i], row, rtol=1e-4 if dtype == torch.complex64 else 1e-11)
    assert opt.reading.layers["group0.0"].numel == 10


def test_pieces_add_up(monkeypatch):
    """A tensor cut in many pieces, its last one short, gives the sums of the whole."""
    monkeypatch.setattr(torch_pass, "CPU_PIECE", 64)
    params = make([(1000,), (64,), (65,)], torch.float64)
    opt = ThermoAdamW(params, measure_every=1, ema_steps=1, backend="torch")
    rng = torch.Generator().manual_seed(2)
    for _ in range(2):
        draw_grads(params, rng)
        expected = expected_sums(opt, params, opt.param_groups[0])
        _, sums = raw_step(opt)
    assert np.allclose(sums, np.stack(expected, axis=1), rtol=1e-11)


@pytest.mark.parametrize("layout", ["transposed", "channels_last", "strided"])
def test_any_layout(layout):
    base = torch.randn(4, 6, 3, 5, dtype=torch.float64)
    if layout == "transposed":
        x = base[0, 0].t()
    elif layout == "channels_last":
        x = base.to(memory_format=torch.channels_last)
    else:
        x = base[:, ::2]
    p = torch.nn.Parameter(x)
    opt = ThermoAdamW([p], measure_every=1, ema_steps=1, backend="torch")
    for grad_like in (torch.empty_like(p), torch.empty(p.shape, dtype=p.dtype)):
        p.grad = grad_like.copy_(torch.randn(p.shape, dtype=p.dtype))
        expected = expected_sums(opt, [p], opt.param_groups[0])
        _, sums = raw_step(opt)
        assert np.allclose(sums[:, 0], expected[0], rtol=1e-11)


def test_mixed_dtypes_and_groups():
    a, b = make([(9,)], torch.float32)[0], make([(9,)], torch.float64)[0]
    opt = ThermoAdamW(
        [{"params": [a], "betas": (0.8, 0.99)}, {"params": [b], "lr": 0.1}],
        measure_every=1,
        ema_steps=1,
        backend="torch",
    )
    rng = torch.Generator().manual_seed(3)
    for _ in range(3):
        draw_grads([a, b], rng)
        expected = [
            expected_sums(opt, [p], group)[0] for p, group in zip((a, b), opt.param_groups, strict=True)
        ]
        _, sums = raw_step(opt)
    assert np.allclose(sums[:, 0], expected[0], rtol=1e-5)
    assert np.allclose(sums[:, 1], expected[1], rtol=1e-11)
    assert opt.reading.groups[1].lr_eff == 0.1


def test_half_precision_keeps_wide_statistics():
    """Averages of bf16 parameters are float64, through a checkpoint as well."""
    p = make([(500,)], torch.bfloat16)[0]
    opt = ThermoAdamW([p], measure_every=1, backend="torch")
    rng = torch.Generator().manual_seed(4)
    for _ in range(3):
        draw_grads([p], rng)
        opt.step()
    meter = opt.state_dict()["param_groups"][0]["thermo"]["meter"]
    assert meter.dtype == torch.float64
    other = ThermoAdamW([make([(500,)], torch.bfloat16)[0]], measure_every=1, backend="torch")
    other.load_state_dict(opt.state_dict())
    assert other.reading.total.sigma == opt.reading.total.sigma
    assert np.array_equal(other.reading.terms, opt.reading.terms, equal_nan=True)


def test_sparse_gradients_are_refused_as_torch_does():
    embedding = torch.nn.Embedding(10, 3, sparse=True)
    ours = ThermoAdamW(embedding.parameters(), measure_every=1, backend="torch")
    theirs = torch.optim.AdamW(embedding.parameters())
    embedding(torch.tensor([1, 2])).sum().backward()
    messages = []
    for opt in (ours, theirs):
        with pytest.raises(RuntimeError, match="sparse") as error:
            opt.step()
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    assert ours.reading is None


def test_rows_never_seen_do_not_count():
    """D counts elements that ever had a gradient: 2 rows of an embedding of 10."""
    embedding = torch.nn.Embedding(10, 3)
    opt = ThermoAdamW(embedding.named_parameters(), measure_every=1, ema_steps=1, backend="torch")
    embedding(torch.tensor([1, 2])).sum().backward()
    opt.step()
    reading = opt.reading.layers["weight"]
    assert reading.r == pytest.approx(1.0)  # first step: |U| = 1 on exactly the elements counted
    assert reading.numel == 30


def test_meta_tensors_are_not_read():
    """The pass runs on meta tensors: nothing in it asks a device for a value."""
    p = torch.nn.Parameter(torch.empty(300, device="meta"))
    layer = torch_pass.LayerTensors(
        param=p,
        grad=torch.empty(300, device="meta"),
        exp_avg=torch.empty(300, device="meta"),
        exp_avg_sq=torch.empty(300, device="meta"),
        max_exp_avg_sq=torch.empty(300, device="meta"),
        step=torch.empty((), device="meta"),
        beta1=0.9,
        beta2=0.999,
        eps=1e-8,
        amsgrad=True,
        maximize=True,
    )
    (parcel,) = torch_pass.measure([layer], torch.empty((), device="meta"))
    assert parcel.sums.shape == (1, len(Sum))
    assert parcel.sums.device.type == "meta"
