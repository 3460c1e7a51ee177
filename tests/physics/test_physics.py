"""Every formula against a closed form, a float64 loop or the property that its theory promises."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thermoopt import ThermoAdamW, physics
from thermoopt.account.meter import Meter
from thermoopt.account.reading import Quantities
from thermoopt.kernels import Sum, reference_step
from thermoopt.physics import quantities
from thermoopt.physics.terms import COLUMNS, Linear, Term, layer_terms, linear_sums, norm_forecast


class Run:
    """Steps one float64 tensor with the reference loop and keeps every number a formula could need."""

    def __init__(self, theta, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, wd=0.0):
        self.theta = torch.as_tensor(theta, dtype=torch.float64).clone()
        self.m, self.v = torch.zeros_like(self.theta), torch.zeros_like(self.theta)
        self.t = torch.tensor(0.0)
        self.lr, self.betas, self.eps, self.wd = lr, betas, eps, wd
        self.meter = Meter(1)
        self.meter.add_group("group0", ["w"], [self.theta.numel()])

    def step(self, g):
        before = self.theta.clone()
        sums = reference_step(
            [self.theta],
            [g],
            [self.m],
            [self.v],
            [],
            [self.t],
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.wd,
        ).numpy()
        ones = np.ones(1)
        constants = {
            "lr": self.lr * ones,
            "wd": self.wd * ones,
            "beta1": self.betas[0] * ones,
            "beta2": self.betas[1] * ones,
        }
        t = float(self.t)
        cause = self.meter.update(int(t), np.array([0]), sums.T, t * ones, constants)
        assert cause is None
        return before, sums[0], self.meter.reading.total


def terms_of(sums, *, t=1000, lr=1e-3, wd=0.1, beta1=0.9, beta2=0.999):
    """Terms of one layer whose averages are exactly ``sums``."""
    one = np.ones(1)
    mean = linear_sums(np.asarray(sums, dtype=float)[:, None], beta1 * one, t * one)
    return layer_terms(mean, one, lr * one, wd * one, beta2 * one, 10 * one)[:, 0]


def test_sgd_entropy_is_four_phi():
    """Property 1: with U = g, sigma = 4 phi = 4 phi_P = sigma_sgd."""
    g = torch.randn(50, dtype=torch.float64)
    gg = float(g @ g)
    sums = np.zeros(len(Sum))
    sums[[Sum.A, Sum.B, Sum.UU, Sum.GG, Sum.MU]] = gg
    q = quantities(terms_of(sums))
    assert q["sigma"] == pytest.approx(4 * q["phi"])
    assert q["sigma"] == pytest.approx(q["sigma_sgd"])
    assert q["sigma"] == pytest.approx(1e-3 * gg)


@pytest.mark.parametrize("scale", [1e-2, 7.0, 1e3])
def test_scaling_the_loss(scale):
    """Property 2: loss * s gives sigma * s, phi * 1, sigma_sgd * s**2 (eps -> 0)."""
    torch.manual_seed(0)
    theta = torch.randn(40, dtype=torch.float64)
    a, b = Run(theta, eps=0.0), Run(theta, eps=0.0)
    for _ in range(12):
        g = torch.randn(40, dtype=torch.float64)
        qa, qb = a.step(g)[2], b.step(scale * g)[2]
    assert qb.sigma == pytest.approx(scale * qa.sigma)
    assert qb.phi == pytest.approx(qa.phi)
    assert qb.sigma_sgd == pytest.approx(scale**2 * qa.sigma_sgd)
    assert qb.r == pytest.approx(qa.r)


@pytest.mark.parametrize("beta1", [0.5, 0.9, 0.999])
def test_cosine_of_gradient_and_moment(beta1):
    """rho_momentum = <g, P m'> / sqrt(<g, P g> <m', P m'>) with the moment before the step, from the loop."""
    torch.manual_seed(0)
    run = Run(torch.randn(30, dtype=torch.float64), betas=(beta1, 0.999))
    drift = torch.randn(30, dtype=torch.float64)
    for t in range(1, 12):
        m = run.m.clone()
        g = torch.randn(30, dtype=torch.float64) + drift * (-1) ** (t // 4)
        q = run.step(g)[2]
        if t == 1:
            assert np.isnan(q.rho_momentum)  # there was none
            continue
        p = 1 / ((run.v / (1 - 0.999**t)).sqrt() + run.eps)
        expected = (g * p * m).sum() / ((g * p * g).sum() * (m * p * m).sum()).sqrt()
        assert q.rho_momentum == pytest.approx(float(expected), rel=1e-6, abs=1e-9)


def test_cosine_of_gradient_and_moment_is_zero_in_noise():
    torch.manual_seed(0)
    run = Run(torch.randn(4000, dtype=torch.float64))
    cosines = [run.step(torch.randn(4000, dtype=torch.float64))[2].rho_momentum for _ in range(60)][1:]
    # standard error 1 / sqrt(4000 * 59)
    assert np.mean(cosines) == pytest.approx(0, abs=4 / np.sqrt(4000 * 59))


def test_without_momentum_there_is_no_cosine():
    run = Run(torch.randn(30, dtype=torch.float64), betas=(0.0, 0.999))
    for _ in range(3):
        q = run.step(torch.randn(30, dtype=torch.float64))[2]
    assert np.isnan(q.rho_momentum)


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("size", [1e-19, 1e-22, 1e-25, 1e-30, 1e-36])
def test_no_quantity_of_gradients_whose_squares_underflow_is_infinite(size, backend):
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(300))
    optimizer = ThermoAdamW([p], backend=backend, measure_every=1)
    direction = torch.randn(300)
    for _ in range(4):
        p.grad = size * (direction + torch.randn(300))
        optimizer.step()
    q = optimizer.reading.total
    cosine = q.rho_momentum
    assert math.isnan(cosine) or abs(cosine) <= 1 + 1e-3
    assert not any(math.isinf(x) for x in (q.r, q.coherence, q.energy_ratio, q.gaussianity))
    if size >= 1e-19:
        assert 0.1 < cosine < 1
        assert q.r > 0


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    beta1=st.sampled_from([0.5, 0.9, 0.99]),
    wd=st.sampled_from([0.0, 0.1]),
    steps=st.integers(1, 8),
)
def test_split_adds_up(seed, beta1, wd, steps):
    """Property 3: A = self + memory and d_eS + d_iS = eta <g, U + lambda theta>, at every step."""
    rng = torch.Generator().manual_seed(seed)
    run = Run(torch.randn(30, dtype=torch.float64, generator=rng), betas=(beta1, 0.999), wd=wd)
    for _ in range(steps):
        m_before = run.m.clone()
        g = torch.randn(30, dtype=torch.float64, generator=rng) + 0.3
        before, sums, q = run.step(g)
        t = float(run.t)
        precond = 1 / ((run.v / (1 - 0.999**t)).sqrt() + run.eps)
        u = run.m / (1 - beta1**t) * precond
        memory = float(beta1 / (1 - beta1**t) * (g * precond * m_before).sum())
        self_ = float((1 - beta1) / (1 - beta1**t) * (g * g * precond).sum())
        assert sums[Sum.A] == pytest.approx(self_ + memory, rel=1e-9, abs=1e-12)
        total = run.lr * float((g * (u + wd * before)).sum())
        assert q.d_eS + q.d_iS == pytest.approx(total, rel=1e-9, abs=1e-14)
        assert q.d_iS == pytest.approx(q.d_iS_noise + q.d_iS_momentum + q.d_iS_wd, rel=1e-12, abs=1e-18)
        assert q.d_eS >= 0
        assert q.d_iS_noise >= 0
        assert q.d_iS_momentum <= 0


