"""Emergent force and symmetries: theorems 6 and 7, on nets and on the optimizer's own readings."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from thermoopt import ThermoAdamW
from thermoopt.irreversibility import emergent_force
from thermoopt.irreversibility.compare import (
    permutation,
    phi_ta,
    rescaling,
    rotation,
    sgd_field,
    symmetry_breaking,
)

FIRST, SECOND = ("0.weight", "0.bias"), ("2.weight",)


def network(activation=nn.ReLU, seed=1, ratio=3.0):
    """Two layers, the first ``ratio`` times larger, and a loss on a fixed batch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(4, 6), activation(), nn.Linear(6, 2)).double()
        x, y = torch.randn(30, 4).double(), torch.randn(30, 2).double()
    with torch.no_grad():
        for p in net[0].parameters():
            p *= ratio
        net[2].weight /= ratio
    return net, lambda model: F.mse_loss(model(x), y)


def value(net, loss, params):
    """Loss at other parameters."""
    return float(loss(lambda x: torch.func.functional_call(net, params, (x,))))


def energy(field, params, names=None):
    update = field(params)
    return sum(float(update[n].square().sum()) for n in names or update)


# ------------------------------------------------------------------ emergent force


def test_force_is_a_hessian_vector_product():
    net, loss = network(nn.Tanh)
    field = sgd_field(net, loss)
    found = emergent_force(field, field.params, 0.01)
    params = list(net.parameters())
    g = torch.autograd.grad(loss(net), params, create_graph=True)
    phi = 0.01 / 4 * sum(t.square().sum() for t in g)
    by_hand = torch.autograd.grad(phi, params)
    assert found.phi == pytest.approx(phi.item(), rel=1e-12)
    for name, expected in zip(field.params, by_hand, strict=True):
        torch.testing.assert_close(found.force[name], -expected, rtol=1e-9, atol=1e-14)
    assert found.asymmetry < 1e-12
    assert found.products == 1 + 2 * 8


def test_the_force_is_what_discrete_steps_feel():
    """One step follows the flow of U + grad phi to third order in eta, that of U alone to second."""
    net, loss = network(nn.Tanh, ratio=1.0)
    field = sgd_field(net, loss)

    def flat(point):
        return torch.cat([t.flatten() for t in point.values()])

    def flow(eta, with_force, steps=40):
        """Euler's midpoint in small steps."""
        at = dict(field.params)

        def velocity(p):
            u = field(p)
            if with_force:
                f = emergent_force(field, p, eta, probes=0).force
                return {n: -eta * (u[n] - f[n]) for n in u}
            return {n: -eta * u[n] for n in u}

        for _ in range(steps):
            half = {n: p + velocity(at)[n] / (2 * steps) for n, p in at.items()}
            v = velocity(half)
            at = {n: p + v[n] / steps for n, p in at.items()}
        return flat(at)

    def miss(eta, with_force):
        step = {n: p - eta * field(field.params)[n] for n, p in field.params.items()}
        return float((flat(step) - flow(eta, with_force, 20)).norm())

    for with_force, order in ((False, 2), (True, 3)):
        measured = math.log2(miss(0.1, with_force) / miss(0.05, with_force))
        assert measured == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize(("skew", "expected"), [(0.0, 0.0), (1.0, math.sqrt(2))])
def test_asymmetry_has_its_extremes(skew, expected):
    rng = torch.Generator().manual_seed(0)
    b = torch.randn(12, 12, generator=rng, dtype=torch.float64)
    matrix = b - b.T if skew else b + b.T
    theta = torch.randn(12, generator=rng, dtype=torch.float64)
    if skew:
        with pytest.warns(RuntimeWarning, match="not symmetric"):
            found = emergent_force(lambda t: matrix @ t, theta, 0.1)
    else:
        found = emergent_force(lambda t: matrix @ t, theta, 0.1)
    assert found.asymmetry == pytest.approx(expected, abs=1e-12)


def test_asymmetry_estimates_the_norm_it_says():
    rng = torch.Generator().manual_seed(0)
    j = torch.randn(30, 30, generator=rng, dtype=torch.float64) * 0.3 + 3 * torch.eye(30, dtype=torch.float64)
    exact = float((j - j.T).norm() / (math.sqrt(2) * j.norm()))
    with pytest.warns(RuntimeWarning, match="not symmetric"):
        found = emergent_force(lambda t: j @ t, torch.ones(30, dtype=torch.float64), 0.1, probes=400)
    assert found.asymmetry == pytest.approx(exact, rel=0.1)


