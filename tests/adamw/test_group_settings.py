"""Settings of parameter groups that part and meet again in mid-run."""

import pytest
import torch

from tests.support.small_net import assert_same_bits, model, train
from thermoopt import ThermoAdamW

SETTINGS = ("lr", "weight_decay", "betas", "eps", "maximize")
ONE_WAY = {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "maximize": False}
ANOTHER = {"lr": 3e-3, "weight_decay": 0.0, "betas": (0.8, 0.999), "eps": 1e-6, "maximize": True}


@pytest.mark.parametrize("flags", [{}, {"fused": True}, {"foreach": False}], ids=["auto", "fused", "loop"])
@pytest.mark.parametrize("names", [*((name,) for name in SETTINGS), SETTINGS], ids="-".join)
def test_settings_that_part_and_meet_again_are_those_of_torch(names, flags):
    """As rates of two groups do that fall to one floor: what was one number per layer is one number again."""
    nets, opts = [model(), model()], []
    for net, kind in zip(nets, (ThermoAdamW, torch.optim.AdamW), strict=True):
        groups = [{"params": list(net[0].parameters())}, {"params": list(net[2].parameters())}]
        theirs = flags or {"fused": True}  # "auto" on CPU has the bits of torch's fused step
        opts.append(kind(groups, **ONE_WAY, **(flags if kind is ThermoAdamW else theirs)))
    for at, values in enumerate([ONE_WAY, ANOTHER, ONE_WAY, ONE_WAY, ANOTHER, ANOTHER, ONE_WAY]):
        for net, opt in zip(nets, opts, strict=True):
            opt.param_groups[1].update({name: values[name] for name in names})
            train(net, opt, 1, start=at)
    if not flags and opts[0].backend != "native":
        for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
            torch.testing.assert_close(p, q)
        return
    assert_same_bits(nets[0], opts[0], nets[1], opts[1])
