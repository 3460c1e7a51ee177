"""A checkpoint saved by an earlier commit loads bit for bit."""

from pathlib import Path

import numpy as np
import pytest
import torch

from thermoopt import ThermoAdamW
from thermoopt.kernels import native

OLDER = sorted(Path(__file__).parents[1].rglob("checkpoint_*.pt"))
OF_A_CONTROLLER = ("controller", "travel", "loss")
"""What its controller adds to a group: a law of an earlier version refuses to go on, by name."""


def leaves(x, path=""):
    if isinstance(x, dict):
        for key, value in x.items():
            if not str(key).startswith(OF_A_CONTROLLER):
                yield from leaves(value, f"{path}/{key}")
    elif isinstance(x, (list, tuple)):
        for i, value in enumerate(x):
            yield from leaves(value, f"{path}/{i}")
    else:
        yield path, x


def test_there_is_one():
    assert OLDER


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("path", OLDER, ids=lambda path: path.stem)
def test_loads_bit_for_bit(path, backend):
    if backend == "native" and not native.available():
        pytest.skip("the native kernel is not built")
    saved = torch.load(path, weights_only=True)[backend]
    params = [torch.nn.Parameter(p.clone()) for p in saved["params"]]
    groups = [
        {"params": [("a", params[0])], "name": "matrices"},
        {"params": [("b", params[1])], "weight_decay": 0.0},
    ]
    opt = ThermoAdamW(groups, backend=backend)
    del saved["state"]["param_groups"][0]["thermo"]["controller"]
    opt.load_state_dict(saved["state"])
    now = dict(leaves(opt.state_dict()))
    compared = 0
    for key, value in leaves(saved["state"]):
        same = torch.equal(now[key], value) if isinstance(value, torch.Tensor) else now[key] == value
        assert same, key
        compared += 1
    assert compared > 60
    # and it goes on: the average keeps what it had
    taken = opt.steps
    assert taken == saved["state"]["param_groups"][0]["thermo"]["step"]
    for p in params:
        p.grad = torch.zeros_like(p)
    opt.step()
    assert opt.steps == taken + 1
    assert np.isfinite(opt.reading.terms[0]).all()
