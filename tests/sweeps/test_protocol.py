"""The protocol of a sweep: what it refuses, what its hash is of, and that its points are spread evenly."""

import math

import numpy as np
import pytest

pytest.importorskip("optuna")
pytest.importorskip("mnist1d")
pytest.importorskip("sklearn")

from tests.support.sweeps import TIER, changed
from thermoopt.benchmarks.methods import METHODS
from thermoopt.benchmarks.sweeps.design import design
from thermoopt.benchmarks.sweeps.protocol import Protocol, ProtocolError, read_tiers
from thermoopt.benchmarks.workloads import WORKLOADS


@pytest.mark.parametrize("name", ["smoke", "quick", "full"])
def test_the_tiers_of_the_package_can_be_run(name):
    tier = Protocol.load(name)
    assert "adamw linear" in tier.methods  # what the report measures by
    horizons = sum(len(i) for i in tier.workloads.values())
    cells = tier.cells()
    assert len(set(cells)) == len(cells) == horizons * len(tier.methods) * len(tier.seeds)
    for cell in cells:
        assert cell.steps in WORKLOADS[cell.workload].horizons
        assert tier.points(cell.method) == (tier.budget if METHODS[cell.method].tunables else 1)
    assert all(WORKLOADS[w].optional is None for w in tier.workloads) or name == "full"


def test_the_tiers_are_as_large_as_the_issue_says():
    quick, full = Protocol.load("quick"), Protocol.load("full")
    assert (quick.budget, len(quick.seeds), {*quick.workloads.values()}) == (4, 3, {(0,)})
    assert (full.budget, len(full.seeds), {*full.workloads.values()}) == (16, 5, {(0, 1)})
    assert len(read_tiers()) == 3


def test_the_hash_is_of_everything_but_the_words():
    tier = Protocol.of("t", TIER)
    again = Protocol.of("t", dict(reversed(TIER.items())))
    assert tier.hash == again.hash == Protocol.of("t", tier.content).hash
    assert len(tier.hash) == 64
    assert tier.hash == Protocol.of("t", changed(about="other words", lr=[0.0001, 0.1])).hash
    others = {
        "workloads": {"linear": [0], "mlp": [0]},
        "methods": ["adamw linear"],
        "seeds": [3],
        "budget": 5,
        "lr": [1e-4, 2e-1],
        "decay": [2e-3, 1e-1],
        "evaluations": 6,
        "log_every": 2,
    }
    hashes = {Protocol.of("u", TIER).hash, tier.hash, Protocol.of("t", changed(design=2, sampler="tpe")).hash}
    for field, value in others.items():
        more = {"design": 5} if field == "budget" else {}
        hashes.add(Protocol.of("t", changed(**{field: value}, **more)).hash)
    assert len(hashes) == 3 + len(others)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"methods": ["adamw liner"]}, ["no method 'adamw liner'", "'adamw linear'"]),
        ({"workloads": {"mpl": [0]}}, ["no workload 'mpl'", "'mlp'"]),
        ({"workloads": {"mlp": [2]}}, ["workloads.mlp", "(2,)", "[0, 1]"]),
        ({"workloads": {"mlp": 0}}, ["workloads.mlp must be", "got 0"]),
        ({"workloads": {"mlp": []}}, ["workloads.mlp"]),
        ({"workloads": {"mlp": [0, 0]}}, ["every index once"]),
        ({"workloads": {}}, ["workloads", "at least one"]),
        ({"workloads": ["mlp"]}, ["workloads must be", "got ['mlp']"]),
        ({"methods": "autotune"}, ["methods must be", "got 'autotune'"]),
        ({"methods": ["autotune", "autotune"]}, ["methods", "once"]),
        ({"seeds": []}, ["seeds"]),
        ({"seeds": [0, -1]}, ["seeds", "-1"]),
        ({"seeds": [0, True]}, ["seeds", "True"]),
        ({"budget": 0}, ["budget must be", "got 0", "an integer >= 1"]),
        ({"budget": 2.5}, ["budget must be", "got 2.5"]),
        ({"design": 5}, ["design must be", "got 5", "budget of 4"]),
        ({"design": 2}, ["sampler must be", "got 'none'", "tpe"]),
        ({"sampler": "tpe"}, ["sampler must be", "got 'tpe'"]),
        ({"sampler": "grid"}, ["sampler must be", "got 'grid'", "none, tpe"]),
        ({"lr": [1e-1, 1e-4]}, ["lr must be", "least < largest"]),
        ({"lr": [0, 1]}, ["lr must be", "got (0, 1)"]),
        ({"decay": [1e-3, math.inf]}, ["decay must be"]),
        ({"decay": ["a", "b"]}, ["decay must be", "got ('a', 'b')"]),
        ({"evaluations": 0}, ["evaluations must be", "got 0"]),
        ({"log_every": True}, ["log_every must be", "got True"]),
        ({"budgets": 4}, ["no field 'budgets'", "'budget'"]),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(fields, words):
    with pytest.raises(ProtocolError) as error:
        Protocol.of("t", changed(**fields))
    for word in ("tier 't'", *words):
        assert word in str(error.value)


def test_missing_fields_tiers_and_files(tmp_path):
    with pytest.raises(ProtocolError, match="budget, lr missing"):
        Protocol.of("t", {k: v for k, v in TIER.items() if k not in ("budget", "lr")})
    with pytest.raises(ProtocolError, match=r"no tier 'smok'; did you mean 'smoke'\?"):
        Protocol.load("smok")
    with pytest.raises(ProtocolError, match=r"none\.toml cannot be read: No such file"):
        Protocol.load("smoke", tmp_path / "none.toml")
    bad = tmp_path / "bad.toml"
    bad.write_text("[smoke\n")
    with pytest.raises(ProtocolError, match=r"bad.toml is not TOML: .*line 1"):
        Protocol.load("smoke", bad)
    bad.write_text("smoke = 3\n")
    with pytest.raises(ProtocolError, match="smoke must be the table of a tier, got 3"):
        Protocol.load("smoke", bad)


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_points_are_spread_evenly_in_logarithms(seed):
    """Of the first 2^m points of a Sobol sequence one lies in every 2^m-th of each axis."""
    tier = Protocol.of("t", changed(budget=16, design=16, seeds=[seed]))
    points = design(tier, seed)
    assert len(points) == 16
    for name, (low, high) in (("lr", tier.lr), ("decay", tier.decay)):
        u = np.log([p[name] / low for p in points]) / math.log(high / low)
        for n in (1, 2, 4, 8, 16):
            assert sorted(np.floor(u[:n] * n)) == list(range(n))


def test_a_smaller_budget_is_the_start_of_a_larger_one_and_seeds_differ():
    large = Protocol.of("t", changed(budget=16, design=16))
    small = Protocol.of("t", changed(budget=3, design=3))
    assert design(small, 3) == design(large, 3)[:3]
    assert design(large, 3) == design(large, 3)
    assert not {p["lr"] for p in design(large, 3)} & {p["lr"] for p in design(large, 5)}
