"""The measuring pass in flat buffers against the float64 reference, and how many launches it takes."""

import pytest
import torch

from tests.support.launches import Launches
from thermoopt.kernels import Sum, reference_step
from thermoopt.kernels.flat_pass import ROW, FlatPass, is_flat
from thermoopt.kernels.torch_pass import LayerTensors

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SIZES = [1, 5, 0, ROW, ROW + 3, 19 * ROW + 11]


def world(sizes, dtype, device, amsgrad=False, maximize=False, fresh=()):
    rng = torch.Generator().manual_seed(0)
    layers = []
    for i, n in enumerate(sizes):
        draw = [(torch.randn(n, generator=rng) * s).to(device, dtype) for s in (1, 0.5, 0.1)]
        v, top = ((torch.rand(n, generator=rng) * 0.05).to(device, dtype) for _ in range(2))
        new = i in fresh
        layers.append(
            LayerTensors(
                param=draw[0],
                grad=draw[1],
                exp_avg=None if new else draw[2],
                exp_avg_sq=None if new else v,
                max_exp_avg_sq=top if amsgrad and not new else None,
                step=1.0 if new else 2.0 + i,
                beta1=0.9,
                beta2=0.99,
                eps=1e-8,
                amsgrad=amsgrad,
                maximize=maximize,
            )
        )
    return layers


def constants(layers, device):
    rows = [[x.beta1, x.beta2, x.eps, x.step, -1.0 if x.maximize else 1.0] for x in layers]
    return torch.tensor(rows, dtype=torch.float64, device=device).T.contiguous()


def reference(layers):
    """Sums of the same step in float64, and of absolute values: the size of each sum's terms."""
    out = []
    for how in (lambda x: x, torch.abs):
        cpu = [x if x is None else how(x.cpu().double()) for y in layers for x in _tensors(y)]
        p, g, m, v, top = (cpu[k::5] for k in range(5))
        m = [torch.zeros_like(a) if b is None else b for a, b in zip(p, m, strict=True)]
        v = [torch.zeros_like(a) if b is None else b for a, b in zip(p, v, strict=True)]
        top = [torch.zeros_like(a) if b is None else b for a, b in zip(p, top, strict=True)]
        first = layers[0]
        out.append(
            reference_step(
                p, g, m, v, top if first.amsgrad else [], [torch.tensor(x.step - 1) for x in layers],
                lr=1e-3, betas=(first.beta1, first.beta2), eps=first.eps, weight_decay=0.0,
                maximize=first.maximize and how is not torch.abs,
            )
        )  # fmt: skip
    return out


def _tensors(x):
    return x.param, x.grad, x.exp_avg, x.exp_avg_sq, x.max_exp_avg_sq


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("amsgrad", "maximize"), [(False, False), (True, True)])
def test_reference(device, dtype, amsgrad, maximize):
    """Fresh tensors among others; packs that end inside of a tensor."""
    layers = world(SIZES, dtype, device, amsgrad, maximize, fresh=(1, 4))
    before = [x.clone() for y in layers for x in _tensors(y) if x is not None]
    sums = FlatPass(SIZES, torch.device(device), pack=4 * ROW).measure(layers, constants(layers, device))
    true, size = reference(layers)
    assert torch.equal(sums[:, Sum.D].cpu(), true[:, Sum.D])
    error = (sums.cpu() - true).abs()
    assert (error <= 2e-6 * size).all(), (error / size).amax(0)
    after = [x for y in layers for x in _tensors(y) if x is not None]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_grad_scale(device):
    layers = world(SIZES, torch.float32, device)
    flat = FlatPass(SIZES, torch.device(device))
    plain = flat.measure(layers, constants(layers, device))
    for x in layers:
        x.grad = x.grad * 1024
    scaled = flat.measure(layers, constants(layers, device), torch.tensor(1024.0, device=device))
    torch.testing.assert_close(scaled, plain, rtol=1e-6, atol=0)


def test_launches_do_not_grow_with_tensors():
    """As many elements in 4 tensors and in 400; a foreach copy is one operation."""
    counts = []
    for tensors in (4, 400):
        sizes = [400 * ROW // tensors] * tensors
        layers = world(sizes, torch.float32, "cpu")
        flat, numbers = FlatPass(sizes, torch.device("cpu")), constants(layers, "cpu")
        with Launches() as launches:
            flat.measure(layers, numbers)
        counts.append(launches.n)
    assert counts[1] <= counts[0] < 80  # larger tensors take a round of adding more


def test_what_it_leaves_to_others():
    (x,) = world([8], torch.float32, "cpu")
    assert is_flat(x)
    assert not is_flat(LayerTensors(**{**vars(x), "eps": 0.0}))
    assert not is_flat(LayerTensors(**{**vars(x), "grad": torch.ones(4, 4).t()[:2].t()}))
    assert not is_flat(LayerTensors(**{**vars(x), "param": x.param.double()}))
    assert not is_flat(LayerTensors(**{**vars(x), "param": torch.ones(8, dtype=torch.complex64)}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_default_dtype_is_for_models(dtype):
    layers = world([ROW + 3, 5], torch.float32, "cpu")
    sums = FlatPass([ROW + 3, 5], torch.device("cpu")).measure(layers, constants(layers, "cpu"))
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        flat = FlatPass([ROW + 3, 5], torch.device("cpu"))
        assert torch.equal(flat.measure(layers, constants(layers, "cpu")), sums)
    finally:
        torch.set_default_dtype(before)
