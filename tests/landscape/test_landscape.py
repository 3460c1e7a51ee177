"""The river and the valley: closed forms against simulation and brute force; noise against plain loops."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.processes import run_script
from thermoopt import ThermoAdamW
from thermoopt.landscape.gradient_noise import NoiseSpectrum, gradient_noise, noise_spectrum
from thermoopt.landscape.motion import average, simulate
from thermoopt.landscape.river_valley import RULES, RiverValley, greedy_rates, relaxation

WALLS = (0.3, 1.0, 3.0)


def in_equilibrium(valley, eta, rule, replicas, seed=1, y=0.0):
    """Starting points of the right variance."""
    scale = np.sqrt(valley.temperature(eta, rule, y) / valley.curvature(y))
    return scale * np.random.default_rng(seed).standard_normal((replicas, valley.modes))


def hold(valley, eta, rule="sgd", steps=1500, replicas=1500, every=10, **options):
    x0 = in_equilibrium(valley, eta, rule, replicas)
    return simulate(valley, np.full(steps, eta), rule=rule, replicas=replicas, every=every, x0=x0, **options)


def agree(mean, expected, within=0.02, sigmas=4.0):
    """Within 2 % of the closed form, and the difference no larger than four standard errors or 1 %."""
    gap = np.abs(np.asarray(mean.value) - expected)
    np.testing.assert_array_less(gap, within * np.abs(expected))
    np.testing.assert_array_less(gap, np.maximum(sigmas * np.asarray(mean.error), 0.01 * np.abs(expected)))


# ---------------------------------------------------------------- equilibrium


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("eta", [0.05, 0.2])
def test_thermal_loss(rule, eta):
    valley = RiverValley(WALLS, noise=1.3)
    measured = hold(valley, eta, rule, steps=2500, replicas=2500).fast_losses(since=500)
    agree(measured, valley.thermal_loss(eta, rule))


@pytest.mark.parametrize(("rule", "limit"), [("sgd", 0.25), ("sign", 0.3133), ("adam", 0.25)])
def test_equipartition_at_small_rates(rule, limit):
    """All modes hold the same: eta s^2 / 4, eta s sqrt(pi/8) / 2, eta s / 4."""
    valley = RiverValley((0.01, 0.1, 1.0), noise=2.0)
    eta = 1e-4
    unit = eta * (4.0 if rule == "sgd" else 2.0)
    np.testing.assert_allclose(valley.thermal_loss(eta, rule) / unit, limit, rtol=5e-4)
    np.testing.assert_allclose(valley.thermal_loss(eta, rule, leading=True) / unit, limit, rtol=2e-4)


def test_adam_at_beta1_0_is_sgd_at_its_own_rate():
    valley = RiverValley(WALLS)
    loss = valley.thermal_loss(0.1, "adam", beta1=0.0)
    for a, one in zip(WALLS, loss, strict=True):
        h = 0.1 / math.sqrt(1 + 2 * a * one)
        assert one == pytest.approx(RiverValley((a,)).thermal_loss(h)[0], rel=1e-9)


def test_thermal_loss_is_below_what_a_reading_says():
    """The reading's (eta/4) B counts the valley's own gradient too: an upper bound."""
    valley = RiverValley(WALLS)
    loss = valley.thermal_loss(0.2, "adam")
    v = 1 + 2 * np.array(WALLS) * loss  # E g^2
    assert (loss < 0.05 * np.sqrt(v)).all()


def test_heat_capacity_twice():
    """Slope of loss over temperature, and fluctuations of the loss over T squared."""
    valley = RiverValley((0.5, 1.0, 1.5, 2.0))
    etas = (0.05, 0.1, 0.2)
    losses = [hold(valley, eta).fast_losses().value.sum() for eta in etas]
    temperatures = [valley.temperature(eta).mean() for eta in etas]
    slope = np.polyfit(temperatures, losses, 1)[0]
    assert slope == pytest.approx(valley.heat_capacity, rel=0.02)
    x = in_equilibrium(valley, 0.1, "sgd", 200_000)
    scaled = valley.fast_losses(x) / valley.temperature(0.1)
    assert scaled.sum(axis=1).var() == pytest.approx(valley.heat_capacity, rel=0.02)
    moved = hold(RiverValley((1.0,) * 4), 0.1, replicas=4000)
    loss = moved.valley.loss(moved.x, moved.y)[-50:]
    assert loss.var() / moved.valley.temperature(0.1)[0] ** 2 == pytest.approx(2.0, rel=0.03)


def test_entropy_is_that_of_the_points():
    stats = pytest.importorskip("scipy.stats")
    valley = RiverValley((0.2, 5.0))
    x = hold(valley, 0.1, every=150).x[1:].reshape(-1, 2)
    measured = stats.differential_entropy(x, axis=0)
    np.testing.assert_allclose(measured, valley.entropy(valley.temperature(0.1)), atol=0.02)


def test_free_energy_is_the_work_against_the_mean_force():
    """Thermodynamic integration: the mean force, measured at held places, against the difference of F."""
    valley = RiverValley((1.0, 1.0), narrowing=0.8)
    eta, places = 0.01, np.linspace(0, 1.5, 7)
    forces = [hold(valley, eta, y0=y, steps=1200, replicas=3000).force(since=300).value for y in places]
    work = -np.trapezoid(forces, places) if hasattr(np, "trapezoid") else -np.trapz(forces, places)  # noqa: NPY201
    t = valley.thermal_loss(eta, leading=True)[0] * 2
    assert work == pytest.approx(valley.free_energy(t, 1.5) - valley.free_energy(t, 0.0), rel=0.03)


def test_entropic_force():
    valley = RiverValley(WALLS, narrowing=0.7)
    measured = hold(valley, 0.05, steps=3000, replicas=2000).force(since=500)
    expected = valley.entropic_force(valley.temperature(0.05))
    assert expected < 0
    agree(measured, expected)


@pytest.mark.parametrize("times", [0.5, 1.0, 2.0])
def test_the_walls_hold_the_river_at_the_stopping_temperature(times):
    """Free to move, the river runs down, stands still, or is pushed up."""
    valley = RiverValley((2.0, 2.0), noise=3.0, slope=0.02, narrowing=0.5)
    t = times * valley.stopping_temperature
    eta = 2 * t / (9 + 2 * t)  # T = eta s^2 / (2 - a eta)
    assert valley.temperature(eta)[0] == pytest.approx(times * valley.stopping_temperature)
    moved = hold(valley, eta, steps=600, replicas=4000, held=False)
    speed = average(moved.y[-1] / 600)
    push = eta * valley.slope
    assert speed.value == pytest.approx(push * (1 - times), abs=0.05 * push)


# ---------------------------------------------------------------- out of equilibrium


def test_conduction():
    """A mode heated to four times its equilibrium goes back as the recursion says, at first by 2 a eta."""
    valley = RiverValley((0.5, 2.0))
    eta, start = 0.02, 4 * valley.thermal_loss(0.02)
    x0 = np.sqrt(2 * start / valley.curvature()) * np.random.default_rng(1).standard_normal((20_000, 2))
    moved = simulate(valley, np.full(60, eta), replicas=20_000, x0=x0, every=20)
    agree(moved.course(), valley.fast_losses_along(np.full(60, eta), start)[::20], within=0.03)
    first = valley.fast_losses_along([eta], start)[1] - start
    np.testing.assert_allclose(first, valley.conduction(start, eta), rtol=0.03)
    tiny = valley.fast_losses_along([1e-6], start)[1] - start
    np.testing.assert_allclose(tiny, valley.conduction(start, 1e-6), rtol=1e-4)


def test_relaxation_of_the_heavy_ball_is_a_plain_loop():
    rng = np.random.default_rng(3)
    a, beta, n = 2.0, 0.9, 400_000
    etas = np.linspace(0.4, 0.0, 30)
    x, m = np.zeros(n), np.zeros(n)
    loss = [0.0]
    for eta in etas:
        m = beta * m + (1 - beta) * (a * x + 0.7 * rng.standard_normal(n))
        x = x - eta * m
        loss.append(a * np.mean(x**2) / 2)
    exact = relaxation(a, etas, 0.0, noise=0.7, beta1=beta)[:, 0]
    np.testing.assert_allclose(loss[3:], exact[3:], rtol=0.015)
    # and it ends where the closed form says
    held = relaxation(a, np.full(3000, 0.3), 0.0, beta1=beta)[-1, 0]
    assert held == pytest.approx(0.3 * 1.9 / (2 * (2 * 1.9 - 0.1 * a * 0.3)), rel=1e-9)


def test_greedy_rates_are_the_best_of_every_step():
    a, eta0, s = 1.7, 0.4, 1.0
    rates = greedy_rates(a, eta0, 40)
    grid = np.linspace(0, 1 / a, 200_001)
    loss = RiverValley((a,), noise=s).thermal_loss(eta0)[0]
    for eta in rates:
        after = (1 - a * grid) ** 2 * loss + a * grid**2 * s**2 / 2
        assert grid[after.argmin()] == pytest.approx(eta, abs=1e-5)
        loss = after.min()
        assert loss == pytest.approx(eta * s**2 / 2, rel=1e-6)


def test_greedy_rates_in_motion():
    valley = RiverValley((1.0,))
    rates = greedy_rates(1.0, 0.3, 200)
    moved = simulate(valley, rates, replicas=20_000, x0=in_equilibrium(valley, 0.3, "sgd", 20_000), every=50)
    expected = np.concatenate([valley.thermal_loss(0.3), rates[49::50] / 2])[:, None]
    agree(moved.course(), expected, within=0.04)


def test_one_over_t_wins_in_one_mode_and_loses_with_a_river():
    steps, eta0 = 500, 0.5
    one, spectrum = RiverValley((1.0,)), RiverValley(tuple(np.geomspace(0.01, 1, 12)), slope=0.02)
    linear = eta0 * (1 - np.arange(steps) / steps)
    inverse = greedy_rates(1.0, eta0, steps)
    for valley, wins in ((one, True), (spectrum, False)):
        start = valley.thermal_loss(eta0)
        assert (valley.final_loss(inverse, start) < valley.final_loss(linear, start)) is wins


def test_final_loss_in_motion():
    valley = RiverValley((1.0, 0.1), slope=0.3)
    etas = 0.3 * (1 - np.arange(300) / 300)
    moved = simulate(
        valley, etas, replicas=5000, x0=in_equilibrium(valley, 0.3, "sgd", 5000), every=300, held=False
    )
    last = average(valley.loss(moved.x[-1], moved.y[-1]))
    agree(last, valley.final_loss(etas, valley.thermal_loss(0.3)), within=0.01)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: RiverValley(()), ["curvatures must be", "got ()"]),
        (lambda: RiverValley((1.0, -1.0)), ["curvatures must be", "got (1.0, -1.0)"]),
        (lambda: RiverValley((1.0,), noise=0.0), ["noise must be", "got 0.0"]),
        (lambda: RiverValley((1.0,), slope=math.nan), ["slope must be", "got nan"]),
        (lambda: RiverValley((1.0,)).thermal_loss(2.0), ["eta must be > 0 and < 2, got 2.0"]),
        (lambda: RiverValley((1.0,)).thermal_loss(0.0), ["eta must be", "got 0.0"]),
        (
            lambda: RiverValley((1.0,)).thermal_loss(40.0, "adam"),
            ["eta must be > 0 and < 38", "got 40.0"],
        ),
        (lambda: RiverValley((1.0,)).thermal_loss(0.1, "lion"), ["rule must be", "got 'lion'"]),
        (lambda: RiverValley((1.0,)).thermal_loss(0.1, "adam", beta1=1.0), ["beta1 must be", "got 1.0"]),
        (lambda: RiverValley((1.0,)).entropy(0.0), ["temperature must be", "got 0.0"]),
        (lambda: RiverValley((1.0,), narrowing=1.0).final_loss([0.1], 0.0), ["narrowing must be", "got 1.0"]),
        (lambda: relaxation(1.0, [-0.1], 0.0), ["etas must be", "got [-0.1]"]),
        (lambda: relaxation(-1.0, [0.1], 0.0), ["curvature must be", "got -1.0"]),
        (lambda: relaxation(1.0, [0.1], 0.0, beta1=1.5), ["beta1 must be", "got 1.5"]),
        (lambda: greedy_rates(0.0, 0.1, 3), ["curvature must be", "got 0.0"]),
        (lambda: greedy_rates(1.0, 2.0, 3), ["eta0 must be", "got 2.0"]),
        (lambda: greedy_rates(1.0, 0.1, 0), ["steps must be", "got 0"]),
        (lambda: simulate(RiverValley((1.0,)), [0.1], rule="x"), ["rule must be", "got 'x'"]),
        (lambda: simulate(RiverValley((1.0,)), []), ["etas must be", "got []"]),
        (lambda: simulate(RiverValley((1.0,)), [0.1], replicas=1), ["replicas must be", "got 1"]),
        (lambda: simulate(RiverValley((1.0,)), [0.1], every=0), ["every must be", "got 0"]),
        (lambda: simulate(RiverValley((1.0,)), [0.1], betas=(0.9, 1.0)), ["betas must be", "got (0.9, 1.0)"]),
        (lambda: average([1.0]), ["values must", "got shape (1,)"]),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is looked at below
        call()
    for word in says:
        assert word in str(error.value)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_an_unstable_rate_is_said():
    with pytest.raises(ValueError, match=r"eta 3 is outside the stable range, below 2 for"):
        simulate(RiverValley((1.0,)), np.full(2000, 3.0), replicas=4, every=100, x0=1.0)


# ---------------------------------------------------------------- noise of a network


def regression(dtype=torch.float64, sigma=0.5, scales=(0.3, 1.0, 3.0)):
    """Linear regression whose minibatch noise and Hessian are known."""
    torch.manual_seed(0)
    model = nn.Linear(len(scales), 1, bias=False, dtype=dtype)
    rng = torch.Generator().manual_seed(1)
    scale = torch.tensor(scales, dtype=dtype)

    def loss(size=16):
        x = torch.randn(size, len(scales), generator=rng, dtype=dtype) * scale
        y = sigma * torch.randn(size, 1, generator=rng, dtype=dtype)
        return (model(x) - y).square().mean() / 2

    return model, loss, scale


def trained(model, loss, lr=1e-3, steps=300, ema_steps=100):
    optimizer = ThermoAdamW(model.named_parameters(), lr=lr, weight_decay=0.0, ema_steps=ema_steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    return optimizer


def test_gradient_noise_is_a_plain_loop():
    model, loss, _ = regression()
    optimizer = trained(model, loss)
    state = optimizer.state[model.weight]
    before = model.weight.detach().clone()
    grad = model.weight.grad.clone()
    drawn = []

    def recorded():
        value = loss()
        drawn.append(torch.autograd.grad(value, model.weight, retain_graph=True)[0].double())
        return value

    measured = gradient_noise(model, optimizer, recorded, 24)
    assert torch.equal(model.weight, before)
    assert torch.equal(model.weight.grad, grad)
    q = []
    for g in drawn:
        v = 0.999 * state["exp_avg_sq"].double() + 0.001 * g**2
        q.append(g / ((v / (1 - 0.999**301)).sqrt() + 1e-8).sqrt())
    q = torch.stack(q).flatten(1).numpy()
    energy = (q**2).sum(axis=1)
    assert measured.total_energy == pytest.approx(energy.mean(), rel=1e-6)
    assert measured.error == pytest.approx(energy.std(ddof=1) / math.sqrt(24), rel=1e-6)
    assert measured.noise["weight"] == pytest.approx(q.var(axis=0, ddof=1).sum(), rel=1e-6)
    assert measured.total_signal == pytest.approx(energy.mean() - q.var(axis=0, ddof=1).sum(), rel=1e-6)
    assert measured.thermal_loss(0.1) == pytest.approx(0.025 * energy.mean(), rel=1e-6)


def test_a_reading_agrees_with_it():
    model, loss, _ = regression(torch.float32)
    nn.init.zeros_(model.weight)  # the truth: nothing but noise from the first step on
    optimizer = trained(model, loss, steps=1500, ema_steps=1000)
    measured = gradient_noise(model, optimizer, loss, 1000)
    error = measured.error * 1e-3 / 4
    assert error < 0.04 * measured.thermal_loss(1e-3)
    assert optimizer.reading.total.thermal_loss == pytest.approx(measured.thermal_loss(1e-3), rel=0.08)


def test_spectrum_of_a_regression():
    """Hessian diag(scale^2), so that the nodes are its eigenvalues in Adam's metric."""
    model, loss, scale = regression()
    optimizer = trained(model, loss)
    spectrum = noise_spectrum(model, optimizer, loss, lambda: loss(200_000), vectors=3, iterations=3)
    v = (optimizer.state[model.weight]["exp_avg_sq"] / (1 - 0.999**300)).sqrt().flatten()
    expected = np.sort((scale**2 / v).numpy())
    for nodes in spectrum.curvatures.reshape(3, 3):
        np.testing.assert_allclose(nodes, expected, rtol=0.05)
    assert spectrum.downhill_share == 0
    many = noise_spectrum(model, optimizer, loss, lambda: loss(1000), vectors=300, iterations=3)
    noise = sum(gradient_noise(model, optimizer, loss, 600).noise.values())
    assert many.weights.sum() == pytest.approx(noise, rel=0.15)


