"""A checkpoint saved by an earlier commit (``data/make_checkpoint.py`` made it) loads bit for bit."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.checkpoints.make_checkpoint import MORE, STEPS, optimizer, parameters, run
from thermoopt.kernels import native

OLDER = sorted((Path(__file__).parents[1] / "support" / "checkpoints").glob("checkpoint_*.pt"))


def leaves(x, path=""):
    if isinstance(x, dict):
        for key, value in x.items():
            yield from leaves(value, f"{path}/{key}")
    elif isinstance(x, (list, tuple)):
        for i, value in enumerate(x):
            yield from leaves(value, f"{path}/{i}")
    else:
        yield path, x


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("path", OLDER, ids=lambda path: path.stem)
def test_loads_bit_for_bit(path, backend):
    if backend == "native" and not native.available():
        pytest.skip("the native kernel is not built")
    saved = torch.load(path, weights_only=True)[backend]
    params = parameters()
    opt = optimizer(params, backend)
    opt.load_state_dict(saved["state"])
    with torch.no_grad():
        for (_, p), value in zip(params, saved["params"], strict=True):
            p.copy_(value)
    now = dict(leaves(opt.state_dict()))
    for key, value in leaves(saved["state"]):
        same = torch.equal(now[key], value) if isinstance(value, torch.Tensor) else now[key] == value
        assert same, key
    # the run goes on as it did there, but for what another processor rounds otherwise
    run(opt, params, range(STEPS + 1, STEPS + MORE + 1))
    for (_, p), value in zip(params, saved["later"], strict=True):
        torch.testing.assert_close(p.detach(), value, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(opt.reading.terms, saved["terms"].numpy(), rtol=1e-5, atol=1e-9)