@pytest.mark.parametrize("beta1", [0.5, 0.9, 0.95])
def test_pure_noise_is_equilibrium(beta1):
    """Property 4: white noise has r -> 1, coherence 1, Gaussianity sqrt(2/pi), no memory."""
    torch.manual_seed(1)
    d = 4000
    run = Run(torch.zeros(d), betas=(beta1, 0.99))
    rs, memories, noises, gauss = [], [], [], []
    for t in range(1, 901):
        _, sums, q = run.step(torch.randn(d, dtype=torch.float64))
        if t > 700:
            rs.append(q.r)
            gauss.append(q.gaussianity)
            own = sums[Sum.B] * (1 - beta1) / (1 - beta1**t)
            memories.append((sums[Sum.A] - own) / sums[Sum.A])
            noises.append(q.d_iS_noise / q.sigma)
    # neighbouring steps share beta1/(1-beta1) steps of momentum: 200 steps hold about 20 independent ones
    assert np.mean(rs) == pytest.approx(1.0, abs=0.02)
    assert np.mean(gauss) == pytest.approx(np.sqrt(2 / np.pi), abs=0.01)
    assert np.mean(memories) == pytest.approx(0.0, abs=0.02)
    # and all of it is noise
    assert np.mean(noises) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("t", [1, 2, 3, 10, 1000])
