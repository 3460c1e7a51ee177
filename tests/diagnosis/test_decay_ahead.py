"""Weight decay whose forecast lies beyond the end of the run."""

import pytest
import torch
from torch import nn

from thermoopt import Observer, ThermoAdamW, ThermoScheduler, autotune, diagnose
from thermoopt.physics import NU


def kinds(run):
    return {finding.kind for finding in diagnose(run).findings if finding.confidence != "LOW"}


def train(opt, net, x, y, steps, scheduler=None):
    observer = Observer(net, opt, log_every=1)
    for _ in range(steps):
        opt.zero_grad()
        loss = nn.functional.mse_loss(net(x), y)
        loss.backward()
        opt.step()
        if scheduler is not None:
            scheduler.step()
        observer.step(loss=loss)
    ends = {name: float(p.detach().norm()) for name, p in net.named_parameters()}
    return observer, {name: ends[name] / observer.start_norms[name] ** 0.5 for name in observer.matrices}


def regression(seed=0):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(512, 8, generator=rng)
    y = x[:, :1] * x[:, 1:2] + x[:, 2:3].sin()
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.BatchNorm1d(32), nn.Linear(32, 1)), x, y


@pytest.mark.parametrize("seed", [0, 1])
def test_decay_that_the_default_raises_is_no_collapse(seed):
    net, x, y = regression(seed)
    opt = ThermoAdamW(net.named_parameters(), controller=autotune(100))
    observer, norms = train(opt, net, x, y, 100)
    assert max(a.new for a in opt.controller.log if a.kind == "wd") > 10  # it does raise it
    assert min(norms.values()) > NU
    assert kinds(observer) == set()


@pytest.mark.parametrize("length", [100, 600])
def test_a_norm_falls_as_far_as_the_run_goes_on(length):
    """The same hundred steps, which in a run that ends with them leave most of every norm."""
    net, x, y = regression()
    opt = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.6)
    observer, norms = train(opt, net, x, y, 100, ThermoScheduler(opt, length, shape="wsd"))
    assert diagnose(observer).facts["length"] == length
    assert min(norms.values()) > NU
    assert ("weight_decay_collapse" in kinds(observer)) is (length == 600)
    if length == 600:
        scaled, _, _ = regression()
        opt = torch.optim.AdamW(scaled.parameters(), lr=1e-2, weight_decay=0.6)
        _, norms = train(opt, scaled, x, y, 600, ThermoScheduler(opt, length, shape="wsd"))
        assert min(norms.values()) < NU  # what was forecast


def test_decay_that_is_too_high_is_found_in_a_run_of_known_length():
    net, x, y = regression()
    opt = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=3.0)
    observer, norms = train(opt, net, x, y, 200, ThermoScheduler(opt, 200, shape="wsd"))
    assert diagnose(observer).facts["length"] == 200
    assert min(norms.values()) < NU
    assert "weight_decay_collapse" in kinds(observer)


@pytest.mark.parametrize(
    ("length", "memory", "found"),
    [
        (400, 81, False),
        (400, 60, True),
        (300, 61, False),
        (300, 40, True),
        (None, 90, True),
        (None, 110, False),
    ],
)
def test_decay_to_which_a_controller_confines_is_no_collapse(length, memory, found):
    """lr * decay is 1 / memory throughout; noise holds the rms at lr sqrt(memory / 2)."""
    net = nn.Linear(8, 8, bias=False)
    nn.init.normal_(net.weight, std=1.2e-2 * (memory / 2) ** 0.5)
    opt = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=100 / memory)
    scheduler = None if length is None else ThermoScheduler(opt, length, shape="wsd")
    observer = Observer(net, opt, log_every=1)
    for step in range(299):
        net.weight.grad = torch.randn(8, 8, generator=torch.Generator().manual_seed(step))
        opt.step()
        if scheduler is not None:
            scheduler.step()
        observer.step(loss=1.0)
    report = diagnose(observer)
    assert report.facts.get("length") == length
    assert ("1/(lr decay)" in {finding.measure for finding in report.findings}) is found


@pytest.mark.parametrize(
    ("decay", "found"),
    [(0.011, False), (0.1, True)],  # within 90 and 10 steps; weights rest at 1 / decay at most
)
def test_weights_that_grow_against_short_decay_have_not_collapsed(decay, found):
    """Points on their way from a cloud about the origin to places some ten times as far away."""
    rng = torch.Generator().manual_seed(0)
    places = nn.Parameter(torch.randn(80, 2, generator=rng))
    target = 10 * torch.randn(80, 2, generator=rng).sign()
    opt = torch.optim.AdamW([places], lr=1.0, weight_decay=decay)
    observer = Observer(None, opt, log_every=1)
    start = float(places.detach().norm())
    for _ in range(300):
        opt.zero_grad()
        loss = (places - target + 3 * torch.randn(80, 2, generator=rng)).square().mean()
        loss.backward()
        opt.step()
        observer.step(loss=loss)
    assert float(places.detach().norm()) > 3 * start
    share = float(places.detach().norm()) / 160**0.5 * decay  # of the largest step that Adam takes
    assert (share > 0.3) is found
    assert ("weight_decay_collapse" in kinds(observer)) is found
