"""Workloads of further kinds: they train, their data are what they claim, exact scores are exact."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("sklearn")

from tests.support.training import train
from thermoopt.benchmarks.families import DEVELOPMENT
from thermoopt.benchmarks.workloads import FURTHER, HELD_OUT, WORKLOADS
from thermoopt.benchmarks.workloads.kinds import (
    alike,
    codes,
    functions,
    images,
    recurrent,
    relations,
    shapes,
    soft,
    stacks,
    transformers,
)

# lr, steps, share of the initial score that is left at most
SHORT = {
    "resnet": (1e-2, 60, 0.9),
    "batchnorm": (1e-2, 20, 0.5),
    "capsules": (1e-2, 20, 0.8),
    "implicit": (1e-2, 30, 0.6),
    "distilled": (1e-2, 30, 0.8),
    "few": (3e-3, 10, 0.7),
    "sort": (1e-2, 30, 0.95),
    "markov": (1e-2, 20, 0.9),
    "rows": (1e-2, 30, 0.9),
    "adding": (1e-2, 20, 0.5),
    "ctc": (1e-2, 25, 0.6),
    "surface": (1e-2, 60, 0.8),
    "spread": (1e-2, 150, 0.97),
    "deep-linear": (1e-2, 40, 0.5),
    "experts": (1e-2, 60, 0.7),
    "splines": (1e-2, 40, 0.5),
    "sparse": (1e-2, 20, 0.4),
    "quantised": (3e-3, 30, 0.5),
    "triplets": (1e-2, 15, 0.5),
    "graph-attention": (3e-2, 30, 0.7),
    "topics": (3e-2, 60, 0.8),
    "completion": (3e-2, 80, 0.9),
    "clouds": (1e-2, 60, 0.95),
    "spirals": (1e-2, 60, 0.8),
    "segments": (1e-2, 20, 0.7),
    "mislabelled": (1e-2, 20, 0.8),
    "bootstrap": (1e-2, 60, 0.95),
    "private": (3e-2, 20, 0.8),
    "private-noisy": (3e-2, 40, 0.9),
    "variational": (3e-2, 30, 0.5),
    "td": (3e-2, 60, 0.7),
    "q-learning": (3e-3, 450, 0.95),
    "reinforce": (1e-2, 12, 0.97),
    "ppo": (1e-2, 48, 0.95),
    "pendulum": (1e-2, 20, 0.97),
    "stack-relu": (1e-3, 60, 0.8),
    "stack-tanh": (1e-3, 40, 0.7),
    "stack-layernorm": (1e-3, 60, 0.85),
    "stack-batchnorm": (1e-2, 100, 0.98),
}


@pytest.mark.parametrize("name", SHORT)
def test_a_seed_gives_the_same_task_and_a_short_run_lowers_the_score(name):
    lr, steps, left = SHORT[name]
    state = torch.random.get_rng_state()
    one, same, other = (WORKLOADS[name].build(seed) for seed in (3, 3, 4))
    losses = [[task.loss().item() for _ in range(2)] for task in (one, same, other)]
    assert losses[0] == losses[1] != losses[2]
    start = one.evaluate()
    assert one.evaluate() == start > 0
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(p.grad is None for p in one.model.parameters())
    train(one, lr, steps)
    assert one.evaluate() < left * start
    assert all(m.training for m in one.model.modules())


def test_further_workloads_are_all_tested_and_on_neither_side():
    assert set(FURTHER) == set(SHORT)
    assert not set(FURTHER) & {*DEVELOPMENT, *HELD_OUT}
    assert not {WORKLOADS[n].family for n in FURTHER} & {WORKLOADS[n].family for n in HELD_OUT}


# --- exact scores


def test_true_probabilities_of_the_chain_have_no_excess_and_others_have_their_divergence():
    train, judged = transformers._sequences()
    p = transformers.chain()
    counts = torch.zeros(16, 16, 16)
    for pair_and_next in zip(
        train[:, :-2].flatten(), train[:, 1:-1].flatten(), train[:, 2:].flatten(), strict=True
    ):
        counts[pair_and_next] += 1
    often = counts.sum(dim=2) > 300
    seen = counts[often] / counts[often].sum(dim=1, keepdim=True)
    assert len(seen) > 10
    assert (seen - p[often]).abs().max() < 4 * 0.5 / math.sqrt(300)
    true = torch.cat([torch.full((len(judged), 1, 16), 1 / 16), p[judged[:, :-2], judged[:, 1:-1]]], dim=1)
    assert transformers.excess(true.log(), judged).item() == pytest.approx(0, abs=1e-6)
    guess = torch.randn(true.shape, generator=torch.Generator().manual_seed(0))
    theirs = torch.distributions.kl_divergence(
        torch.distributions.Categorical(probs=true), torch.distributions.Categorical(logits=guess)
    )
    assert transformers.excess(guess, judged).item() == pytest.approx(theirs.mean().item(), rel=1e-5)


def test_a_guess_of_mean_and_spread_is_judged_by_torchs_divergence():
    rng = torch.Generator().manual_seed(0)
    guess = torch.randn(50, 2, generator=rng)
    mu, sigma = torch.randn(50, generator=rng), torch.rand(50, generator=rng) + 0.1
    theirs = torch.distributions.kl_divergence(
        torch.distributions.Normal(mu, sigma),
        torch.distributions.Normal(guess[:, 0], guess[:, 1].exp()),
    ).mean()
    ours = functions.excess(guess, torch.stack([mu, sigma], dim=1))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    x, y, _, _ = functions._spread_data()
    scaled = (y - functions.mean_of(x)) / functions.spread_of(x)
    assert scaled.std().item() == pytest.approx(1, rel=0.05)
    assert scaled.mean().item() == pytest.approx(0, abs=0.05)


def test_words_are_judged_by_the_expected_loss_above_the_lowest():
    pair, negative = relations.together()
    assert pair.sum().item() == pytest.approx(1)
    assert torch.allclose(pair, pair.T)
    model = WORKLOADS["topics"].build(0).model
    rng = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(pair.flatten(), 100_000, True, generator=rng)
    pairs = torch.stack([drawn // 400, drawn % 400], dim=1)
    negatives = torch.multinomial(negative, 500_000, True, generator=rng).view(-1, 5)
    with torch.no_grad():
        at_zero = 6 * math.log(2)
        gained = at_zero - model(pairs, negatives).item()
        scores = model.inputs.weight @ model.outputs.weight.T
        ours = relations.excess(torch.zeros(400, 400)) - relations.excess(scores)
    assert gained == pytest.approx(ours.item(), abs=0.01)
    best = (pair / (5 * pair.sum(dim=1, keepdim=True) * negative)).log()
    assert relations.excess(best).item() == pytest.approx(0, abs=1e-12)
    assert relations.excess(best + 0.1).item() > 0 < relations.excess(best - 0.1).item()


def test_what_is_judged_has_no_noise():
    x, y, x_valid, exact = functions._linear_data()
    fit = torch.linalg.lstsq(x, y).solution
    assert (y - x @ fit).std().item() == pytest.approx(0.2, rel=0.05)
    assert torch.linalg.matrix_rank(torch.linalg.lstsq(x_valid, exact).solution, rtol=1e-4) == 3
    assert torch.allclose(x_valid @ fit, exact, atol=0.1)

    def by_hand(point):
        slopes, centres = (torch.randn(4, 8, generator=torch.Generator().manual_seed(n)) for n in (11, 12))
        return point @ slopes[max(range(4), key=lambda i: (point @ centres[i]).item())]

    x, y, x_valid, exact = functions._regimes()
    assert torch.allclose(torch.stack([by_hand(point) for point in x_valid[:300]]), exact[:300], atol=1e-5)
    noise = y[:1000] - torch.stack([by_hand(point) for point in x[:1000]])
    assert noise.std().item() == pytest.approx(0.1, rel=0.1)


def test_the_matrix_has_the_rank_that_it_claims():
    true, seen, order = relations._matrix()
    assert torch.linalg.matrix_rank(true.view(100, 80)) == 4
    assert (seen - true).std().item() == pytest.approx(0.1, rel=0.05)
    assert sorted(order.tolist()) == list(range(8000))


# --- data


def test_the_sum_of_marked_numbers_has_a_variance_of_a_sixth():
    x, y = recurrent.marked_numbers(20_000, torch.Generator().manual_seed(0))
    assert torch.equal(x[..., 1].sum(dim=1), torch.full((20_000,), 2.0))
    assert torch.equal(x[:, :10, 1].sum(dim=1), torch.ones(20_000))
    assert y.var().item() == pytest.approx(1 / 6, rel=0.03)
    for sequence, total in zip(x[:20], y, strict=False):
        assert sum(n for n, mark in sequence.tolist() if mark) == pytest.approx(total.item())


def test_the_best_alignment_of_a_word_leaves_noise_alone():
    frames, words = recurrent.spoken(40, torch.Generator().manual_seed(0))
    patterns = torch.randn(7, 8, generator=torch.Generator().manual_seed(61))
    left = []
    for heard, word in zip(frames, words.tolist(), strict=True):
        each = []
        for lasts in itertools.product((2, 3, 4), repeat=4):
            sounds = [0, *(s for s, n in zip(word, lasts, strict=True) for _ in range(n))]
            sounds += [0] * (18 - len(sounds))
            each.append((heard - patterns[sounds]).square().mean().item())
        left.append(min(each))
    assert np.sqrt(np.mean(left)) == pytest.approx(0.7, rel=0.05)


def test_points_lie_on_their_surfaces_and_turning_keeps_their_distances():
    sphere, cube, cylinder, cone, torus = shapes.surfaces(50, torch.Generator().manual_seed(0))

    def round_z(p):
        return p[..., :2].norm(dim=2)

    one = torch.ones(50, shapes.POINTS)
    assert torch.allclose(sphere.norm(dim=2), one)
    assert torch.allclose(cube.abs().amax(dim=2), one)
    assert torch.allclose(round_z(cylinder), one)
    assert cylinder[..., 2].abs().max() <= 1
    assert torch.allclose(round_z(cone), (1 - cone[..., 2]) / 2, atol=1e-6)
    assert torch.allclose((round_z(torus) - 0.7).square() + torus[..., 2].square(), 0.09 * one, atol=1e-6)
    x, which = shapes.clouds(2000, torch.Generator().manual_seed(1))
    size = x[which == 0].norm(dim=2).mean(dim=1)
    assert 0.65 < size.min() < 0.75
    assert 1.25 < size.max() < 1.35
    assert x.mean(dim=(0, 1)).abs().max() < 0.03  # turned any way


def test_spirals_and_discs_are_what_they_say():
    x, which = shapes.spirals(1000, torch.Generator().manual_seed(0))
    angle = 5 * x.norm(dim=1) / 2 + math.pi * which
    expected = x.norm(dim=1)[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    assert (x - expected).norm(dim=1).mean() < 0.2
    pictures, disc = shapes.discs(500, torch.Generator().manual_seed(0))
    assert disc.sum(dim=(1, 2, 3)).mean().item() == pytest.approx(math.pi * 11.08, rel=0.1)
    assert (pictures[disc == 1] - 1).std().item() == pytest.approx(0.5, rel=0.03)
    assert pictures[disc == 1].mean().item() == pytest.approx(1, abs=0.03)


# --- models


def test_capsules_are_shorter_than_1_and_their_loss_is_the_papers():
    v = torch.tensor([[3.0, 4.0]])
    np.testing.assert_allclose(images.squash(v), [[0.6 * 25 / 26, 0.8 * 25 / 26]], rtol=1e-6)
    lengths = images.Capsules()(torch.rand(5, 1, 8, 8))
    assert lengths.shape == (5, 10)
    assert 0 < lengths.min() <= lengths.max() < 1
    guess = torch.full((1, 10), 0.3)
    by_hand = 0.6**2 + 0.5 * 9 * 0.2**2
    assert images.margin_loss(guess, torch.tensor([4])).item() == pytest.approx(by_hand)
    right = torch.full((1, 10), 0.05).index_fill(1, torch.tensor(4), 0.95)
    assert images.margin_loss(right, torch.tensor([4])).item() == 0


def test_the_implicit_layer_is_at_its_fixed_point():
    torch.manual_seed(0)
    model = images.Implicit()
    x = torch.rand(20, 1, 8, 8)
    z = model.fixed_point(x)
    again = torch.tanh(z @ model.again.weight.T + model.enter(x.flatten(1)))
    assert (again - z).norm() < 0.01 * z.norm()


def test_triplets_are_those_of_three_loops():
    rng = torch.Generator().manual_seed(0)
    z, y = torch.randn(9, 4, generator=rng), torch.randint(3, (9,), generator=rng)
    unit = F.normalize(z, dim=1)
    each = [
        max(0.0, (unit[a] - unit[p]).square().sum().item() - (unit[a] - unit[n]).square().sum().item() + 0.5)
        for a, p, n in itertools.product(range(9), repeat=3)
        if a != p and y[a] == y[p] and y[a] != y[n]
    ]
    assert alike.triplet_loss(z, y).item() == pytest.approx(np.mean(each), rel=1e-4)


def test_two_experts_answer_and_edges_are_sums_of_functions():
    torch.manual_seed(0)
    experts, x = functions.Experts(), torch.randn(6, 8)
    chances = experts.gate(x).softmax(dim=1)
    for i in range(6):
        best = chances[i].topk(2)
        total = 0.0
        for share, e in zip(best.values / best.values.sum(), best.indices, strict=True):
            hidden = F.relu(x[i] @ experts.enter[e] + experts.bias[e, 0])
            total += (share * (hidden @ experts.leave[e, :, 0])).item()
        assert experts(x)[i].item() == pytest.approx(total, rel=1e-4)
    edges, x = functions.Edges(3, 2), torch.randn(4, 3)
    bumps = torch.zeros(4, 2)
    for i, k in itertools.product(range(3), range(8)):
        centre = -2 + 4 * k / 7
        bumps += torch.exp(-((x[:, i] - centre) * 7 / 4).square())[:, None] * edges.heights[8 * i + k]
    assert torch.allclose(edges(x), edges.smooth(F.silu(x)) + bumps, atol=1e-5)


def test_codes_are_the_nearest_and_gradients_pass_the_choice():
    torch.manual_seed(0)
    model = codes.Quantised()
    z = torch.randn(5, 4, 8)
    for i, k in itertools.product(range(5), range(4)):
        nearest = min(model.books[k], key=lambda entry: (entry - z[i, k]).norm().item())
        assert torch.equal(model.nearest(z)[i, k], nearest)
    x = torch.rand(7, 64)
    model.eval()
    error = model(x)
    (slope,) = torch.autograd.grad(error, model.encoder[2].bias)
    chosen = model.nearest(model.encoder(x).view(7, 4, 8)).detach().requires_grad_()
    at_chosen = (model.decoder(chosen.flatten(1)) - x).square().sum(dim=1).mean()
    assert error.item() == pytest.approx(at_chosen.item(), rel=1e-5)
    (expected,) = torch.autograd.grad(at_chosen, chosen)
    assert torch.allclose(slope, expected.sum(dim=0).flatten(), atol=1e-5)


def test_attention_is_paid_to_neighbours_only():
    torch.manual_seed(0)
    edges, x, blocks = relations._graph()
    assert torch.equal(edges, edges.T)
    same = blocks[:, None] == blocks
    one_way = edges & ~torch.eye(160, dtype=torch.bool)
    assert one_way[same].float().mean().item() == pytest.approx(1 - 0.9**2, rel=0.1)
    layer = relations.Attention(16, 8, 4).eval()
    values = layer.values(x).view(160, 4, 8)
    weights = layer.weights(values, edges)
    assert (weights[~edges] == 0).all()
    neighbours = edges[7].nonzero()[:, 0]
    logits = torch.stack(
        [
            F.leaky_relu((values[7, 1] * layer.ends[0, 1] + values[j, 1] * layer.ends[1, 1]).sum(), 0.2)
            for j in neighbours
        ]
    )
    assert torch.allclose(weights[7, neighbours, 1], logits.softmax(dim=0), atol=1e-6)
    assert torch.allclose(layer(x, edges)[7, 8:16], logits.softmax(dim=0) @ values[neighbours, 1], atol=1e-5)


def test_a_forest_teaches_and_40_percent_of_labels_are_drawn_anew():
    _, probabilities, _, judged = soft._taught()
    for p in (probabilities, judged):
        np.testing.assert_allclose(p.sum(dim=1), 1, atol=1e-5)
    clamped = judged.clamp(min=1e-30)
    assert soft.divergence(clamped.log(), judged).item() == pytest.approx(0, abs=1e-5)
    wrong = images._mislabelled()[1] != images.labelled()[1]
    assert wrong.float().mean().item() == pytest.approx(0.4 * 0.9, abs=0.03)
    few = WORKLOADS["few"].build(0)
    with torch.no_grad():
        few.model[-1].weight.zero_()
        few.model[-1].bias.copy_(torch.arange(10.0))
    _, y = images.labelled()[2:]
    expected = F.cross_entropy(torch.arange(10.0).expand(len(y), 10), y).item()
    assert few.evaluate() == pytest.approx(expected, rel=1e-5)


def test_a_stack_keeps_the_size_of_its_signals_and_has_twenty_matrices():
    """He's gain for ReLU: as many layers again leave the mean square of a signal as it is, up to chance."""
    torch.manual_seed(0)
    sizes = []
    for _ in range(30):
        body = stacks.stack(torch.nn.ReLU, gain=2**0.5)
        assert sum(p.ndim == 2 for p in body.parameters()) == 20
        x = torch.randn(8, 64)
        sizes.append((body[:-1](x).square().mean() / F.relu(body[1](x)).square().mean()).item())
    assert 0.5 < np.mean(sizes) < 2
