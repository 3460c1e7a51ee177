"""What a capture refuses or leaves out, as far as that needs no graph: the rest is in test_cuda.py."""

import numpy as np
import pytest
import torch

from tests.support.controllers import Follow
from thermoopt import ThermoAdamW
from thermoopt.adamw import control_loop, optimizer, torch_backend
from thermoopt.adamw.rates import Rates, Rows, kernel_rates
from thermoopt.tensors import transit


def make(dtype=torch.float32, **options):
    p = torch.nn.Parameter(torch.ones(3, dtype=dtype))
    p.grad = torch.ones_like(p)
    return ThermoAdamW([("w", p)], backend="torch", **options)


@pytest.fixture
def captured(monkeypatch):
    """Let steps be told that they are captured; torch's own check needs a graph."""

    def begin():
        for module in (optimizer, torch_backend, control_loop, transit):
            monkeypatch.setattr(module, "capturing", lambda: True)
        monkeypatch.setattr(optimizer, "check_capturable", lambda opt: None)

    return begin


def test_a_controller_needs_rates_that_the_graph_reads(captured):
    opt = make(controller=Follow())
    opt.step()
    captured()
    before = opt.param_groups[0]["params"][0].clone()
    with pytest.raises(RuntimeError, match="only with backend 'triton', got 'torch'"):
        opt.step()
    assert torch.equal(opt.param_groups[0]["params"][0], before)
    assert opt.steps == 1


def test_a_step_that_cannot_be_measured_in_a_graph_is_taken_unmeasured(captured):
    opt = make(torch.float64, measure_every=1)
    opt.step()
    captured()
    with pytest.warns(RuntimeWarning, match="this captured step is not measured"):
        opt.step()
    assert opt.reading.step == 1


def test_there_must_have_been_a_capture():
    with pytest.raises(RuntimeError, match="no step of this optimizer was captured"):
        make().before_replay()


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_rate_on_a_device_is_one_number_or_one_a_tensor(shape, groups):
    """torch takes a learning rate of shape [1] as well; ``meta`` stands in for the device."""
    lr = torch.full(shape, 0.1, device="meta")
    own = [Rates(lr, 0.0, None, True, lr) for _ in range(groups)]
    rows = Rows(np.repeat(np.arange(groups), 3), np.tile(np.arange(3), groups))
    given = kernel_rates(own, rows)["lr"]
    assert given.device.type == "meta"
    assert given.shape == (() if groups == 1 else (6,))