# ------------------------------------------------------------------ theorem 6


@pytest.mark.parametrize("unit", [None, 2])
def test_rescaling_of_a_relu_net_is_broken(unit):
    """The form, its slope against finite differences of phi, the direction of the force."""
    net, loss = network()
    field = sgd_field(net, loss)
    symmetry = rescaling(FIRST, SECOND, unit=unit)
    moved = symmetry.act(field.params, 0.5)
    assert value(net, loss, moved) == pytest.approx(value(net, loss, field.params), rel=1e-12)
    found = symmetry_breaking(symmetry, field, field.params, 0.01)
    assert found.broken
    assert found.mismatch < 1e-12
    assert found.measured == pytest.approx(found.slope, rel=1e-9)
    ends = [energy(field, symmetry.act(field.params, s)) for s in (1e-4, -1e-4)]
    assert 0.01 / 4 * (ends[0] - ends[1]) / 2e-4 == pytest.approx(found.slope, rel=1e-5)
    if unit is None:
        first, second = energy(field, field.params, FIRST), energy(field, field.params, SECOND)
        assert found.value == pytest.approx(2 * (first - second), rel=1e-12)
        # phi(c) in closed form; the first layer is large and its gradient small
        bias = energy(field, field.params) - first - second
        for s in (0.3, -0.7):
            expected = first * math.exp(-2 * s) + second * math.exp(2 * s) + bias
            assert energy(field, symmetry.act(field.params, s)) == pytest.approx(expected, rel=1e-9)
        assert first < second
        force = emergent_force(field, field.params, 0.01).force
        q = symmetry.generator(field.params)
        assert sum(float((force[n] * q[n]).sum()) for n in q) == pytest.approx(-found.slope, rel=1e-9)
        assert found.slope > 0  # so the force shrinks the large layer


def test_sgd_keeps_the_balance_identity():
    """Δ(‖W₁‖² - ‖W₂‖²) = eta² (‖g₁‖² - ‖g₂‖²), every step of a ReLU net, to rounding."""
    net, loss = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    field = sgd_field(net, loss)

    def balance():
        size = {n: float(p.detach().square().sum()) for n, p in net.named_parameters()}
        return sum(size[n] for n in FIRST) - size["2.weight"]

    for _ in range(5):
        params = {n: p.detach().clone() for n, p in net.named_parameters()}
        predicted = 0.05**2 * (energy(field, params, FIRST) - energy(field, params, SECOND))
        before = balance()
        optimizer.zero_grad()
        loss(net).backward()
        optimizer.step()
        assert balance() - before == pytest.approx(predicted, rel=1e-8)
        # which is -2 eta dφ/ds: the emergent force's own rate
        slope = symmetry_breaking(rescaling(FIRST, SECOND), field, params, 0.05).slope
        assert predicted == pytest.approx(-2 * 0.05 * slope, rel=1e-9)


def test_rescaling_is_no_symmetry_of_a_tanh_net():
    net, loss = network(nn.Tanh)
    field = sgd_field(net, loss)
    assert symmetry_breaking(rescaling(FIRST, SECOND), field, field.params, 0.01).mismatch > 1e-3


# ------------------------------------------------------------------ theorem 7


def test_rotation_of_a_linear_net_is_kept():
    net, loss = network(nn.Identity)
    field = sgd_field(net, loss)
    symmetry = rotation(FIRST, SECOND, 1, 4)
    found = symmetry_breaking(symmetry, field, field.params, 0.01)
    assert not found.broken
    assert found.mismatch < 1e-12
    assert abs(found.measured) < 1e-12 * energy(field, field.params)
    moved = symmetry.act(field.params, 0.8)
    assert value(net, loss, moved) == pytest.approx(value(net, loss, field.params), rel=1e-12)
    assert not torch.allclose(moved["0.weight"], field.params["0.weight"])
    assert energy(field, moved) == pytest.approx(energy(field, field.params), rel=1e-12)
    # and the generator is the derivative of the action
    near = symmetry.act(field.params, 1e-6)
    for name, q in symmetry.generator(field.params).items():
        torch.testing.assert_close((near[name] - field.params[name]) / 1e-6, q, rtol=1e-4, atol=1e-5)


