"""The irreversibility benchmark: its sums against plain loops, its rows, that it goes on, and its report."""

import json
import sys

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("matplotlib")


def test_a_path_holds_what_adam_does():
    """Energies against a loop of torch's own AdamW: U is the step over lr."""
    from thermoopt.benchmarks.irreversibility.models import BUILD, LR
    from thermoopt.benchmarks.irreversibility.paths import COLUMNS, SCHEDULES, Path, train

    row, stored = train(Path("linear", "cosine", 0, steps=30))
    assert stored.shape == (30, len(COLUMNS))
    assert row["recomputed"] < 1e-4
    task = BUILD["linear"](0)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=LR["linear"], weight_decay=0.0, fused=True)
    for step in range(30):
        optimizer.param_groups[0]["lr"] = lr = LR["linear"] * SCHEDULES["cosine"]((step + 1) / 30)
        before = [p.detach().clone() for p in task.model.parameters()]
        optimizer.zero_grad()
        loss = task.loss()
        loss.backward()
        optimizer.step()
        if lr:
            moved = sum(
                ((b - p.detach()) / lr).square().sum().item()
                for b, p in zip(before, task.model.parameters(), strict=True)
            )
            np.testing.assert_allclose(stored[step, 0], moved / 4, rtol=1e-2)
        np.testing.assert_allclose(stored[step, 2:], [lr, loss.item()], rtol=1e-4, atol=1e-12)
    assert row["valid"] == pytest.approx(task.evaluate(), rel=1e-4)


def test_schedules_are_what_they_are_called():
    from thermoopt.benchmarks.irreversibility.paths import SCHEDULES

    u = np.linspace(0.0005, 1, 2000)
    shapes = {name: np.array([f(x) for x in u]) for name, f in SCHEDULES.items()}
    assert len(shapes) == 6
    assert all(s.max() <= 1 for s in shapes.values())
    assert shapes["linear"][-1] == pytest.approx(0, abs=1e-12)
    assert shapes["cosine"][-1] == pytest.approx(0, abs=1e-12)
    assert shapes["1/t"][-1] == pytest.approx(0.1)
    assert shapes["warm-up"][:100].max() < 0.51 < shapes["warm-up"][300]
    assert sorted(set(np.round(shapes["step"], 6))) == [0.01, 0.1, 1.0]


@pytest.mark.parametrize("net", ["linear", "relu"])
@pytest.mark.parametrize("noise", ["minibatch", "labels"])
def test_sums_over_noise_are_those_of_single_samples(net, noise):
    """Mean gradient and trace of the covariance from autograd, sample by sample."""
    from thermoopt.benchmarks.irreversibility.valley import BATCH, NOISE, OUTPUTS, SAMPLES, Nets

    nets = Nets(net, noise)
    w1, w2 = nets.w1 * 1.7, nets.w2 / 1.7 + 0.1
    loss, mean2, trace = (t[1].item() for t in nets.energies(w1, w2))
    v1, v2 = w1[1].clone().requires_grad_(True), w2[1].clone().requires_grad_(True)
    gradients, jacobian2, total = [], 0.0, 0.0
    for i in range(SAMPLES):
        hidden = v1 @ nets.x[1, i]
        f = v2 @ (hidden.relu() if net == "relu" else hidden)
        one = (f - nets.y[1, i]).square().sum() / 2
        total += one.item() / SAMPLES
        gradients.append(
            torch.cat([g.flatten() for g in torch.autograd.grad(one, (v1, v2), retain_graph=True)])
        )
        if noise == "labels":
            for k in range(OUTPUTS):
                jacobian2 += sum(
                    g.square().sum().item() for g in torch.autograd.grad(f[k], (v1, v2), retain_graph=True)
                )
    each = torch.stack(gradients)
    mean = each.mean(0)
    assert loss == pytest.approx(total, rel=1e-10)
    assert mean2 == pytest.approx(mean.square().sum().item(), rel=1e-9)
    if noise == "minibatch":
        expected = (each - mean).square().sum(1).mean().item() / BATCH
    else:
        expected = NOISE["labels"] ** 2 * jacobian2 / SAMPLES**2
    assert trace == pytest.approx(expected, rel=1e-9)
    assert nets.phi(w1, w2)[1].item() == pytest.approx(0.03 / 4 * (mean2 + trace), rel=1e-12)


