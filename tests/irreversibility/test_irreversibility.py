"""The four measures against closed forms, against torch's own steps, and what they refuse."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.support.measures import ALL, quadratic
from thermoopt import ThermoAdamW
from thermoopt.irreversibility.compare import (
    adam_field,
    compare_irreversibility,
    compare_measures,
    momentum_field,
    phi_de,
    phi_leading,
    phi_st,
    phi_ta,
    phi_tr,
    sgd_field,
)


def network(activation=nn.Tanh, seed=0):
    """A small net and its loss on a fixed batch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(4, 6), activation(), nn.Linear(6, 2))
        x, y = torch.randn(20, 4), torch.randn(20, 2)
    return net, lambda model: F.mse_loss(model(x), y)


def expm(matrix):
    return torch.linalg.matrix_exp(matrix)


# ------------------------------------------------------------------ closed forms


@pytest.mark.parametrize("eta", [1e-3, 1e-2, 0.1, 1.0])
def test_all_measures_have_their_closed_forms_on_a_quadratic(eta):
    """Gradients from matrices, values as half of them times the parameters."""
    a, theta = quadratic()
    one = torch.eye(len(theta), dtype=torch.float64)
    forms = {
        phi_de: (expm(-eta * a) - one + eta * a) / eta,
        phi_tr: eta / 2 * a @ a,
        phi_ta: eta / 2 * a @ a,
        phi_st: eta / 2 * a @ (one - eta / 2 * a) @ (one - eta / 2 * a) @ a,
        phi_leading: eta / 2 * a @ a,
    }
    for measure, matrix in forms.items():
        found = measure(lambda t: a @ t, theta, eta)
        # differences of order eta**2 of numbers of order 1
        tolerance = {"rtol": 1e-7 if measure is phi_de else 1e-12 / eta, "atol": 0}
        torch.testing.assert_close(found.gradient, matrix @ theta, **tolerance)
        assert found.value == pytest.approx(float(theta @ matrix @ theta) / 2, rel=tolerance["rtol"])
        assert found.value_error <= 1e-9 * found.value


def test_slopes_of_the_deviations_on_a_quadratic():
    """TR and TA exact at every eta; DE and ST off by about -eta λ/3 and -eta λ."""
    a, theta = quadratic()
    compared = compare_measures(lambda t: a @ t, theta, np.logspace(-3, 0, 7))
    errors = compared.relative_errors
    weight = (theta @ a @ a @ a @ theta) / (theta @ a @ a @ theta)  # λ averaged as phi weights it
    small = compared.eta <= 0.01
    for name in ("TR", "TA"):
        np.testing.assert_allclose(errors[name], 0, atol=1e-11)
        assert compared.parts_at()[name] is None
        assert compared.slopes()[name].slope == pytest.approx(1, abs=1e-9)
    for name, factor in (("DE", -1 / 3), ("ST", -1.0)):
        np.testing.assert_allclose(
            errors[name][small], factor * compared.eta[small] * float(weight), rtol=0.01
        )
        assert compared.error_slopes()[name].slope == pytest.approx(1, abs=0.02)
    assert compared.sharpness == pytest.approx(1.0, rel=1e-3)
    assert compared.asymmetry < 1e-12


def test_values_are_differences_from_the_reference():
    a, theta = quadratic()
    start = theta.roll(1)
    for measure in ALL:
        whole = measure(lambda t: a @ t, theta, 0.1)
        rest = measure(lambda t: a @ t, start, 0.1)
        part = measure(lambda t: a @ t, theta, 0.1, reference=start)
        assert part.value == pytest.approx(whole.value - rest.value, rel=1e-7)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU])
def test_measures_agree_on_a_network_to_leading_order(activation):
    """Log-log slope 1, deviations that shrink linearly, gradients too."""
    net, loss = network(activation)
    compared = compare_irreversibility(net, loss, np.logspace(-4, -2, 4))
    for fits in (compared.slopes(), compared.error_slopes(), compared.gradient_slopes()):
        for name, fit in fits.items():
            assert fit.points == 4, name
            assert fit.slope == pytest.approx(1, abs=0.03), name
    for name, deviation in compared.relative_errors.items():
        assert abs(deviation[0]) < 1e-3, name
    assert compared.asymmetry < 1e-10