def test_null_update_energy_is_the_variance_of_the_moment(t):
    beta1 = 0.9
    weights = (1 - beta1) * beta1 ** np.arange(t) / (1 - beta1**t)
    assert physics.null_update_energy(beta1, t) == pytest.approx((weights**2).sum())


@pytest.mark.parametrize("t", [2, 5, 200])
@pytest.mark.parametrize("mean", [0.0, 0.5])
def test_noise_estimate_is_unbiased(t, mean):
    """Property 8: s**2 from v and m is the gradient's variance at every t >= 2, whatever its mean."""
    rng = np.random.default_rng(0)
    beta1, beta2, d = 0.9, 0.999, 200_000
    m, v = np.zeros(d), np.zeros(d)
    for _ in range(t):
        g = mean + 2.0 * rng.standard_normal(d)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
    mh, vh = m / (1 - beta1**t), v / (1 - beta2**t)
    # with P = 1 the noise column is gain * d * s**2
    sums = np.zeros((len(Sum), 1))
    sums[Sum.SV], sums[Sum.MU] = vh.sum(), (mh * mh).sum()
    gain = (1 - beta1) / (1 - beta1**t)
    s2 = linear_sums(sums, np.array([beta1]), np.array([float(t)]))[Linear.NOISE, 0] / (gain * d)
    assert s2 == pytest.approx(4.0, rel=0.03)


def test_noise_is_undefined_without_momentum():
    sums = np.ones((len(Sum), 1))
    assert np.isnan(linear_sums(sums, np.zeros(1), np.ones(1) * 5)[Linear.NOISE, 0])


@pytest.mark.parametrize("wd", [0.0, 0.1, 5.0])
def test_norm_balance_is_exact(wd):
    """Property 7: ||theta'||**2 = alpha**2 ||theta||**2 + S at every step."""
    torch.manual_seed(2)
    run = Run(torch.randn(64, dtype=torch.float64), lr=0.01, wd=wd)
    for _ in range(30):
        before, _, _ = run.step(torch.randn(64, dtype=torch.float64) + 0.2)
        terms = run.meter.reading.terms[:, 0]
        alpha = 1 - run.lr * wd
        after = float(run.theta @ run.theta)
        assert after == pytest.approx(alpha**2 * float(before @ before) + terms[Term.SOURCE], rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    norm2=st.floats(0.01, 100),
    source=st.floats(-1e-3, 1.0),
    pull=st.floats(0.0, 0.2),
    n=st.integers(0, 300),
)
def test_norm_forecast_is_the_iterated_balance(norm2, source, pull, n):
    alpha = 1 - pull
    x = norm2
    for _ in range(n):
        x = alpha**2 * x + source
    assert norm_forecast(norm2, source, alpha, n) == pytest.approx(max(x, 0.0), rel=1e-8, abs=1e-9)


def test_equilibrium_norm_and_angular_step_of_pure_noise():
    """Property 4, norm: ||theta|| -> sqrt(eta d / 2 lambda), angular step -> sqrt(2 eta lambda n0)."""
    torch.manual_seed(3)
    d, lr, wd = 4000, 0.02, 0.5
    run = Run(0.1 * torch.randn(d), lr=lr, wd=wd)
    angles = []
    for t in range(900):
        before, _, q = run.step(torch.randn(d, dtype=torch.float64))
        if t >= 700:
            angles.append(q.angular_step)
    assert float(run.theta.norm()) == pytest.approx(np.sqrt(lr * d / (2 * wd)), rel=0.05)
    n0 = physics.null_update_energy(0.9, 1e6)
    assert np.mean(angles) == pytest.approx(np.sqrt(2 * lr * wd * n0), rel=0.05)
    # at equilibrium decay and source balance: R_wd = 1 on average
    assert q.norm_forecast == pytest.approx(float(before.norm()), rel=0.2)


