"""The layers' own units against the definition, in plain loops."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from thermoopt.controllers.base import Start
from thermoopt.controllers.units import FALLBACK, layer_units


def start_of(layers, groups=None, n_groups=None, fan_in=64):
    """A start of layers given as (ndim, rms), or (ndim, rms, fan_in)."""
    groups = groups or [0] * len(layers)
    n_groups = n_groups or max(groups, default=0) + 1
    return Start(
        names=tuple(f"l{i}" for i in range(len(layers))),
        group_of=tuple(groups),
        group_names=tuple(f"g{i}" for i in range(n_groups)),
        numel=tuple(10 * (i + 1) for i in range(len(layers))),
        ndim=tuple(layer[0] for layer in layers),
        rms=tuple(layer[1] for layer in layers),
        fan_in=tuple(layer[2] if len(layer) > 2 else fan_in if layer[0] >= 2 else 1 for layer in layers),
        lr=(1e-3,) * n_groups,
        wd=(0.0,) * n_groups,
        beta1=(0.9,) * n_groups,
        beta2=(0.999,) * n_groups,
    )


def default_rms(fan_in):
    """Torch's linear and convolution layers: uniform within 1 / sqrt(fan_in)."""
    return 1 / math.sqrt(3 * fan_in)


def test_torchs_default_layers_share_one_unit_whatever_their_width():
    layers = [(2, default_rms(n), n) for n in (10, 64, 64, 400)] + [(1, 0.05)]
    units = layer_units(start_of(layers))
    mean = sum(default_rms(n) for n in (10, 64, 64, 400)) / 4
    assert units.layer == pytest.approx([mean] * 5)
    assert set(units.factor.values()) == {1.0}


def test_a_layer_is_measured_by_how_its_gain_compares_with_the_median():
    """Residual outputs that start smaller move less, down to half."""
    layers = [(2, 0.02, 64)] * 3 + [(2, 0.014, 64), (2, 0.005, 64), (2, 0.06, 64)]
    units = layer_units(start_of(layers))
    mean = (3 * 0.02 + 0.014 + 0.005 + 0.06) / 6
    ratios = [1.0, 1.0, 1.0, 0.7, 0.5, 2.0]
    assert units.layer == pytest.approx([mean * ratio for ratio in ratios])


@pytest.mark.parametrize(
    "odd",
    [(2, 1.0, 64), (2, 1e-6, 64), (2, 0.0, 64), (3, 1e-5, 64), (1, 1.0), (1, 0.0)],
    ids=["look-up table", "near zero", "zero", "layer scale", "gain", "bias"],
)
def test_what_is_no_scale_takes_the_typical_unit(odd):
    layers = [(2, default_rms(64), 64)] * 4
    units = layer_units(start_of([*layers, odd]))
    assert units.layer == pytest.approx([default_rms(64)] * 5)


@pytest.mark.parametrize("times", [1.0, 10.0, 1000.0])
def test_a_network_that_starts_too_large_moves_in_hes_units(times):
    units = layer_units(start_of([(2, times * default_rms(64), 64)] * 3))
    gain = times / math.sqrt(3)
    assert units.layer == pytest.approx([min(gain, math.sqrt(2)) / 8] * 3)


def test_lora_measures_b_like_a():
    torch.manual_seed(0)
    a, b = torch.randn(8, 64) / 8, torch.zeros(64, 8)
    rms = [float(x.square().mean().sqrt()) for x in (a, b)]
    units = layer_units(start_of([(2, rms[0]), (2, rms[1])]))
    assert units.layer == pytest.approx([rms[0], rms[0]])


def test_without_matrices_the_layers_that_are_not_zero_give_the_unit():
    units = layer_units(start_of([(1, 4.0), (1, 0.0), (0, 0.25)]))
    assert units.layer == pytest.approx([1.0, 1.0, 1.0])
    units = layer_units(start_of([(1, 3.0), (2, 0.0)]))
    assert units.layer == pytest.approx([3.0, 3.0])


