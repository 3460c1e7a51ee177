"""Each law against its formula, or against motion that it was made for, simulated."""

import math
from dataclasses import replace

import numpy as np
import pytest

from thermoopt.controllers.cohorts import Cohort
from thermoopt.controllers.lever import Bounds, Lever
from thermoopt.controllers.setpoints import (
    KAPPA,
    LAWS,
    SMALLEST,
    Signals,
    angular,
    bounded_diffusion,
    coherence,
    diffusion,
    distance,
    driven_diffusion,
    equilibrium_r,
    polyak,
)
from thermoopt.physics import Force

N = 20_000
"""Coordinates of a simulated walk: its rms displacement then has a relative spread of 1/sqrt(2N) = 0.5 %."""

T = 1000


def signals(**values):
    return Signals(**{"t": 100, "total_steps": T, "rate": 0.01, "floor": 0.01, **values})


def rms(x):
    return float(np.sqrt(np.mean(x**2)))


# ------------------------------------------------------------------ angular


@pytest.mark.parametrize(("kappa", "total"), [(1.5, 400), (0.03, 100)])
def test_angular_steps_with_linear_cooling_diffuse_kappa_far(kappa, total):
    rng = np.random.default_rng(0)
    rate = angular(signals(total_steps=total), kappa=kappa).rate
    x = np.zeros(N)
    for t in range(total):
        x += rate * (1 - t / total) * rng.choice([-1.0, 1.0], N)
    # the sum of (1 - t/T)**2 is T/3 + 1/2 + 1/(6T)
    assert rms(x) == pytest.approx(kappa * math.sqrt(1 + 1.5 / total), rel=0.02)


def test_angular_looks_at_nothing_but_the_length_of_the_run():
    hot = signals(rate=5.0, r=0.01, distance=100.0, loss=math.nan)
    assert angular(hot).rate == angular(signals()).rate == pytest.approx(KAPPA * math.sqrt(3 / T))
    assert angular(signals(total_steps=None)).rate == pytest.approx(KAPPA * math.sqrt(3 / 1000))
    assert angular(signals(total_steps=4 * T)).rate == pytest.approx(angular(hot).rate / 2)


# ------------------------------------------------------------------ diffusion


def follow(step, total=T, r=1.0, kappa=KAPPA):
    """Let the law drive a simulated motion at every step; rates, and the displacement at the end."""
    rng = np.random.default_rng(1)
    start = LAWS["diffusion"].start(total, kappa=kappa)
    rate, x, rates = start, np.zeros(N), []
    for t in range(1, total + 1):
        seen = Signals(t, total, rate, start, r=r, distance=rms(x))
        rate = diffusion(seen, kappa=kappa).rate
        rates.append(rate)
        x = step(x, rate, rng)
    return np.array(rates), rms(x)


def test_diffusion_leaves_a_random_walk_alone():
    rates, _ = follow(lambda x, d, rng: x + d * rng.choice([-1.0, 1.0], N))
    assert rates[0] == pytest.approx(KAPPA * math.sqrt(3 / T))
    assert rates[-1] == pytest.approx(rates[0], rel=0.05)  # the largest of 1000 chance excursions


def test_diffusion_grows_where_steps_agree():
    """Ballistic motion at a fixed speed v: D = v t / sqrt(t)."""
    v = KAPPA * math.sqrt(3 / T)
    rates, _ = follow(lambda x, d, rng: x + v)
    assert rates[-1] == pytest.approx(v * (T - 1) / math.sqrt(T), rel=1e-9)
    assert (np.diff(rates) >= 0).all()


def test_diffusion_runs_away_with_motion_that_follows_the_rate():
    """Steps that agree and scale with D: dist' = dist/sqrt(t), so dist grows like exp(2 sqrt(t))."""
    rates, _ = follow(lambda x, d, rng: x + d, total=100)
    exponent = math.log(rates[-1] / rates[24])
    assert exponent == pytest.approx(2 * (10 - 5) - 0.5 * math.log(100 / 25), rel=0.1)