def test_phi_slope_on_a_quadratic():
    """Property 5: on E = |theta|**2/2 with SGD-like U = g, phi = eta/4 |theta|**2: slope 1 in eta."""
    theta = np.arange(1.0, 6.0)
    sums = np.zeros(len(Sum))
    sums[Sum.UU] = theta @ theta
    etas = np.array([1e-3, 1e-2, 1e-1])
    phi = [float(quantities(terms_of(sums, lr=eta))["phi"]) for eta in etas]
    slope = np.polyfit(np.log(etas), np.log(phi), 1)[0]
    assert slope == pytest.approx(1.0)
    assert phi[0] == pytest.approx(1e-3 / 4 * 55)


def test_signed_permutation_invariance():
    """Property 6: Adam's readings do not see the order or the sign of coordinates."""
    torch.manual_seed(4)
    d = 30
    theta = torch.randn(d, dtype=torch.float64)
    perm, sign = torch.randperm(d), torch.randint(0, 2, (d,)) * 2 - 1
    a, b = Run(theta, wd=0.1), Run((sign * theta)[perm], wd=0.1)
    for _ in range(10):
        g = torch.randn(d, dtype=torch.float64)
        qa, qb = a.step(g)[2], b.step((sign * g)[perm])[2]
    assert np.allclose(list(vars(qa).values()), list(vars(qb).values()), rtol=1e-10, equal_nan=True)


def test_rotation_changes_adam():
    """The negative of property 6: a rotation does change phi under Adam."""
    torch.manual_seed(5)
    d = 30
    rotation = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64))[0]
    theta = torch.randn(d, dtype=torch.float64)
    a, b = Run(theta), Run(rotation @ theta)
    for _ in range(10):
        g = torch.randn(d, dtype=torch.float64) * torch.logspace(-2, 2, d, dtype=torch.float64)
        qa, qb = a.step(g)[2], b.step(rotation @ g)[2]
    assert abs(qa.phi / qb.phi - 1) > 1e-3
    assert qa.sigma_sgd == pytest.approx(qb.sigma_sgd)  # SGD's measure is invariant


def test_r_factorises_and_names_agree():
    torch.manual_seed(6)
    run = Run(torch.randn(100, dtype=torch.float64), wd=0.1)
    for _ in range(20):
        _, _, q = run.step(torch.randn(100, dtype=torch.float64))
    assert q.r == pytest.approx(q.coherence * q.energy_ratio)
    assert q.r == pytest.approx(q.phi / q.phi_star)
    assert q.free_fall == pytest.approx(1 - 1 / q.wd_balance) or q.wd_balance == np.inf
    assert tuple(vars(q)) == physics.QUANTITIES
    assert Quantities.__dataclass_fields__.keys() == quantities(run.meter.reading.terms).keys()
    assert all(type(v) in (int, float) for v in vars(q).values())


def test_undefined_is_nan_not_zero():
    q = {k: float(v) for k, v in quantities(np.zeros(len(Term))).items()}
    for name in ("r", "coherence", "gaussianity", "angular_step", "free_fall", "R_ie", "wd_balance"):
        assert np.isnan(q[name]), name
    # decay pulls, nothing holds against it
    terms = np.zeros(len(Term))
    terms[Term.PULL], terms[Term.SOURCE], terms[Term.TT] = 1.0, -0.5, 1.0
    q = {k: float(v) for k, v in quantities(terms).items()}
    assert q["wd_balance"] == np.inf
    assert q["free_fall"] == pytest.approx(1.5)


def test_heat_over_work_is_capped_and_undefined_within_its_error():
    terms = np.zeros(len(Term))
    terms[Term.D_ES], terms[Term.NOISE] = 1e-9, 1.0
    assert float(quantities(terms)["R_ie"]) == physics.R_IE_CAP
    terms[Term.WORK_VAR] = 1e-18
    assert np.isnan(float(quantities(terms)["R_ie"]))
    terms[Term.D_ES] = 2.0
    assert float(quantities(terms)["R_ie"]) == pytest.approx(0.5)


def test_columns_follow_the_sums():
    assert [int(c) for c in Linear] == list(range(len(Sum), COLUMNS))
    assert [int(t) for t in Term] == list(range(len(Term)))
