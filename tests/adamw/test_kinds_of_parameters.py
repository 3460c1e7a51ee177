"""What a model hands over besides plain weights: packed and float8 ones, learned rates, numbers of numpy."""

import copy
import io
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from thermoopt import Observer, ThermoAdamW, ThermoScheduler, autotune, diagnose
from thermoopt.tensors import root_mean_squares

STEPS = 120
CODES = (torch.uint8, torch.int8, torch.int32, torch.bool)
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


class Packed(nn.Module):
    """A network beside frozen weights that are no ordinary numbers, as quantised ones under LoRA."""

    def __init__(self, dtype):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
        self.codes = nn.Parameter(torch.ones(8, 32).to(dtype), requires_grad=False)


def train(model, optimizer, *others):
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = F.mse_loss(model.net(x), x[:, :1] * x[:, 1:2])
        loss.backward()
        optimizer.step()
        for other in others:
            other.step(loss) if isinstance(other, Observer) else other.step()
    return [p.detach() for p in model.net.parameters()]


@pytest.mark.parametrize("dtype", [*CODES, *FLOAT8], ids=str)
def test_frozen_codes_and_float8_are_let_be(dtype):
    """Bits of torch's AdamW on the rest, a controller that decides as if they were not there, no finding."""
    for make, fused in ((ThermoAdamW, True), (torch.optim.AdamW, None)):
        model = Packed(dtype)
        expected = train(model, torch.optim.AdamW(model.net.parameters(), lr=1e-3, fused=fused))
        model = Packed(dtype)
        optimizer = make(model.named_parameters(), lr=1e-3)
        observer = Observer(model, optimizer, track=("rho", "distance"))
        got = train(model, optimizer, observer)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        assert diagnose(observer).healthy
        assert "codes" not in observer.reading.layers
    model = Packed(dtype)
    tuned = ThermoAdamW(model.named_parameters(), controller=autotune(STEPS))
    got = train(model, tuned)
    assert torch.isfinite(got[0]).all()
    copy.deepcopy(tuned).load_state_dict(tuned.state_dict())
    model = Packed(dtype)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = ThermoScheduler(sgd, STEPS, shape="constant", controller=autotune(STEPS))
    assert torch.isfinite(train(model, sgd, scheduler)[0]).all()
    assert torch.equal(model.codes.float(), torch.ones(8, 32))


def test_norms_of_codes_are_unknown():
    values = torch.tensor([[3.0, -4.0]])
    kinds = [values.to(dtype) for dtype in (*CODES, *FLOAT8, torch.bfloat16)]
    assert root_mean_squares(kinds).tolist() == pytest.approx([0.0] * 6 + [12.5**0.5])


def test_a_learned_rate_has_the_gradient_that_torch_gives_it_and_no_warning():
    grads = []
    for make in (torch.optim.AdamW, ThermoAdamW):
        weight = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
        lr, decay = torch.tensor(0.1, requires_grad=True), torch.tensor(0.05, requires_grad=True)
        param = weight.clone()
        param.retain_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer = make([param], lr=lr, weight_decay=decay, differentiable=True)
            param.square().sum().backward(retain_graph=True)
            optimizer.step()
            param.square().sum().backward()
        grads.append((lr.grad, decay.grad, weight.grad))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("steps", [np.int64(STEPS), np.ceil(STEPS - 0.5), np.float32(STEPS)], ids=repr)
def test_lengths_of_numpy_are_lengths_and_leave_plain_numbers_in_checkpoints(steps):
    finals = []
    for total in (STEPS, steps):
        model = Packed(torch.int8)
        optimizer = ThermoAdamW(model.named_parameters(), controller=autotune(total))
        finals.append(train(model, optimizer))
        assert type(optimizer.controller.length) is int
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        torch.load(file, weights_only=True)
    assert all(torch.equal(a, b) for a, b in zip(*finals, strict=True))
    adamw = torch.optim.AdamW([nn.Parameter(torch.ones(2))])
    scheduler = ThermoScheduler(adamw, np.int64(STEPS), np.int32(10))
    file = io.BytesIO()
    torch.save(scheduler.state_dict(), file)
    file.seek(0)
    torch.load(file, weights_only=True)


def test_layers_with_sparse_gradients_are_not_called_dead():
    torch.manual_seed(0)
    model = nn.ModuleDict({"table": nn.Embedding(30, 8, sparse=True), "out": nn.Linear(8, 1)})
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    observer = Observer(model, sgd)

    def steps(n):
        for _ in range(n):
            sgd.zero_grad()
            out = model["out"](model["table"](torch.randint(30, (16,))))
            loss = (out - torch.randn(16, 1)).square().mean()
            loss.backward()
            sgd.step()
            observer.step(loss)

    with pytest.warns(RuntimeWarning, match=r"sparse gradients are not measured.*table\.weight"):
        steps(20)
    steps(STEPS)
    assert observer.sparse == {"table.weight"}
    assert not [f for f in diagnose(observer).findings if f.kind == "dead_layer"]
