"""Methods over other optimizers, anytime runs, and the tables of both."""

import pytest
import torch
from torch import nn

pytest.importorskip("sklearn")

from thermoopt.benchmarks.families import Case
from thermoopt.benchmarks.families.cases import GRIDS
from thermoopt.benchmarks.families.runs import run
from thermoopt.benchmarks.families.schedulers import COMPARISONS, comparison_table, write_comparisons
from thermoopt.benchmarks.methods import METHODS, SCHEDULED, Point
from thermoopt.benchmarks.methods.lion import Lion
from thermoopt.benchmarks.methods.scheduled import hidden_matrices


def test_lion_is_the_loop_of_its_formulas():
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(5, dtype=torch.float64))
    still = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = Lion([p, still], 0.01, (0.9, 0.99), weight_decay=0.3)
    theta, m = p.detach().clone(), torch.zeros(5, dtype=torch.float64)
    for _ in range(30):
        g = torch.randn(5, dtype=torch.float64)
        p.grad = g
        theta = theta - 0.01 * ((0.9 * m + 0.1 * g).sign() + 0.3 * theta)
        m = 0.99 * m + 0.01 * g
        optimizer.step()
        torch.testing.assert_close(p.detach(), theta, rtol=1e-12, atol=1e-14)
    assert still.eq(1).all()  # it never had a gradient


def test_muon_gets_hidden_matrices_and_adamw_all_the_rest():
    net = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 6), nn.GRU(6, 5), nn.Linear(5, 7))
    shapes = [tuple(p.shape) for p in hidden_matrices(net)]
    assert shapes == [(6, 4), (15, 6), (15, 5)]  # neither the table nor the read-out
    before = [p.detach().clone() for p in net.parameters()]
    setup = SCHEDULED["muon linear"].build(net, Point(0.01), 10, 0)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    setup.optimizer.step()
    setup.schedule.step()
    setup.after_step()
    moved = [not torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True)]
    assert all(moved)
    setup.optimizer.zero_grad()
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("name", [it.own for it in COMPARISONS])
def test_a_run_without_a_learning_rate_ends_far_below_its_start(name):
    made = run(Case("friedman", 80, name, None, 0, False))
    assert not made["diverged"]
    assert made["score"] < 0.5 * made["initial"]


def test_an_anytime_run_holds_its_rate_and_cools_in_its_last_fifth():
    net = nn.Linear(3, 1)
    setup = SCHEDULED["autotune anytime"].build(net, Point(), 50, 0)
    moved = []
    for _ in range(50):
        before = net.weight.detach().clone()
        setup.optimizer.zero_grad()
        net(torch.randn(8, 3)).square().mean().backward()
        setup.optimizer.step()
        setup.after_step()
        moved.append((net.weight - before).norm().item())
    cooling = setup.optimizer.controller.controllers[-1].state_dict()
    assert (cooling["quench_from"], cooling["quench_steps"]) == (41, 10)
    assert moved[39] > 0.1 * max(moved)
    assert 0 < moved[49] < 0.3 * moved[39]  # 1 - sqrt(0.9) of the rate is left, and 0 at the next


def rows_of(workload, steps):
    rows = []

    def add(method, lr, seed, score, told, **more):
        rows.append(
            {"workload": workload, "steps": steps, "method": method, "lr": lr, "seed": seed, "told": told}
            | {"score": score, "initial": 2.0, "diverged": False, "source": None}
            | more
        )

    for lr in GRIDS["lion linear"]:
        add("lion linear", lr, 100, abs(lr - 1e-3), True)
    for seed in (0, 1):
        add("lion linear", 1e-3, seed, 0.5, True)
        add("lion linear", 3e-3, seed, 0.1, True)  # better, but not what the other seed chose
        add("scheduler lion autotune", None, seed, 0.6 if seed else 2.0, False, diverged=not seed)
    return rows


def test_a_ratio_is_to_the_rate_chosen_on_another_seed_and_failures_are_counted(tmp_path):
    rows = rows_of("friedman", 300)
    table = comparison_table(rows)
    expected = (1.3 + 0.02) / (0.5 + 0.02)
    assert f"| Lion | {expected:.3f} | 1.1 | {expected:.2f} | friedman | 2 | 1 of 2 |" in table
    assert f"| small tables | friedman, 300 steps | {expected:.3f} |" in table
    assert "| friedman | 0.001 |" in table
    write_comparisons(tmp_path, rows)
    text = (tmp_path / "schedulers.md").read_text()
    assert table in text
    assert all(name in METHODS | SCHEDULED for it in COMPARISONS for name in (it.own, it.reference))
