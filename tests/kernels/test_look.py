"""Where tensors lie, as DLPack's C exchange API tells it, against what torch says of each."""

import numpy as np
import pytest
import torch

from thermoopt.kernels import native
from thermoopt.kernels.look import Look
from thermoopt.kernels.native_checks import CODES

pytestmark = pytest.mark.skipif(not Look.available(), reason="torch has no C exchange API")

GOOD = [
    torch.randn(3, 4),
    torch.nn.Parameter(torch.randn(5)),
    torch.randn(()),
    torch.randn(6, 2, dtype=torch.bfloat16),
    torch.randn(8, dtype=torch.float16)[3:],
    torch.randn(0, 3),
    torch.randn(1, 4, 1).transpose(0, 2),
]
BAD = {
    "strided": torch.randn(4, 3).t(),
    "more elements": torch.randn(13),
    "float64": torch.randn(12, dtype=torch.float64),
    "float16": torch.randn(12, dtype=torch.float16),
    "integers": torch.ones(12, dtype=torch.int32),
    "complex": torch.randn(12, dtype=torch.complex64),
    "sparse": torch.randn(12).to_sparse(),
    "meta": torch.randn(12, device="meta"),
}


def look_at(tensors):
    return Look(
        np.array([x.numel() for x in tensors], np.int64),
        np.array([CODES[x.dtype] for x in tensors], np.int32),
    )


def test_addresses_are_those_of_torch():
    look = look_at(GOOD)
    assert look(GOOD).tolist() == [x.data_ptr() for x in GOOD]
    moved = [x.detach().clone() for x in GOOD]
    assert look(tuple(moved)).tolist() == [x.data_ptr() for x in moved]
    assert look(GOOD[1:]) is None


@pytest.mark.parametrize("kind", BAD)
def test_what_is_not_as_expected_is_refused(kind):
    look = look_at(GOOD)
    assert look([BAD[kind], *GOOD[1:]]) is None
    assert look([*GOOD[:1], *GOOD[1:]]) is not None  # no error is left behind


def test_another_device_is_refused():
    numel, dtype = np.array([12], np.int64), np.array([CODES[torch.float32]], np.int32)
    for device in (torch.device("cuda"), torch.device("cuda", 1), torch.device("meta")):
        assert Look(numel, dtype, device)([torch.randn(12)]) is None
    assert Look(numel, dtype, torch.device("cpu"))([torch.randn(12)]) is not None


def test_like_is_for_tensors_it_can_look_at():
    look = Look.like(GOOD)
    assert look(GOOD).tolist() == [x.data_ptr() for x in GOOD]
    assert look([BAD["strided"], *GOOD[1:]]) is None
    for kind in ("strided", "float64", "meta"):
        assert Look.like([BAD[kind]]) is None


def test_steps_are_the_same_without_it(monkeypatch):
    def run():
        rng = torch.Generator().manual_seed(0)
        p, m, v = ([torch.randn(n, generator=rng).abs() for n in (40, 3)] for _ in range(3))
        steps = [torch.zeros(()) for _ in p]
        plan = native.Plan(p, m, v, [None, None], steps)
        numbers = {"lr": 0.1, "weight_decay": 0.01, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
        sums = [plan.step([torch.randn(x.shape, generator=rng) for x in p], **numbers) for _ in range(3)]
        return p, sums

    mine = run()
    monkeypatch.setattr(Look, "available", staticmethod(lambda: False))
    theirs = run()
    assert all(map(torch.equal, mine[0], theirs[0]))
    np.testing.assert_array_equal(mine[1], theirs[1])