def test_noise_of_a_step_has_that_covariance():
    """Four thousand noisy steps from the same point."""
    from thermoopt.benchmarks.irreversibility.valley import Nets, _step

    for noise, dynamics in (("minibatch", "noise"), ("labels", "noise"), ("labels", "isotropic")):
        nets, rng = Nets("relu", noise), torch.Generator().manual_seed(0)
        w1, w2 = nets.w1 * 1.5, nets.w2
        mean = torch.cat([g.flatten(1) for g in nets.gradient(w1, w2, nets.x, nets.y)], dim=1)
        apart = torch.zeros(len(mean), dtype=torch.float64)
        for _ in range(1000):
            steps = torch.cat([g.flatten(1) for g in _step(nets, w1, w2, dynamics, rng)], dim=1)
            apart += (steps - mean).square().sum(1) / 1000
        torch.testing.assert_close(apart, nets.energies(w1, w2)[2], rtol=0.1, atol=0)


def test_a_valley_is_walked(monkeypatch):
    """SGD and the force shrink the imbalance, descent without noise keeps it; the loss below stays."""
    from thermoopt.benchmarks.irreversibility import valley as irreversibility_valley
    from thermoopt.benchmarks.irreversibility.valley import Valley, walk

    monkeypatch.setattr(irreversibility_valley, "SETTLE", 0)  # with clean labels the start is the bottom
    monkeypatch.setattr(irreversibility_valley, "DESCENT", 50)
    walks = {name: walk(Valley("linear", "labels", name, steps=200)) for name in ("noise", "force", "flow")}
    for row in walks.values():
        assert np.shape(row["phi_bottom"]) == (41, 3)
        assert np.max(row["loss_bottom"]) < 1e-3
    ends = {name: np.array(row["balance"])[-1] / np.array(row["balance"])[0] for name, row in walks.items()}
    np.testing.assert_allclose(ends["flow"], 1, atol=1e-3)
    assert (ends["noise"] < 0.98).all()
    np.testing.assert_allclose(1 - ends["noise"], 1 - ends["force"], rtol=0.5)


def test_the_theorems_hold_as_the_report_says():
    from thermoopt.benchmarks.irreversibility.agreement import symmetry

    found = list(symmetry(0)["found"].values())
    assert found[0] < 1e-6
    assert found[1] == 1
    assert max(found[2], found[3], found[4]) < 1e-6
    assert found[5] > 0.05


def test_the_models_are_those_that_are_told():
    from thermoopt.benchmarks.irreversibility.models import BUILD, GRU

    transformer = BUILD["transformer"](0)
    assert len(transformer.model.blocks) == 2
    assert transformer.model.config.width == 128
    assert transformer.model.config.heads == 4
    rnn = GRU().rnn
    assert isinstance(rnn, nn.GRU)
    assert (rnn.num_layers, rnn.hidden_size) == (2, 256)
    # a sorter that cannot know better than chance starts at ln of the symbols or above
    assert transformer.evaluate() > 2.7
    assert transformer.loss().item() == pytest.approx(transformer.evaluate(), rel=0.2)


def test_it_goes_on_where_it_stopped_and_writes_a_report(tmp_path, monkeypatch, capsys):
    from thermoopt.benchmarks.irreversibility import command as irreversibility

    (tmp_path / "words.md").write_text("Some words.\n")

    def run(*seeds):
        monkeypatch.setattr(sys, "argv", [
            "irreversibility", "--out", str(tmp_path), "--parts", "paths", "agreement", "--models", "linear",
            "--schedules", "linear", "1/t", "--steps", "20", "--workers", "1", "--seeds", *seeds,
        ])  # fmt: skip
        irreversibility.main()
        return capsys.readouterr().out

    monkeypatch.setattr(irreversibility, "KINDS", {"quadratic": None})
    assert "0 runs are done, 3 to do" in run("0")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(rows.read_text() + '{"part": "pat')  # torn by a crash
    assert "3 runs are done, 3 to do" in run("0", "1")
    kept = [json.loads(line) for line in rows.read_text().splitlines() if line.endswith("}")]
    assert len({irreversibility.key(row) for row in kept}) == len(kept) == 6
    for name in ("linear_linear_0", "linear_linear_1", "linear_1t_1"):
        assert np.load(tmp_path / "paths" / f"{name}.npy").shape == (20, 4)
    text = (tmp_path / "report.md").read_text()
    assert "Some words." in text
    assert "| linear: 1/t |" in text
    assert "| quadratic: TR | 1.0000" in text
    assert "exact" in text
    for name in ("paths.png", "agreement.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    assert np.load(tmp_path / "means.npz")["linear_1t"].shape == (2, 1)