def test_diffusion_does_not_grow_in_a_valley():
    """Confined motion: dist stops growing while sqrt(t) goes on."""
    rates, far = follow(lambda x, d, rng: 0.8 * x + d * rng.choice([-1.0, 1.0], N))
    assert rates[-1] == rates[0]
    assert far == pytest.approx(rates[0] / math.sqrt(1 - 0.64), rel=0.05)


def test_diffusion_starts_from_below_and_finds_the_speed_of_drift():
    """A hundred times too small a start, drift at a given speed: the start no longer matters."""
    v = KAPPA * math.sqrt(3 / T)
    for kappa in (KAPPA / 100, KAPPA):
        rates, _ = follow(lambda x, d, rng: x + v, kappa=kappa)
        assert rates[0] == pytest.approx(v * kappa / KAPPA)
        assert rates[-1] == pytest.approx(v * math.sqrt(T), rel=0.01)


@pytest.mark.parametrize(
    ("over", "c"), [(0.5, 1), (1.0, 1), (1.001, 3), (1.7, 3), (2.0, 4), (3.0, 9), (5.0, 16), (math.nan, 1)]
)
@pytest.mark.parametrize("t", [50, 150, 900])
def test_diffusion_runs_ahead_only_while_r_is_above_its_set_point(over, c, t):
    s = signals(t=t, rate=1e-6, r=over * equilibrium_r(t, T), distance=30.0)
    assert diffusion(s).rate == pytest.approx(c * 30.0 / math.sqrt(t))


def test_the_set_point_of_r_falls_to_1_over_the_first_15_percent():
    assert equilibrium_r(0, T) == pytest.approx(7)
    assert equilibrium_r(75, T) == pytest.approx(4)
    values = [equilibrium_r(t, T) for t in range(T + 1)]
    assert values == sorted(values, reverse=True)
    assert set(values[150:]) == {1.0}
    # without a length: the memory of v, 1000 steps, stands in
    assert equilibrium_r(75, None) == pytest.approx(4)
    assert equilibrium_r(5000, None) == 1.0


def test_diffusion_never_falls_and_never_asks_below_its_start():
    rng = np.random.default_rng(2)
    start = LAWS["diffusion"].start(T)
    for _ in range(200):
        rate, far, r = 10 ** rng.uniform(-4, 1, 3)
        t = int(rng.integers(1, T))
        wanted = diffusion(signals(t=t, rate=rate, distance=far, r=r)).rate
        assert wanted >= max(rate, start)
        further = diffusion(signals(t=t, rate=rate, distance=2 * far, r=r)).rate
        assert further >= wanted


def booked(increments):
    """What a cohort books of work that grows by these increments: N and its error."""
    cohort, work, error = Cohort(Lever(Bounds()), "all"), 0.0, math.nan
    for increment in increments:
        work += increment
        error = cohort.work_error(work)
    return {"work": work, "work_error": error}


def test_the_error_of_the_work_is_that_of_a_sum_of_independent_changes():
    """Over 4000 walks of 50 normal steps the mean square of N is that of its error: 50."""
    steps = np.random.default_rng(0).normal(size=(4000, 50))
    walks = [booked(walk) for walk in steps]
    assert np.mean([w["work_error"] ** 2 for w in walks]) == pytest.approx(50, rel=0.02)
    assert np.mean([w["work"] ** 2 for w in walks]) == pytest.approx(50, rel=0.08)


def test_the_error_of_the_work_survives_a_checkpoint_and_one_of_before_it_was_booked():
    cohort = Cohort(Lever(Bounds()), "all")
    for work in (3.0, 4.0):
        cohort.work_error(work)
    state = cohort.state_dict()
    again = Cohort.of(state, Bounds(), 1.0)
    assert again.work_error(6.0) == cohort.work_error(6.0) == pytest.approx(math.sqrt(9 + 1 + 4))
    assert again.work_error(math.nan) == pytest.approx(math.sqrt(14))  # not booked
    assert again.work_error(6.5) == pytest.approx(math.sqrt(14.25))
    del state["work"]
    older = Cohort.of(state, Bounds(), 1.0)
    assert older.work_error(6.0) == 0.0  # what was done before is no change
    assert older.work_error(7.0) == 1.0
    assert Cohort.of(older.state_dict(), Bounds(), 1.0).work_error(7.0) == 1.0


