"""Averages that torch operations keep on a device, against the Python meter."""

import numpy as np
import pytest
import torch

from thermoopt.account.meter import STATE_ROWS, Meter
from thermoopt.account.reading import SKIP_CAUSES
from thermoopt.kernels import Sum
from thermoopt.kernels.averages import CAUSES, RUN, average_in, count
from thermoopt.physics import columns_of

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def on_device(device, n=4, ema_steps=7.0):
    run = torch.zeros(RUN, dtype=torch.float64, device=device)
    run[7] = 1 - 1 / ema_steps
    return torch.zeros(STATE_ROWS, n, dtype=torch.float64, device=device), run


def draw(rng, k):
    """Sums, step counts from 1 and constants of a step, as a meter takes them."""
    constants = {
        "lr": rng.random(k),
        "wd": rng.random(k),
        "beta1": np.full(k, 0.9),
        "beta2": np.full(k, 0.99),
    }
    constants["beta1"][-1] = 0.0
    return rng.random((len(Sum), k)), np.arange(1.0, k + 1), constants


def send(device, sums, t, constants):
    rows = np.stack([*constants.values(), t])
    return torch.from_numpy(sums.T.copy()).to(device), torch.from_numpy(rows).to(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("missing", [(), (Sum.B, Sum.MU)])
def test_averages_are_the_meters(device, missing):
    table, run = on_device(device)
    meter = Meter(7.0, missing)
    meter.add_group("group0", list("abcd"), [1] * 4)
    rng = np.random.default_rng(0)
    mask = torch.from_numpy(columns_of(missing)).to(device) if missing else None
    for number, layers in enumerate([[0, 1, 2, 3], [3, 1], None, [0, 1, 2, 3], [2]], start=1):
        count(run)
        if layers is None:
            continue
        given = draw(rng, len(layers))
        assert meter.update(number, np.array(layers), *given) is None
        index = None if len(layers) == 4 else torch.tensor(layers, device=device)
        average_in(table, run, index, *send(device, *given), missing=mask)
        np.testing.assert_allclose(table.cpu().numpy(), meter._state, rtol=1e-12)
    assert run.tolist() == [5, 4, 5, 0, 0, 0, 0, 1 - 1 / 7]


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_skipped(device):
    table, run = on_device(device)
    rng = np.random.default_rng(0)
    count(run)
    average_in(table, run, None, *send(device, *draw(rng, 4)))
    before = table.clone()
    sums, t, constants = draw(rng, 4)
    sums[Sum.TT, 2] = np.nan
    count(run)
    average_in(table, run, None, *send(device, sums, t, constants))
    count(run)
    flag = torch.ones(1, device=device)
    average_in(table, run, None, *send(device, sums, t, constants), found_inf=flag)
    count(run)
    sums = np.zeros((len(Sum), 4))
    average_in(table, run, None, *send(device, sums, t, {**constants, "lr": np.zeros(4)}), found_inf=flag * 0)
    np.testing.assert_array_equal(table.cpu(), before.cpu())  # NaN is NaN there
    assert run.tolist()[:7] == [3, 1, 1, 1, 1, 1, 0]
    assert CAUSES == SKIP_CAUSES
