"""Private gradients, variational inference and networks that act: closed forms of what they are judged by."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

pytest.importorskip("sklearn")

from thermoopt.benchmarks.workloads import WORKLOADS
from thermoopt.benchmarks.workloads.kinds import alike, inference, private
from thermoopt.benchmarks.workloads.kinds.rewards import cartpole, pendulum, policies, values
from thermoopt.benchmarks.workloads.task import with_gradients

# --- gradients


def test_a_loss_with_given_gradients_has_them_and_its_value():
    p, q = (torch.randn(3, requires_grad=True) for _ in range(2))
    g, h = torch.randn(3), torch.randn(3)
    loss = with_gradients(torch.tensor(7.5), [p, q], [g, h])
    loss.backward()
    assert loss.item() == 7.5
    assert torch.equal(p.grad, g)
    assert torch.equal(q.grad, h)


def test_private_gradients_are_clipped_picture_by_picture_and_as_noisy_as_said():
    task = WORKLOADS["private"].build(0)
    task.loss().backward()
    first = [p.grad.clone() for p in task.model.parameters()]
    rng = torch.Generator().manual_seed(0)
    x, y, _, _ = private.labelled()
    rows = torch.randint(len(x), (64,), generator=rng)
    total = [torch.zeros_like(g) for g in first]
    for row in rows:
        gradients = torch.autograd.grad(
            F.cross_entropy(task.model(x[row][None]), y[row][None]), list(task.model.parameters())
        )
        norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
        for sum_, g in zip(total, gradients, strict=True):
            sum_ += g / max(1.0, norm)
    noise = torch.cat([(64 * g - t).flatten() for g, t in zip(first, total, strict=True)])
    assert noise.std().item() == pytest.approx(2, rel=0.03)
    assert noise.mean().item() == pytest.approx(0, abs=0.1)
    each = {"a": torch.tensor([[3.0, 4.0], [0.3, 0.4]])}
    clean = private.clipped_and_noisy(each, 1.0, 0.0, rng)["a"]
    assert torch.allclose(clean, torch.tensor([0.45, 0.6]))


# --- inference


def test_the_bound_is_that_of_many_draws_and_its_least_one_is_where_it_is_flat():
    task = WORKLOADS["variational"].build(0)
    with torch.no_grad():
        task.model.mean.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
        noise = torch.randn(20_000, 31, generator=torch.Generator().manual_seed(1))
        x, y = (part.float() for part in inference._patients())
        weights = task.model.mean + task.model.log_spread.exp() * noise
        likelihood = F.logsigmoid(y * (weights @ x.T)).sum(dim=1).mean()
    prior = torch.distributions.kl_divergence(
        torch.distributions.Normal(task.model.mean, task.model.log_spread.exp()),
        torch.distributions.Normal(0.0, 1.0),
    ).sum()
    expected = ((prior - likelihood) / len(x)).item()
    assert task.evaluate() + inference.lowest() == pytest.approx(expected, rel=0.01)
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        mean = torch.randn(31, generator=rng, dtype=torch.float64) / 3
        spread = torch.rand(31, generator=rng, dtype=torch.float64) / 2 + 0.1
        assert inference.bound(mean, spread).item() > inference.lowest()


def test_a_least_bound_that_is_not_certain_is_not_used(monkeypatch):
    monkeypatch.setattr(inference, "CERTAIN", 0.0)
    with pytest.raises(ArithmeticError, match=r"the least bound is known to .* only, 0 is asked for"):
        inference.lowest.__wrapped__()


def test_wrong_neighbours_are_counted():
    z = torch.eye(10)[[0, 0, 0, 0, 1, 1, 1, 1, 1]] + 0.01 * torch.arange(10)
    y = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1])
    share = alike.wrong_neighbours(z, y, z[[0, 8]], y[[0, 8]])
    assert share.item() == pytest.approx(0.1)  # one of the five of the first, none of the second


# --- carts


def energy(state):
    """Kinetic and potential energy of a cart and a uniform rod that turns about its end, in joules."""
    _, speed, angle, turning = state
    m, half = cartpole.POLE, cartpole.HALF_LENGTH
    centre = speed + half * turning * angle.cos(), -half * turning * angle.sin()
    rod = m * (2 * half) ** 2 / 12
    kinetic = cartpole.CART * speed**2 + m * (centre[0] ** 2 + centre[1] ** 2) + rod * turning**2
    return kinetic / 2 + m * cartpole.GRAVITY * half * angle.cos()


def test_the_force_on_a_cart_is_all_that_changes_its_energy():
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        state = torch.randn(4, generator=rng, dtype=torch.float64)
        force = 10 * torch.randn(1, generator=rng, dtype=torch.float64)
        moved, turned = cartpole.accelerations(state[None], force)
        slope = torch.autograd.functional.jacobian(energy, state)
        rate = slope @ torch.stack([state[1], moved[0], state[3], turned[0]])
        assert rate.item() == pytest.approx((force * state[1]).item(), rel=1e-9, abs=1e-9)
        momentum = (cartpole.CART + cartpole.POLE) * moved + cartpole.POLE * cartpole.HALF_LENGTH * (
            turned * state[2].cos() - state[3] ** 2 * state[2].sin()
        )
        assert momentum.item() == pytest.approx(force.item())


def test_carts_are_gymnasiums_where_it_is_installed():
    gymnasium = pytest.importorskip("gymnasium")
    theirs = gymnasium.make("CartPole-v1").unwrapped
    theirs.reset(seed=0)
    ours = cartpole.Carts(1, 500, torch.Generator())
    ours.state = torch.tensor(theirs.state)[None].double()
    for push in (1, 0, 0, 1, 1, 1, 0):
        after = ours.step(torch.tensor([push]))[0]
        theirs.step(push)
        assert after[0].tolist() == pytest.approx(list(theirs.state))


def test_an_episode_ends_with_a_fall_or_with_its_time():
    rng = torch.Generator().manual_seed(0)
    carts = cartpole.Carts(3, 4, rng)
    carts.state[0, 2] = 0.2094
    carts.state[0, 3] = 1.0
    after, fell, over = carts.step(torch.ones(3))
    assert fell.tolist() == over.tolist() == [True, False, False]
    assert after[0, 2] > cartpole.STEEPEST > carts.state[0, 2].abs()
    assert carts.age.tolist() == [0, 1, 1]
    for _ in range(3):
        _, fell, over = carts.step(torch.tensor([0, 1, 0]))
    assert over.tolist() == [False, True, True]
    assert not fell.any()
    assert cartpole.missing_share(lambda states, rng: torch.ones(len(states)), 500) == pytest.approx(
        1 - 9.4 / 500, abs=0.002
    )  # always pushed one way, it lasts 8 to 10 steps

    def balanced(states, rng):
        return (states @ torch.tensor([0.1, 0.3, 1.0, 0.5]) > 0).float()

    assert cartpole.missing_share(balanced, 200) == 0


def test_advantages_are_returns_less_values_where_errors_are_kept(monkeypatch):
    monkeypatch.setattr(policies, "TRACE", 1.0)
    rng = torch.Generator().manual_seed(0)
    rewards, values_of = torch.ones(6, 1), torch.randn(7, 1, generator=rng)
    over = torch.tensor([0, 0, 1, 0, 0, 0]).bool()[:, None]
    fell = over
    found = policies.advantages(rewards, values_of[:-1], values_of[1:] * ~fell, over)
    for t in range(6):
        until = 3 if t < 3 else 6
        gained = sum(0.99**k for k in range(until - t))
        if until == 6:
            gained += 0.99 ** (6 - t) * values_of[6].item()
        assert found[t].item() == pytest.approx(gained - values_of[t].item(), rel=1e-5)


def test_gradients_of_ppo_are_clipped_and_no_smaller_ones():
    task = WORKLOADS["ppo"].build(0)
    task.loss().backward()
    norm = torch.stack([p.grad.square().sum() for p in task.model.parameters()]).sum().sqrt()
    assert norm.item() == pytest.approx(0.5, rel=1e-4)  # the values' error is large at first
    small = (torch.full((4,), 0.1),)
    assert torch.equal(policies.clipped(small, 0.5)[0], small[0])


@pytest.mark.slow
def test_ppo_keeps_the_pole_up():
    """At AdamW's best rate it comes to 400 steps of 500, or the workload is wrong."""
    workload = WORKLOADS["ppo"]
    task = workload.build(0)
    steps = workload.horizons[0]
    optimizer = torch.optim.AdamW(task.model.parameters(), 1e-2, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        task.loss().backward()
        optimizer.step()
        schedule.step()
    assert task.evaluate() < 0.2


# --- values


def test_the_values_of_the_ring_are_the_mean_of_long_walks():
    chances, rewards, _ = values.ring()
    assert torch.equal(chances.sum(dim=1), torch.ones(40))
    expected = torch.zeros(40, dtype=torch.float64)
    occupied = torch.eye(40, dtype=torch.float64)
    for k in range(600):
        occupied = occupied @ chances.double()
        expected += 0.95**k * (occupied @ rewards.double())
    assert torch.allclose(values.true_values(), expected, atol=1e-6)
    task = WORKLOADS["td"].build(0)

    class Known(nn.Module):
        def forward(self, features):
            which = torch.cdist(features, values.ring()[2]).argmin(dim=1)
            return values.true_values().float()[which]

    task.model[0], task.model[1], task.model[2], task.model[3] = Known(), *(nn.Identity() for _ in range(3))
    assert task.evaluate() == pytest.approx(0, abs=1e-9)


def test_a_memory_keeps_the_last_transitions():
    memory = values.Memory(5)
    for i in range(4):
        fell = torch.tensor([True, False])
        memory.add(torch.full((2, 4), float(i)), torch.tensor([0, 1]), torch.zeros(2, 4), fell)
    states, pushes, after, fell = memory.draw(500, torch.Generator().manual_seed(0))
    assert set(states[:, 0].tolist()) == {1.0, 2.0, 3.0}
    assert memory.count == 8
    assert set(zip(pushes.tolist(), fell.tolist(), strict=True)) == {(0, 1.0), (1, 0.0)}
    assert (after == 0).all()


# --- the pendulum


def test_a_pendulum_that_nobody_pushes_keeps_its_energy_and_swings_at_its_frequency():
    angle = torch.tensor([math.pi - 0.05], dtype=torch.float64)  # hangs, nearly
    speed, fine = torch.zeros(1, dtype=torch.float64), []
    for _ in range(200):
        speed = pendulum.accelerated(angle, speed, torch.zeros(1))
        angle = angle + pendulum.TICK * speed
        fine.append((angle - math.pi).item())
    crossings = [i for i in range(1, 200) if fine[i - 1] < 0 <= fine[i]]
    period = (crossings[-1] - crossings[0]) / (len(crossings) - 1) * pendulum.TICK
    assert period == pytest.approx(2 * math.pi / math.sqrt(15), rel=0.03)  # a rod about its end: 3 g / 2 l
    assert max(map(abs, fine[-40:])) == pytest.approx(0.05, rel=0.1)


def test_doing_nothing_upright_costs_nothing_and_hanging_costs_pi_squared():
    class Nothing(nn.Module):
        def forward(self, x):
            return torch.zeros(len(x), 1)

    assert pendulum.mean_cost(Nothing(), torch.zeros(3), None).item() == 0
    hanging = pendulum.mean_cost(Nothing(), torch.full((3,), math.pi), None).item()
    assert hanging == pytest.approx(math.pi**2, rel=1e-4)