def test_permutations_and_signs_keep_phi_of_sgd():
    net, loss = network(nn.Tanh)
    field = sgd_field(net, loss)
    act = permutation(FIRST, SECOND, [3, 0, 1, 5, 4, 2], [1, -1, 1, 1, -1, -1])
    moved = act(field.params)
    assert value(net, loss, moved) == pytest.approx(value(net, loss, field.params), rel=1e-12)
    for measure in (phi_ta,):
        a, b = (measure(field, p, 0.1) for p in (field.params, moved))
        assert b.value == pytest.approx(a.value, rel=1e-9)
        assert b.norm == pytest.approx(a.norm, rel=1e-9)


def readings(kind, turn, steps=30):
    """Phi at every step on a quadratic seen in coordinates ``turn @ theta``, of SGD or of Adam."""
    rng = torch.Generator().manual_seed(0)
    n = turn.shape[0]
    scales = torch.logspace(0, 2, n, dtype=torch.float64)
    p = nn.Parameter(turn @ torch.randn(n, generator=rng, dtype=torch.float64))
    if kind == "sgd":
        optimizer = torch.optim.SGD([p], lr=1e-3)
    else:
        optimizer = ThermoAdamW([p], lr=1e-3, weight_decay=0.0, ema_steps=1, measure_every=1, eps=1e-12)
    out = []
    for _ in range(steps):
        optimizer.zero_grad()
        noise = torch.randn(n, generator=rng, dtype=torch.float64)
        theta = turn.T @ p
        ((scales * theta.square()).sum() / 2 + noise @ theta).backward()
        before = p.detach().clone()
        optimizer.step()
        if kind == "sgd":
            out.append(float((before - p.detach()).square().sum()) / 1e-3 / 4)
        else:
            out.append(optimizer.reading.total.phi)
    return torch.tensor(out, dtype=torch.float64)


def test_adam_keeps_signed_permutations_and_not_rotations():
    n = 8
    rng = torch.Generator().manual_seed(5)
    one = torch.eye(n, dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(n, n, generator=rng, dtype=torch.float64))
    signed = one[torch.randperm(n, generator=rng)] * torch.tensor([1, -1] * 4, dtype=torch.float64)
    torch.testing.assert_close(readings("adam", signed), readings("adam", one), rtol=1e-9, atol=0)
    torch.testing.assert_close(readings("sgd", turn), readings("sgd", one), rtol=1e-9, atol=0)
    torch.testing.assert_close(readings("sgd", signed), readings("sgd", one), rtol=1e-9, atol=0)
    apart = (readings("adam", turn) / readings("adam", one) - 1).abs()
    assert apart.max() > 0.05


# ------------------------------------------------------------------ bad input


def test_symmetries_check_their_arguments():
    net, loss = network()
    field = sgd_field(net, loss)
    with pytest.raises(ValueError, match=r"must not share a name, got '0\.bias'"):
        rescaling(FIRST, ("0.bias",))
    with pytest.raises(TypeError, match=r"first must be .* got '0\.weight'"):
        rescaling("0.weight", SECOND)
    with pytest.raises(KeyError, match="no parameter named 'head'"):
        rescaling(("head",), SECOND).generator(field.params)
    with pytest.raises(ValueError, match=r"j must be .* got 2"):
        rotation(FIRST, SECOND, 2, 2)
    with pytest.raises(ValueError, match=r"order must be .* got \[0, 0\]"):
        permutation(FIRST, SECOND, [0, 0])
    with pytest.raises(ValueError, match="signs must be"):
        permutation(FIRST, SECOND, [1, 0], [1, 2])
    with pytest.raises(ValueError, match="generator's value must have the names"):
        symmetry_breaking(lambda p: {"a": p["0.weight"]}, field, field.params, 0.1)
    with pytest.raises(ValueError, match=r"probes must be .* got -1"):
        emergent_force(field, field.params, 0.1, probes=-1)
    with pytest.raises(ValueError, match=r"eta must be .* got -1"):
        symmetry_breaking(rescaling(FIRST, SECOND), field, field.params, -1)


def test_a_generator_that_is_constant_breaks_nothing():
    a = torch.eye(3, dtype=torch.float64)
    found = symmetry_breaking(
        lambda t: torch.ones_like(t), lambda t: a @ t, torch.tensor([1.0, -2.0, 1.0]), 0.1
    )
    assert found.value == 0
    assert not found.broken