def test_a_model_of_zeros_falls_back():
    units = layer_units(start_of([(2, 0.0), (1, 0.0)]))
    assert units.layer.tolist() == [FALLBACK, FALLBACK]
    assert units.group == pytest.approx((FALLBACK,))
    assert units.factor == {"l0": 1.0, "l1": 1.0}


def test_the_unit_of_a_group_is_the_geometric_mean_of_its_layers():
    layers = [(2, 0.1, 16), (2, 0.1, 36), (2, 0.1, 25), (1, 0.0)]  # gains 0.4, 0.6, 0.5
    units = layer_units(start_of(layers, groups=[0, 0, 1, 1]))
    assert units.group == pytest.approx((0.1 * math.sqrt(0.8 * 1.2), 0.1))


def test_group_unit_times_factor_gives_the_layers_unit_back():
    """Within half a step of the rounding: 2**(1/16)."""
    rng = torch.Generator().manual_seed(3)
    rms = (0.05 * 10 ** (torch.rand(300, generator=rng, dtype=torch.float64) - 0.5)).tolist()
    groups = [i % 3 for i in range(300)]
    start = start_of([(2 if i % 5 else 1, r) for i, r in enumerate(rms)], groups)
    units = layer_units(start)
    ratios = [
        units.group[g] * units.factor[name] / s
        for g, name, s in zip(groups, start.names, units.layer, strict=True)
    ]
    worst = max(abs(math.log2(ratio)) for ratio in ratios)
    assert worst <= 1 / 16 * (1 + 1e-9)
    assert worst > 0.8 / 16  # and that is what the rounding costs, no less
    assert abs(sum(math.log2(ratio) for ratio in ratios) / 300) < 0.25 / 16  # without a bias


def test_layers_of_like_scale_share_one_factor():
    """A step takes one group a factor: initialisations that differ by chance must not make one each."""
    rng = torch.Generator().manual_seed(0)
    rms = [float((0.02 * torch.randn(64, 64, generator=rng)).square().mean().sqrt()) for _ in range(50)]
    factors = layer_units(start_of([(2, r) for r in rms])).factor
    assert set(factors.values()) == {1.0}
    assert list(factors) == [f"l{i}" for i in range(50)]


def test_units_told_before_stay_when_layers_join():
    """Else the rate of every bias would jump with the scale of a new matrix."""
    before = start_of([(2, 0.1), (1, 0.0)])
    units = layer_units(before)
    known = dict(zip(before.names, units.layer.tolist(), strict=True))
    after = start_of([(2, 0.1), (1, 0.0), (2, 0.14), (1, 0.0)], groups=[0, 0, 1, 1])
    joined = layer_units(after, known)
    assert joined.layer == pytest.approx([0.1, 0.1, 0.12 * 0.14 / 0.12, 0.12])
    assert joined.group[0] == units.group[0]
    assert {name: joined.factor[name] for name in known} == units.factor


def test_a_group_without_layers_has_the_typical_unit():
    units = layer_units(start_of([(2, 0.1), (2, 0.1)], groups=[0, 0], n_groups=2))
    assert units.group == pytest.approx((0.1, 0.1))


def test_no_layers_at_all():
    units = layer_units(start_of([], n_groups=1))
    assert units.layer.tolist() == []
    assert units.factor == {}
    assert units.group == (FALLBACK,)


def test_frozen_layers_in_the_groups_change_no_units():
    moving = [(2, default_rms(64)), (2, 0.0), (1, 1.0), (2, 2 * default_rms(64))]
    frozen = [(2, 5 * default_rms(64)), (2, 0.5 * default_rms(64)), (1, 3.0)]
    alone = layer_units(start_of(moving))
    start = start_of(frozen + moving)
    held = layer_units(replace(start, trainable=(False,) * 3 + (True,) * 4))
    np.testing.assert_array_equal(held.layer[3:], alone.layer)
    assert held.group == alone.group
    assert list(held.factor.values())[3:] == list(alone.factor.values())
    assert (held.layer > 0).all()
    assert layer_units(start).group != alone.group  # were they counted
    # with nothing else in the groups there are no others whose units they could change
    all_frozen = layer_units(replace(start, trainable=(False,) * 7))
    np.testing.assert_array_equal(all_frozen.layer, layer_units(start).layer)