@pytest.mark.parametrize(
    ("increments", "raised"),
    [
        ([1.0, 1.0], True),  # two equal gains: 2/sqrt(2)
        ([1.0], False),  # one is chance
        ([3.0**i for i in range(30)], True),  # sqrt((1 + 1/3)/(1 - 1/3)) = 1.41
        ([3.2**i for i in range(30)], False),
        ([1.0, 1.0, -1.0], False),
        ([1.0, 1.0, 1.0, -0.5], False),  # 2.5/1.80 = 1.39
        ([1.0, 1.0, 1.0, -0.5, 1.0], True),  # 3.5/2.06
        ([-1.0] * 9, False),
    ],
)
def test_work_counts_where_it_is_more_than_chance(increments, raised):
    s = signals(distance=5.0, impulse=0.1, r=1.0, **booked(increments))
    wanted = bounded_diffusion(s)
    assert (wanted.rate > math.sqrt(3 / T)) == raised
    assert ("chance" in wanted.reason) == (not raised)
    assert wanted.evidence["work_over_impulse"] == (s.work / s.impulse, s.work_error / s.impulse)


def test_r_counts_as_drift_where_it_is_above_its_setpoint_by_more_than_its_error():
    s = signals(t=400, distance=2.0, r=1.2)
    assert diffusion(s).rate == diffusion(replace(s, r_error=0.1)).rate == pytest.approx(0.3)
    assert diffusion(replace(s, r_error=0.3)).rate == pytest.approx(0.1)


# ------------------------------------------------------------------ driven diffusion


def driven(t=400, force=math.nan, r=0.5, work=0.3):
    return driven_diffusion(signals(t=t, r=r, force=force, distance=2.0, work=work, impulse=10.0))


def test_driven_diffusion_runs_ahead_of_work_only_while_a_force_drives():
    """dist/sqrt(t) = 0.1 at t = 400, work over impulse 0.03, rate 0.01, start 0.5 sqrt(3/1000) = 0.0274."""
    start = 0.5 * math.sqrt(3 / T)
    assert driven(force=0.6).rate == driven().rate == pytest.approx(0.1)
    assert driven(force=0.4).rate == 0.01
    assert "spent" in driven(force=0.4).reason
    assert driven(t=149, force=0.4, work=0.2).rate == pytest.approx(0.04)  # twice, force or not
    assert driven(t=149, force=0.4, work=0.1).rate == pytest.approx(start)
    assert driven(t=200, force=0.4, r=2.0).rate == 0.01  # r still tells of the start
    assert driven(t=400, force=0.4, r=1.0).rate == pytest.approx(0.1)
    assert driven(force=0.4).evidence["force"][0] == 0.4


@pytest.mark.parametrize(("force", "c"), [(math.nan, 1), (0.9, 1), (1.0, 3), (2.0, 3)])
def test_where_r_is_unknown_a_bounded_law_runs_ahead_while_a_force_drives(force, c):
    """Without Adam's moments there is no r: c dist/sqrt(t), within the bound; r = 0.5 would leave c at 1."""
    s = signals(r=math.nan, distance=0.4, work=1.0, impulse=1.0, force=force, t=100)
    assert bounded_diffusion(s, lead=8).rate == pytest.approx(max(math.sqrt(3 / T), c * 0.04))
    assert bounded_diffusion(replace(s, work=0.01), lead=8).rate == pytest.approx(
        max(math.sqrt(3 / T), min(0.08, c * 0.04))
    )
    assert bounded_diffusion(replace(s, r=0.5), lead=8).rate == pytest.approx(math.sqrt(3 / T))
    assert diffusion(s, kappa=0.01).rate == pytest.approx(0.04)  # it has no top: it does not run ahead