def test_gradients_are_those_of_the_leading_order_formed_by_hand():
    """(eta/2) H g with the whole Hessian."""
    net, loss = network()
    field = sgd_field(net, loss)
    names = list(field.params)
    theta = torch.cat([p.flatten() for p in field.params.values()])

    def energy(vector):
        parts = vector.split([p.numel() for p in field.params.values()])
        params = {n: part.view_as(field.params[n]) for n, part in zip(names, parts, strict=True)}
        return loss(lambda x: torch.func.functional_call(net, params, (x.double(),)))

    g = torch.autograd.functional.jacobian(energy, theta)
    expected = 0.5e-3 * torch.autograd.functional.hessian(energy, theta) @ g
    found = phi_leading(field, field.params, 1e-3)
    torch.testing.assert_close(
        torch.cat([t.flatten() for t in found.gradient.values()]), expected, rtol=1e-9, atol=1e-15
    )
    assert found.norm == pytest.approx(float(expected.norm()), rel=1e-9)


def test_the_value_is_a_potential_of_the_gradient():
    """Finite differences of the value of each measure along a random direction."""
    net, loss = network()
    field = sgd_field(net, loss)
    rng = torch.Generator().manual_seed(3)
    way = {n: torch.randn(p.shape, generator=rng, dtype=torch.float64) for n, p in field.params.items()}
    for measure in (phi_st, phi_leading):
        at = measure(field, field.params, 0.1)
        ends = [
            measure(field, {n: p + h * way[n] for n, p in field.params.items()}, 0.1).value
            for h in (1e-4, -1e-4)
        ]
        slope = sum(float((at.gradient[n] * way[n]).sum()) for n in way)
        assert (ends[0] - ends[1]) / 2e-4 == pytest.approx(slope, rel=1e-5)


# ------------------------------------------------------------------ fields of optimizers


def test_momentum_field_is_torchs_next_step():
    for options in ({}, {"nesterov": True}, {"dampening": 0.3}, {"weight_decay": 0.1}, {"maximize": True}):
        net, loss = network()
        net.double()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, **options)
        for _ in range(3):
            optimizer.zero_grad()
            loss(lambda x, net=net: net(x.double())).backward()
            optimizer.step()
        field = momentum_field(net, loss, optimizer)
        update, before = field(field.params), {n: p.detach().clone() for n, p in net.named_parameters()}
        optimizer.zero_grad()
        loss(lambda x, net=net: net(x.double())).backward()
        optimizer.step()
        for name, p in net.named_parameters():
            torch.testing.assert_close(before[name] - 0.05 * update[name], p.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, ThermoAdamW])
