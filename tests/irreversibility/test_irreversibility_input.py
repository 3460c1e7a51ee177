"""What the measures of irreversibility refuse, and what they warn of."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.support.measures import ALL, quadratic
from thermoopt.irreversibility.compare import (
    adam_field,
    compare_measures,
    momentum_field,
    phi_de,
    phi_leading,
    phi_st,
    phi_tr,
    sgd_field,
)


def network():
    """A small net and its loss on a fixed batch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
        x, y = torch.randn(20, 4), torch.randn(20, 2)
    return net, lambda model: F.mse_loss(model(x), y)


@pytest.mark.parametrize("measure", ALL)
def test_eta_is_checked(measure):
    a, theta = quadratic()
    for eta in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="eta must be"):
            measure(lambda t: a @ t, theta, eta)
    with pytest.raises(TypeError, match=r"eta must be .* got '1'"):
        measure(lambda t: a @ t, theta, "1")


def test_eta_outside_the_stable_range_is_told():
    a, theta = quadratic()
    with pytest.warns(RuntimeWarning, match="overshoots and grows"):
        phi_tr(lambda t: a @ t, theta, 3.0)
    with pytest.warns(RuntimeWarning, match="edge of stability at 2"):
        compare_measures(lambda t: a @ t, theta, [0.1, 3.0])


def test_kinks_are_told():
    """At the kink of an absolute value the flow stops and the step does not."""
    with pytest.warns(RuntimeWarning, match="kinks or jumps"):
        phi_de(torch.sign, torch.tensor([0.3, 1.0]), 1.0, integrate=False)


def test_an_update_that_is_no_function_is_refused():
    a, theta = quadratic()
    with pytest.raises(ValueError, match="must be a function of the parameters"):
        phi_tr(lambda t: a @ t + torch.rand(5), theta, 0.1)
    net, _ = network()
    field = sgd_field(net, lambda m: m(torch.randn(8, 4)).square().mean())
    with pytest.raises(ValueError, match="a batch drawn inside"):
        phi_st(field, field.params, 0.1)


def test_updates_that_cannot_be_measured_are_refused():
    a, theta = quadratic()
    with pytest.raises(ValueError, match="update must not vanish at params"):
        phi_tr(lambda t: a @ t, torch.zeros(5), 0.1)
    with pytest.raises(ValueError, match="without a derivative"):
        phi_leading(lambda t: (a @ t).detach(), theta, 0.1)
    with pytest.raises(ValueError, match="must be finite"):
        phi_tr(lambda t: t / 0, theta, 0.1)
    with pytest.raises(ValueError, match="shapes"):
        phi_tr(lambda t: t[:2], theta, 0.1)
    with pytest.raises(TypeError, match=r"update must be .* got 3"):
        phi_tr(3, theta, 0.1)
    with pytest.raises(TypeError, match=r"complex64"):
        phi_tr(lambda t: t, torch.ones(2, dtype=torch.complex64), 0.1)
    with pytest.raises(ValueError, match="metric must be > 0 everywhere"):
        phi_tr(lambda t: a @ t, theta, 0.1, metric=torch.zeros(5))
    with pytest.raises(ValueError, match="two step sizes"):
        compare_measures(lambda t: a @ t, theta, [0.1])


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda m: m(torch.ones(3, 4)).argmax(1).double().mean(), "must be differentiable"),
        (lambda m: m(torch.ones(3, 4)).mean().detach(), "must be differentiable"),
        (lambda m: m(torch.ones(3, 4)).float().mean(), "float32"),
        (lambda m: m(torch.ones(3, 4)).mean() / 0, "loss must be finite"),
        (
            lambda m: torch.ones((), dtype=torch.float64, requires_grad=True) * 2,
            "must depend on the parameters",
        ),
    ],
)
def test_losses_without_a_meaning_are_refused(loss, message):
    with pytest.raises(ValueError, match=message):
        sgd_field(network()[0], loss)


def test_losses_that_are_no_scalars_are_refused():
    net = network()[0]
    for loss in (lambda m: 1.0, lambda m: m(torch.ones(3, 4))):
        with pytest.raises(TypeError, match="loss must return a tensor of one element, got"):
            sgd_field(net, loss)
    with pytest.raises(TypeError, match="model must be"):
        sgd_field(3, lambda m: m)


def test_stateful_modules_are_told():
    x = torch.randn(8, 4)
    for layer in (nn.Dropout(0.1), nn.MultiheadAttention(4, 1, dropout=0.1)):
        model = nn.Sequential(nn.Linear(4, 4), layer)
        with pytest.raises(ValueError, match="active dropout, got it in '1'"):
            sgd_field(model, lambda m: m(x).square().mean())
    dropping = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)).eval()
    sgd_field(dropping, lambda m: m(x).square().mean())
    normed = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with pytest.warns(RuntimeWarning, match="batch normalisation in training mode"):
        sgd_field(normed, lambda m: m(x).pow(3).mean())
    assert float(normed[1].num_batches_tracked) == 0
    sgd_field(normed.eval(), lambda m: m(x).pow(3).mean())


def test_low_precision_is_told():
    net, loss = network()
    with pytest.warns(RuntimeWarning, match=r"bfloat16, which rounds away changes below 7\.8e-03"):
        sgd_field(net.bfloat16(), loss)


def test_optimizers_that_do_not_fit_are_refused():
    net, loss = network()
    with pytest.raises(TypeError, match=r"optimizer must be ThermoAdamW.* got SGD"):
        adam_field(net, loss, torch.optim.SGD(net.parameters()))
    with pytest.raises(TypeError, match=r"optimizer must be torch.optim.SGD.* got AdamW"):
        momentum_field(net, loss, torch.optim.AdamW(net.parameters()))
    with pytest.raises(ValueError, match=r"without moments of '0\.weight'"):
        adam_field(net, loss, torch.optim.AdamW(net.parameters()))
    with pytest.raises(ValueError, match=r"one without '2\.weight'"):
        momentum_field(net, loss, torch.optim.SGD(net[0].parameters(), lr=0.1))
    two = torch.optim.SGD(
        [{"params": net[0].parameters(), "lr": 0.1}, {"params": net[2].parameters(), "lr": 1.0}]
    )
    with pytest.raises(ValueError, match="must have one lr"):
        momentum_field(net, loss, two)