def test_lanczos_gives_the_moments_of_the_operator():
    """Sum w a^k = <q, H^k q> for k < 2 m, on a network, against autograd in full."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    x, y = torch.randn(64, 4).double(), torch.randn(64, 1).double()

    def whole():
        return (model(x) - y).square().mean()

    draws = torch.Generator().manual_seed(2)

    def loss():
        rows = torch.randint(64, (8,), generator=draws)
        return (model(x[rows]) - y[rows]).square().mean()

    optimizer = trained(model, loss, steps=50)
    params = list(model.parameters())
    draws.manual_seed(7)
    g, h = (torch.autograd.grad(loss(), params) for _ in range(2))
    draws.manual_seed(7)
    spectrum = noise_spectrum(model, optimizer, loss, whole, vectors=1, iterations=4)
    roots = []
    for p, a, b in zip(params, g, h, strict=True):
        v = 0.999 * optimizer.state[p]["exp_avg_sq"] + 0.001 * (a**2 + b**2) / 2
        roots.append(((v / (1 - 0.999**51)).sqrt() + 1e-8).rsqrt())
    root = torch.cat([r.flatten() for r in roots])
    q = torch.cat([((a - b) / 2**0.5).flatten() for a, b in zip(g, h, strict=True)]) * root
    slope = torch.cat([s.flatten() for s in torch.autograd.grad(whole(), params, create_graph=True)])
    hessian = torch.stack(
        [torch.cat([r.flatten() for r in torch.autograd.grad(s, params, retain_graph=True)]) for s in slope]
    )
    operator = root[:, None] * hessian * root
    power = q
    for k in range(8):
        moment = (spectrum.weights * spectrum.curvatures**k).sum()
        assert moment == pytest.approx((q @ power).item(), rel=1e-6), k
        power = operator @ power


def test_equilibrated_fraction():
    spectrum = NoiseSpectrum(np.array([-1.0, 1e-6, 0.5]), np.array([1.0, 1.0, 2.0]))
    assert spectrum.downhill_share == 0.25
    # one half of the noise is in equilibrium, which is (eta / 4) w up to the finite rate
    assert spectrum.equilibrated_fraction(np.full(2000, 0.01)) == pytest.approx(0.5, abs=0.01)
    quenched = np.concatenate([np.full(2000, 0.01), 0.01 * (1 - np.arange(5000) / 5000)])
    losses = spectrum.thermal_losses(quenched)
    assert losses[-1] < 0.25 * losses[2000]  # it freezes where a eta(t) times what is left falls below 1
    assert spectrum.largest_rate() == pytest.approx(2 * 1.9 / (0.1 * 0.5))
    with pytest.raises(ValueError, match=r"etas must stay below 76.*got up to 80"):
        spectrum.thermal_losses([1.0, 80.0])
    with pytest.raises(ValueError, match="must end with a rate > 0"):
        spectrum.equilibrated_fraction([0.1, 0.0])


def test_measuring_leaves_running_statistics_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    def loss():
        return model(torch.randn(8, 3)).square().mean()

    optimizer = trained(model, loss, steps=5)
    before = {name: b.clone() for name, b in model.named_buffers()}
    gradient_noise(model, optimizer, loss, 3)
    noise_spectrum(model, optimizer, loss, loss, vectors=1, iterations=2)
    for name, b in model.named_buffers():
        assert torch.equal(b, before[name])


def test_what_makes_the_numbers_meaningless_is_said():
    model, loss, _ = regression()
    optimizer = trained(model, loss, steps=3)
    with pytest.raises(ValueError, match="batches must be an integer >= 2, got 1"):
        gradient_noise(model, optimizer, loss, 1)
    with pytest.raises(ValueError, match="iterations must be an integer >= 1, got 0"):
        noise_spectrum(model, optimizer, loss, loss, iterations=0)
    with pytest.raises(ValueError, match="depends differentiably"):
        gradient_noise(model, optimizer, lambda: loss().detach(), 2)
    with pytest.raises(ValueError, match="loss must be finite, got nan"):
        gradient_noise(model, optimizer, lambda: loss() * math.nan, 2)
    with pytest.raises(ValueError, match=r"got SGD without second moments"):
        gradient_noise(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, 2)
    low, low_loss, _ = regression(torch.bfloat16)
    low_optimizer = torch.optim.AdamW(low.parameters())
    low_loss().backward()
    low_optimizer.step()
    with pytest.raises(ValueError, match=r"weight must be float32 or float64, got torch.bfloat16"):
        gradient_noise(low, low_optimizer, low_loss, 2)
    dropped = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Linear(3, 1))

    def dropped_loss():
        return dropped(torch.randn(8, 3)).square().mean()

    with pytest.warns(RuntimeWarning, match="1 has active dropout"):
        noise_spectrum(
            dropped, trained(dropped, dropped_loss, steps=2), dropped_loss, dropped_loss, iterations=1
        )


# ---------------------------------------------------------------- the benchmark


@pytest.fixture
def bench():
    for package in ("mnist1d", "sklearn", "scipy", "matplotlib"):
        pytest.importorskip(package)


@pytest.mark.usefixtures("bench")
def test_the_plan_repeats_nothing_and_has_three_seeds_of_everything():
    from thermoopt.benchmarks.laws.command import EXPERIMENTS, SEEDS, plan
    from thermoopt.benchmarks.laws.runs import HELD

    cases = list(plan(EXPERIMENTS, HELD, SEEDS))
    assert len(set(cases)) == len(cases)
    for seed in SEEDS:
        assert sum(case.seed == seed for case in cases) == len(cases) / 3
    assert {case.workload for case in plan(["hold"], HELD, [0])} == set(HELD)
    assert list(plan(["schedule"], ["vit"], [0])) == []


@pytest.mark.usefixtures("bench")
def test_equal_sums_of_rates():
    from thermoopt.benchmarks.laws.runs import SHAPES, held_rates, rates

    for length in (50, 100):
        held = held_rates(0.3, 100, extra=length // 2).sum()
        assert held_rates(0.3, 100, quench=length).sum() == pytest.approx(held)
    for shape in SHAPES:
        etas = rates(shape, 2.0, 220)
        assert etas.max() == pytest.approx(2.0, rel=0.05)
        np.testing.assert_allclose(etas[:20], 2.0 * np.arange(1, 21) / 20)
    assert rates("linear", 1.0, 220)[20:].sum() == pytest.approx(100)
    assert rates("linear to a third", 3.0, 220)[-1] == pytest.approx(1.0, rel=0.01)


@pytest.mark.slow
@pytest.mark.usefixtures("bench")
def test_a_hold_is_a_plain_loop():
    from thermoopt.benchmarks.laws.runs import TUNED, Held, hold
    from thermoopt.benchmarks.workloads import WORKLOADS

    row = hold(Held("mlp", 0.3, 1, steps=60))
    task = WORKLOADS["mlp"].build(1)
    optimizer = torch.optim.AdamW(task.model.parameters(), weight_decay=0.0)
    params = dict(task.model.named_parameters())
    mean = {name: torch.zeros_like(p) for name, p in params.items()}

    def judge(weights):
        other = WORKLOADS["mlp"].build(10_001, 16.0)
        other.model.load_state_dict(weights)
        return other.loss().item()

    def train(steps):
        for eta in steps:
            optimizer.param_groups[0]["lr"] = eta
            optimizer.zero_grad()
            task.loss().backward()
            optimizer.step()

    lr = 0.3 * TUNED["mlp"]
    middle = {}
    for step in range(1, 61):
        train([lr * min(1, step / 20)])
        if step > 10:
            for name, p in params.items():
                mean[name] += p.detach() / 50
        if step == 35:
            middle = {name: p.detach().clone() for name, p in params.items()}
    assert row["loss"] == pytest.approx(judge(params), rel=1e-4)
    assert row["middle"] == pytest.approx(judge(middle), rel=1e-4)
    assert row["averaged"] == pytest.approx(judge(mean), rel=1e-4)
    one = {**middle, "2.weight": mean["2.weight"]}
    assert row["layer_averaged"]["2.weight"] == pytest.approx(judge(one), rel=1e-4)
    for _ in range(48 + 2 * 2 + 4):  # gradients at rest, start vectors, the curved loss: they draw batches
        task.loss()
    train([lr] * 25)
    assert row["constant"]["25"] == pytest.approx(judge(params), rel=1e-3)
    assert set(row["quenched"]) == {"50", "100"}
    with pytest.raises(ValueError, match=r"steps must be >= 50, .*got 49"):
        Held("mlp", 1.0, 0, steps=49)


def held_row(workload, thermal, seed=0, factor=1.0, ratio=0.5):
    """A row of the hold that releases a ratio of its thermal loss."""
    q = {"thermal_loss": thermal, "d_iS_noise": 0.4 * thermal, "r": 1.0, "coherence": 1.0, "numel": 10}
    return {
        "experiment": "hold", "workload": workload, "factor": factor, "seed": seed, "steps": 300,
        "lr": 0.01 * factor, "total": q, "layers": {"a": q, "b": {**q, "thermal_loss": 2 * thermal}},
        "in_band": 0.5, "rest": {"energy": 400 * thermal / factor, "signal": 0.0, "error": 0.1, "layers": {}},
        "spectrum": {"curvatures": [100.0, -1.0], "weights": [3.0, 1.0]},
        "loss": 2.0 + thermal, "valid": 2.0, "middle": 2.0, "averaged": 2.0 - thermal,
        "layer_averaged": {"a": 2.0 - thermal, "b": 2.0 - 2 * thermal},
        "constant": {"25": 2.0, "50": 2.0},
        "quenched": {"50": 2.0 - ratio * thermal, "100": 2.0 - ratio * thermal},
    }  # fmt: skip


@pytest.mark.usefixtures("bench")
def test_forecasts_are_judged_right():
    from thermoopt.benchmarks.laws.fits import equilibrated, forecast, predicted, slope

    rows = [held_row(w, t, ratio=0.5) for w in ("gpt", "mlp") for t in (0.1, 0.2, 0.4)]
    found = forecast(rows, "thermal_loss", 100)
    assert found.ratio == pytest.approx(0.5)
    assert (found.spread, found.unseen, found.correlation) == pytest.approx((1, 1, 1))
    # twice the ratio in one workload: a factor of two for the other, which was not seen
    rows = [held_row(w, t, ratio=r) for w, r in (("gpt", 0.25), ("mlp", 0.5)) for t in (0.1, 0.2, 0.4)]
    assert forecast(rows, "thermal_loss", 50).unseen == pytest.approx(2)
    # eta a = 1: three quarters of the noise are in equilibrium before, next to nothing after the quench
    told = predicted(rows[0], "noise and curvature at rest", 100)
    assert told == pytest.approx(0.75 * 0.1, rel=0.15)
    assert math.isnan(predicted({**rows[0], "lr": 1.0}, "noise and curvature at rest", 100))
    assert equilibrated(rows[0]) == pytest.approx(0.75, rel=0.05)
    assert slope([1, 2, 4], [3, 12, 48]).mean == pytest.approx(2)


@pytest.mark.usefixtures("bench")
def test_a_final_loss_that_follows_the_law_is_found():
    from thermoopt.benchmarks.laws.fits import final_fit
    from thermoopt.benchmarks.laws.runs import FACTORS, SHAPES, rates

    rows = []
    for shape in SHAPES:
        for factor in FACTORS:
            etas = rates(shape, 0.01 * factor, 400)
            loss = 1 + 2 * etas.sum() ** -0.5 + 3 * etas[-1]
            about = {"experiment": "schedule", "workload": "gpt", "shape": shape, "factor": factor, "seed": 0}
            path = {"steps": 400, "lr": 0.01 * factor, "D": etas.sum(), "last": etas[-1]}
            rows.append({**about, **path, "loss": loss, "valid": loss, "curve": []})
    fit = final_fit(rows, [], "last rate")
    assert (fit.L0, fit.A, fit.p, fit.K) == pytest.approx((1, 2, 0.5, 3), rel=1e-3)
    assert fit.rms < 1e-6
    assert max(fit.left_out.values()) < 1e-6
    assert final_fit(rows, [], "none").rms > 0.01


@pytest.mark.slow
@pytest.mark.usefixtures("bench")
def test_it_goes_on_where_it_stopped_and_reports(tmp_path, capsys):
    from thermoopt.benchmarks.laws.command import complete
    from thermoopt.benchmarks.laws.figures import draw
    from thermoopt.benchmarks.laws.report import report
    from thermoopt.benchmarks.laws.runs import Scheduled
    from thermoopt.benchmarks.laws.toy import Toy

    cases = [Toy("conduction", 0, 100), Toy("greedy 1/t", 0, 100)]
    cases += [Scheduled("mlp", shape, f, 0, 24) for shape in ("constant", "linear") for f in (0.3, 1.0, 3.0)]
    rows = complete(cases, tmp_path, 1)
    assert "0 runs are done, 8 to do" in capsys.readouterr().out
    path = tmp_path / "rows.jsonl"
    path.write_text(path.read_text()[:-40])  # torn by a crash
    again = complete(cases, tmp_path, 1)
    assert "7 runs are done, 1 to do" in capsys.readouterr().out
    assert [{**r, "seconds": 0} for r in again] == [{**r, "seconds": 0} for r in rows]
    holds = [held_row("mlp", t, seed, f) for seed in (0, 1) for t, f in ((0.1, 0.3), (0.2, 1.0), (0.4, 3.0))]
    text = report([*rows, *holds])
    assert "| mlp | 0.01 | 0.2 ± 0 | 0.2 ± 0 | 1 ± 0 | 1 ± 0 | 1 ± 0 | 1 ± 0 |" in text
    assert "nan" not in text
    assert "| conduction | 27 |" in text
    pictures = draw([*rows, *holds], tmp_path)
    assert {p.name for p in pictures} == {
        "toy.png",
        "temperature.png",
        "quench.png",
        "layers.png",
        "final.png",
    }
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in pictures)


@pytest.mark.slow
@pytest.mark.usefixtures("bench")
def test_the_example_makes_its_figures(tmp_path):
    script = Path(__file__).parents[2] / "examples" / "thermodynamic_laws.py"
    sizes = {"--steps": 50, "--seeds": 1, "--replicas": 40, "--workers": 1, "--out": tmp_path}
    done = run_script(script, *(x for pair in sizes.items() for x in pair), filters=["error"])
    assert (done.code, done.errors) == (0, "")
    table = [line.split() for line in done.output.splitlines() if line.startswith(("cnn", "mlp"))]
    assert [(words[0], float(words[3].rstrip(","))) for words in table] == [
        ("cnn", 0.009), ("cnn", 0.03), ("cnn", 0.09), ("mlp", 0.003), ("mlp", 0.01), ("mlp", 0.03)
    ]  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    (hold,) = (r for r in rows if r["experiment"] == "hold" and (r["workload"], r["factor"]) == ("mlp", 1.0))
    assert float(table[4][4]) == pytest.approx(hold["constant"]["50"] - hold["quenched"]["100"], abs=1e-4)
    assert float(table[4][5]) == pytest.approx(hold["total"]["thermal_loss"], abs=1e-4)
    assert len(list(tmp_path.glob("*.png"))) == 5