def test_the_force_is_work_for_a_unit_of_lr_over_its_mean():
    """Against sums in a loop: sigma 3, 1, -1 at lr 1, 2, 1 over 4, 2 and 2 steps."""
    cohort = Cohort(Lever(Bounds()), "all")
    energy = way = 0.0
    for sigma, lr, steps in ((3.0, 1.0, 4), (1.0, 2.0, 2), (-1.0, 1.0, 2)):
        energy, way = energy + max(0.0, sigma) * steps, way + lr * steps
        assert cohort.drive.book(sigma, lr, steps) == pytest.approx((sigma / lr) / (energy / way))
    again = Cohort.of(cohort.state_dict(), Bounds(), 1.0)
    assert again.drive == Force(14.0, 10.0)
    assert math.isnan(cohort.drive.book(math.nan, 1.0, 1))
    assert math.isnan(cohort.drive.book(1.0, 0.0, 1))


# ------------------------------------------------------------------ coherence


def test_coherence_brakes_in_proportion_and_on_one_side():
    factors = [coherence(signals(coherence=c)).rate for c in (0.2, 0.4, 0.8, 1.0, 50.0)]
    assert factors == pytest.approx([0.25, 0.5, 1.0, 1.0, 1.0])
    assert coherence(signals(coherence=0.4), r_min=0.5).rate == pytest.approx(0.8)


def test_coherence_has_no_memory():
    """In proportion to what is read, whatever the rate is: an integral would wind up."""
    seen = signals(coherence=0.4)
    assert {coherence(replace(seen, rate=x, t=t)).rate for x in (1e-9, 1.0, 1e9) for t in (1, 999)} == {0.5}


def test_coherence_does_not_take_the_cooling_of_an_interpolating_net_for_heat():
    """R falls there because gradients vanish (E = C/d): r_c does not, and it is what counts."""
    assert coherence(signals(r=0.01, coherence=1.0, energy_ratio=0.01)).rate == 1.0


# ------------------------------------------------------------------ distance


class Prodigy:
    """The recursion in float64, one number a coordinate, on a quadratic with Adam's moments."""

    def __init__(self, x0, s, beta1=0.9, beta2=0.999, k=1.0, growth=math.inf, d0=SMALLEST):
        self.x0, self.x, self.s = x0.copy(), x0.copy(), s
        self.b1, self.b2, self.k, self.growth, self.d, self.d0 = beta1, beta2, k, growth, d0, d0
        self.m, self.v, self.sum = np.zeros_like(x0), np.zeros_like(x0), np.zeros_like(x0)
        self.work, self.t = 0.0, 0

    def step(self, g):
        self.t += 1
        bias = math.sqrt(1 - self.b2**self.t) / (1 - self.b1**self.t)
        q = math.sqrt(self.b2)
        self.work = q * self.work + self.d / self.d0 * self.d * bias * float(g @ (self.x0 - self.x))
        self.sum = q * self.sum + self.d / self.d0 * self.d * self.s * g
        self.m = self.b1 * self.m + (1 - self.b1) * g
        self.v = self.b2 * self.v + (1 - self.b2) * g * g
        m, v = self.m / (1 - self.b1**self.t), self.v / (1 - self.b2**self.t)
        self.x = self.x - self.d * self.s * m / (np.sqrt(v) + 1e-8)
        before, impulse = self.d, np.abs(self.sum).sum()
        self.d = max(self.d, min(self.k * self.work / impulse, self.growth * self.d))
        return Signals(self.t, None, before, self.d0, work=self.work, impulse=impulse)


@pytest.mark.parametrize("k", [1.0, 1.5])
def test_distance_is_prodigys_estimate(k):
    rng = np.random.default_rng(3)
    n = 300
    a = 10 ** rng.uniform(-1, 1, n)
    s = np.where(np.arange(n) < 100, 0.05, 2.0)
    loop = Prodigy(s * rng.standard_normal(n), s, k=k)
    rates = []
    for _ in range(120):
        seen = loop.step(a * loop.x)
        rates.append(distance(seen, k=k).rate)
        assert rates[-1] == pytest.approx(loop.d, rel=1e-12)
    assert rates == sorted(rates)
    # and it finds the distance: of the order of one unit, never beyond k times the furthest coordinate
    assert 0.05 < rates[-1] <= k * np.abs(loop.x0 / s).max()