def test_adam_field_is_the_next_step_but_for_the_second_moment(kind):
    """With beta2 so near to 1 that v does not move, the next step is -lr U."""
    net, loss = network()
    net.double()
    optimizer = kind(net.parameters(), lr=0.01, betas=(0.9, 1 - 1e-9), weight_decay=0.0, eps=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        loss(lambda x: net(x.double())).backward()
        optimizer.step()
    field = adam_field(net, loss, optimizer)
    update, before = field(field.params), {n: p.detach().clone() for n, p in net.named_parameters()}
    scale = {n: optimizer.state[p]["exp_avg_sq"].clone() for n, p in net.named_parameters()}
    optimizer.zero_grad()
    loss(lambda x: net(x.double())).backward()
    optimizer.step()
    for name, p in net.named_parameters():
        # v after 3 steps is the mean of 3 squares, after 4 of 4
        v3 = scale[name] / (1 - (1 - 1e-9) ** 3)
        v4 = optimizer.state[p]["exp_avg_sq"] / (1 - (1 - 1e-9) ** 4)
        moved = (before[name] - p.detach()) / 0.01 * (v4.sqrt() + 1e-3) / (v3.sqrt() + 1e-3)
        torch.testing.assert_close(update[name], moved, rtol=1e-6, atol=1e-9)


def test_frozen_adam_agrees_in_its_own_metric_and_not_without():
    net, loss = network()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    for _ in range(10):
        optimizer.zero_grad()
        loss(net).backward()
        optimizer.step()
    grid = np.logspace(-5, -3.5, 3)
    compared = compare_irreversibility(net, loss, grid, field=partial(adam_field, optimizer=optimizer))
    assert compared.asymmetry < 1e-10
    for name, fit in compared.error_slopes().items():
        assert fit.slope == pytest.approx(1, abs=0.05), name
    field = adam_field(net, loss, optimizer)
    # phi in the metric 1/P is (eta/4) <m, U>
    update = field(field.params)
    by_hand = sum(float((update[n] ** 2 * field.metric[n]).sum()) for n in update) * 1e-3 / 4
    origin = {n: torch.zeros_like(p) for n, p in field.params.items()}
    away = field(origin)
    by_hand -= sum(float((away[n] ** 2 * field.metric[n]).sum()) for n in update) * 1e-3 / 4
    assert phi_leading(field, field.params, 1e-3).value == pytest.approx(by_hand, rel=1e-10)
    plain = compare_measures(field.function, field.params, grid)
    assert plain.asymmetry > 0.1
    assert plain.gradient_errors["TR"][0] > 0.1  # not even as eta goes to 0


def test_costs_are_counted():
    calls = 0
    a, theta = quadratic()

    def update(t):
        nonlocal calls
        calls += 1
        return a @ t

    for measure in ALL:
        calls = 0
        found = measure(update, theta, 0.1)
        assert found.evaluations + found.products == calls
    # U twice and after the step, and half a step
    assert phi_tr(update, theta, 0.1, integrate=False).evaluations == 4
    assert phi_ta(update, theta, 0.1, integrate=False).evaluations == 3


def test_nothing_of_the_model_moves():
    net, loss = network()
    net.register_buffer("count", torch.zeros(3))
    before = {n: t.clone() for n, t in net.state_dict().items()}
    field = sgd_field(net, loss)
    phi_ta(field, field.params, 0.1)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert net[0].weight.dtype == torch.float32


def test_structures_are_kept():
    a, theta = quadratic(4)
    whole = phi_ta(lambda t: a @ t, theta, 0.1)
    parts = [theta[:1], theta[1:].reshape(3, 1)]

    def listed(point):
        u = a @ torch.cat([point[0], point[1].flatten()])
        return [u[:1], u[1:].reshape(3, 1)]

    by_list = phi_ta(listed, parts, 0.1)
    assert isinstance(by_list.gradient, list)
    assert by_list.gradient[1].shape == (3, 1)
    assert by_list.value == pytest.approx(whole.value, rel=1e-12)

    def named(point):
        one, two = listed([point["one"], point["two"]])
        return {"two": two, "one": one}  # the order of the answer does not matter

    by_name = phi_ta(named, {"one": parts[0], "two": parts[1]}, 0.1)
    assert list(by_name.gradient) == ["one", "two"]
    assert by_name.value == pytest.approx(whole.value, rel=1e-12)


def test_attention_and_recurrence_have_products():
    torch.manual_seed(0)
    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    gru = nn.GRU(8, 8, batch_first=True)
    x = torch.randn(2, 5, 8)
    for model, loss in (
        (attention, lambda m: m(x).square().mean()),
        (gru, lambda m: m(x)[0].square().mean()),
    ):
        field = sgd_field(model, loss)
        found = phi_leading(field, field.params, 1e-3)
        half = phi_ta(field, field.params, 1e-3, integrate=False)
        assert half.norm == pytest.approx(found.norm, rel=0.02)


def test_the_comparison_is_a_table_and_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    a, theta = quadratic()
    compared = compare_measures(lambda t: a @ t, theta, [0.01, 0.1, 1.0], path=tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    lines = str(compared).splitlines()
    assert [line.split("|")[1].strip() for line in lines[1:]] == ["measure", "---", "DE", "TR", "TA", "ST"]
    assert "exact to rounding" in str(
        [t.get_text() for t in compared.plot().axes[1].get_legend().get_texts()]
    )
