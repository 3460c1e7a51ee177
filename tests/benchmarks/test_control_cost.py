"""What a controller costs: shares by hand, and the table that they are laid out in."""

import pytest

pytest.importorskip("scipy")

from thermoopt.benchmarks.control.cost import BATCH, OPTIMIZERS, Network, shares, table


def found(rounds=7):
    steps = {name: [2.0] * rounds for name in OPTIMIZERS} | {"autotune": [3.0] * (rounds - 1) + [2.0]}
    return {"parameters": 5_000_000, "tensors": 75, "load": 1.0, "steps": steps, "passes": [18.0] * rounds}


def test_shares_are_of_the_same_optimizer_without_a_controller_round_by_round():
    made = shares(found(), "autotune")
    assert made == {
        "of an optimizer step": [0.5] * 6 + [0.0],
        "of a training step": [pytest.approx(0.05)] * 6 + [0.0],
    }
    text = table(found())
    assert "| autotune | an optimizer step | 50.0% | 0.0% to 50.0% | 3% |" in text
    assert "| autotune, anytime | a training step | 0.0% | 0.0% to 0.0% | 1% |" in text
    assert f"5.0 M parameters in 75 tensors, on batches of {BATCH}" in text


def test_the_network_has_five_million_parameters():
    assert sum(p.numel() for p in Network().parameters()) == pytest.approx(5e6, rel=0.02)