def test_distance_never_falls_nor_asks_below_its_start():
    far = signals(rate=0.5, floor=1e-3, work=1.0, impulse=10.0)
    assert distance(far).rate == 0.5
    assert distance(replace(far, rate=1e-5, work=0.0)).rate == 1e-3
    assert distance(replace(far, work=-5.0)).rate == 0.5
    assert distance(replace(far, work=40.0)).rate == 4.0
    assert distance(replace(far, work=40.0), k=1.5).rate == 6.0


# ------------------------------------------------------------------ polyak


@pytest.mark.parametrize("f_star", [0.0, 2.0, -3.0])
@pytest.mark.parametrize("start", [1e-4, 1.0, 30.0])
def test_polyak_brings_entropy_production_to_its_share_of_the_loss(start, f_star):
    """Gradient flow on a quadratic: sigma = rate ||g||**2, so rate = k(L - f*)/||g||**2."""
    rng = np.random.default_rng(4)
    a, x = 10 ** rng.uniform(-1, 1, 50), rng.standard_normal(50)
    g, loss = a * x, f_star + 0.5 * float(a @ x**2)
    k = 0.3
    rate = start
    for _ in range(3):
        sigma = rate * float(g @ g)
        rate = polyak(signals(rate=rate, loss=loss, sigma=sigma), f_star=f_star, k=k).rate
    assert rate * float(g @ g) == pytest.approx(k * (loss - f_star))
    assert rate == pytest.approx(k * (loss - f_star) / float(g @ g))


def test_polyak_with_full_share_solves_one_direction_in_two_halvings():
    """On 0.5 a x**2 Polyak's step, k = 1, halves x whatever a is."""
    for a in (0.01, 100.0):
        x = 8.0
        for _ in range(3):
            wanted = polyak(signals(rate=1.0, loss=0.5 * a * x * x, sigma=a * a * x * x)).rate
            x -= wanted * a * x
        assert x == pytest.approx(1.0)


def test_polyak_stops_at_the_lowest_loss():
    assert polyak(signals(loss=1.0, sigma=0.5), f_star=1.0).rate == 0.0
    assert polyak(signals(loss=0.5, sigma=0.5), f_star=1.0).rate == 0.0


# ------------------------------------------------------------------ nothing to go by


@pytest.mark.parametrize(
    ("law", "known"),
    [
        (diffusion, {"r": 2.0}),
        (diffusion, {"r": 2.0, "distance": math.inf}),
        (coherence, {"r": 2.0}),
        (coherence, {"coherence": 0.0}),
        (distance, {"work": 1.0}),
        (distance, {"work": 1.0, "impulse": 0.0}),
        (polyak, {"sigma": 1.0}),
        (polyak, {"loss": 1.0}),
        (polyak, {"loss": math.inf, "sigma": 1.0}),
        (polyak, {"loss": math.nan, "sigma": 1.0}),
        (polyak, {"loss": 1.0, "sigma": 0.0}),
        (polyak, {"loss": 1.0, "sigma": -1.0}),
    ],
)
def test_signals_that_say_nothing_ask_for_nothing(law, known):
    assert law(signals(**known)) is None


@pytest.mark.parametrize("name", sorted(LAWS))
def test_every_answer_carries_its_evidence_and_a_reason(name):
    full = signals(
        r=2.0, r_error=0.1, coherence=0.5, sigma=1.0, loss=2.0, distance=1.0, work=1.0, impulse=1.0
    )
    wanted = LAWS[name].want(full)
    assert wanted.reason
    assert all(len(pair) == 2 and math.isfinite(pair[0]) for pair in wanted.evidence.values())
    assert len(wanted.evidence) > 0
    if name == "diffusion":
        assert wanted.evidence["r"] == (2.0, 0.1)
        assert wanted.evidence["r_setpoint"][0] == equilibrium_r(100, T)
        assert wanted.evidence["diffusion_length"][0] == pytest.approx(0.1)
