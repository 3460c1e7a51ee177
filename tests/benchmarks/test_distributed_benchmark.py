"""The distributed benchmark: its model, its tables, a small run; the FSDP2 example on two ranks and one."""

import json
import math
import re
from pathlib import Path

import pytest

from tests.support.processes import run_processes, run_script
from thermoopt.benchmarks.distributed.command import main
from thermoopt.benchmarks.distributed.cost import NCCL, Links, fit_ring, ring_seconds, tree_seconds
from thermoopt.benchmarks.distributed.report import report
from thermoopt.demo import GPT, GPTConfig
from thermoopt.physics.sums import Sum

ROOT = Path(__file__).parents[2]
LAYER_BYTES = 8 * (len(Sum) + 2 + 3)  # float64: the sums, two flags, three sums of travel


def ring_walk(ranks, size, alpha, beta):
    """Pass pieces round a ring, message by message, until every rank holds what all have added to each."""
    clock, rounds = [0.0] * ranks, 0
    added = [[{r} for _ in range(ranks)] for r in range(ranks)]
    while not all(len(who) == ranks for row in added for who in row):
        messages = []
        for r in range(ranks):
            piece = (r - rounds) % ranks
            messages.append(((r + 1) % ranks, piece, set(added[r][piece]), clock[r]))
        for to, piece, who, sent in messages:
            added[to][piece] |= who
            clock[to] = max(clock[to], sent + alpha + size / ranks / beta)
        rounds += 1
    return max(clock)


@pytest.mark.parametrize("ranks", [2, 3, 4, 7])
def test_ring_is_what_a_walk_round_it_takes(ranks):
    links = Links(0.0, 3e-5, 3e-5, 1e8)
    assert ring_seconds(ranks, 1e4, links) == pytest.approx(ring_walk(ranks, 1e4, 3e-5, 1e8))


@pytest.mark.parametrize("ranks", [1, 2, 8, 64])
def test_tree_goes_up_and_down(ranks):
    hops, left = 0, ranks
    while left > 1:  # pairs become one
        left, hops = left / 2, hops + 1
    links = Links(1e-6, 9.0, 3e-5, 1e8)  # one rank a node: nothing costs what it does within a node
    expected = 0.0 if ranks == 1 else 1e-6 + 2 * hops * 3e-5 + 2 * 1e4 / 1e8
    assert tree_seconds(ranks, 1e4, links) == pytest.approx(expected)


def test_far_ranks_as_nccl_counts_them():
    # by hand, in µs: 128 nodes of 8; 2 * 1023 messages of which 2 * 127 go between nodes
    assert 1e6 * ring_seconds(1024, 0, NCCL["ring"]) == pytest.approx(3.6 + 1792 * 0.846 + 254 * 2.7)
    assert 1e6 * tree_seconds(1024, 0, NCCL["tree"]) == pytest.approx(4.4 + 2 * (7 * 0.936 + 7 * 5.0))
    with pytest.raises(ValueError, match=r"ranks must be a multiple of 8 .*got 12"):
        tree_seconds(12, 0, NCCL["tree"])


def test_fit_finds_what_times_were_made_of():
    sizes = [152, 15_200, 152_000, 1_520_000]
    links = fit_ring(4, sizes, [ring_walk(4, size, 4e-5, 3e8) for size in sizes])
    assert links.net == pytest.approx(4e-5)
    assert links.bandwidth == pytest.approx(3e8)
    with pytest.raises(ValueError, match="make no latency and bandwidth"):
        fit_ring(2, [1, 1000], [2e-3, 1e-3])
    with pytest.raises(ValueError, match="ranks must be >= 2, got 1"):
        fit_ring(1, [1, 1000], [1e-3, 2e-3])


def time_row(what, ranks, method, ms, ratios, size):
    row = {"kind": "time", "model": "toy", "elements": 1_000_000, "layers": 3, "load": 1.0}
    row |= {"base": ratios and "base", "calls": float(size > 0), "bytes": float(size)}
    return row | {"what": what, "ranks": ranks, "method": method, "ms": ms, "ratios": ratios}


def test_tables():
    head = {"kind": "machine", "date": "d", "torch": "t", "cores": 2, "simd": "s", "native": True}
    rows = [{**head, "load": 0.5, "layer_bytes": 100}]
    for what in ("steps", "training"):
        rows.append(time_row(what, 2, "base", [10.0, 20.0, 30.0], None, 0))
        rows.append(time_row(what, 2, "measured", [11.0, 40.0, 33.0], [1.1, 2.0, 1.1], 300))
    sizes = [100, 100_000]
    rows.append({"kind": "latency", "ranks": 2, "sizes": sizes, "load": 3.0})
    rows[-1]["seconds"] = [ring_walk(2, size, 5e-4, 2e8) for size in sizes]
    text = report(rows, (100, 300))
    assert "Load average 0.5 to 3.0" in text
    # median of the rounds' ratios, and of ms less ms / ratio: 1, 20, 3
    assert re.search(
        r"\| 2 \| measured \| 33 \| 1\.10 \(1\.10 to 1\.82\) \| 3\.00 .*\| 3 \| 1 \| 300 \|", text
    )
    assert "α = 500 µs, β = 200 MB/s" in text
    assert "0.00005 times" in text or "5e-05 times" in text  # 2 * 300 of 3 * 4 MB
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 4
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1
    for steps, size in ((1, 30_000), (10, 300_000)):
        tree = round(1e6 * tree_seconds(1024, size, NCCL["tree"]))
        assert re.search(rf"\| 300, {steps} \| {size:,} \| \d+ \| \d+ \| {tree} \| \d+ \|", tables[-1])


@pytest.mark.slow
@pytest.mark.dist
def test_runs_counts_and_writes(tmp_path, monkeypatch, capsys):
    def forked(run, args, nprocs):
        run_processes(run, args, nprocs, 240)

    monkeypatch.setattr("torch.multiprocessing.spawn", forked)
    small = ["--rounds", "1", "--train-rounds", "1", "--block", "1", "--calls", "3"]
    main(["--models", "0.1 M", "--ranks", "1", "2", *small, "--out", str(tmp_path)])
    output = capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "distributed.jsonl").read_text().splitlines()]
    layers = len(list(GPT(GPTConfig(depth=2, width=48, heads=4, context=64)).parameters()))
    whole = layers * LAYER_BYTES
    assert rows[0]["layer_bytes"] == LAYER_BYTES
    sent = {(r["ranks"], r["method"]): (r["calls"], r["bytes"]) for r in rows if r["kind"] == "time"}
    assert {value for (ranks, _), value in sent.items() if ranks == 1} == {(0, 0)}
    assert sent[2, "ThermoAdamW, measuring off"] == sent[2, "torch AdamW"] == (0, 0)
    # a message a reading: every 10 steps, and as often as a controller of 10,000 steps looks
    assert sent[2, "ThermoAdamW, every step"] == pytest.approx((0.1, whole))
    assert sent[2, "ThermoAdamW, every step, autotune"] == pytest.approx((0.02, whole))
    assert sent[2, "Observer on AdamW, every step"] == pytest.approx((0.1, whole))
    assert sent[2, "Observer on AdamW, every 10"] == pytest.approx(
        (0.08, 0.8 * whole / 10)
    )  # at 10, 20, 31, 42 of 50
    assert all(r["ms"] and min(r["ms"]) > 0 for r in rows if r["kind"] == "time")
    text = (tmp_path / "distributed.md").read_text()
    assert text.strip() in output
    assert "| 2 | ThermoAdamW, every step, autotune |" in text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--models", "7 M"], "7 M"),
        (["--ranks", "0"], "--ranks must be >= 1, got [0]"),
        (["--calls", "0"], "--calls must be >= 1, got 0"),
    ],
)
def test_wrong_arguments_are_named(words, says, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert says in capsys.readouterr().err


def table(output):
    """Numbers of a table's lines, by step."""
    lines = re.findall(r"^ +(\d+) +(\S+) +(\S+) +(\S+) +(\S+) +(\S+)$", output, re.MULTILINE)
    return {int(step): [float(word) for word in words] for step, *words in lines}


def loss(output):
    return float(re.search(r"^Validation loss (\S+)\. ", output, re.MULTILINE)[1])


@pytest.mark.dist
def test_example_goes_on_with_another_number_of_ranks(tmp_path):
    script, options = ROOT / "examples" / "fsdp_lm.py", ["--steps", 8, "--save", 4]
    ranks = [
        "--standalone",
        "--nproc-per-node",
        2,
    ]  # as torchrun, in whose words the example says how to run it
    launched = run_script("torch.distributed.run", *ranks, script, *options, "--out", tmp_path / "two")
    assert launched.code == 0, launched.errors
    two = launched.output
    again = ["--resume", tmp_path / "two" / "step_4", "--out", tmp_path / "one"]
    alone = run_script(script, *options, *again, filters=["error"])
    assert (alone.code, alone.errors) == (0, "")
    one = alone.output
    assert "2 rank(s) on cpu, steps 0 to 8." in two
    assert "1 rank(s) on cpu, steps 4 to 8." in one
    assert sorted(table(two)) == list(range(1, 9))
    assert sorted(table(one)) == list(range(5, 9))
    for step, numbers in table(one).items():
        assert numbers == pytest.approx(table(two)[step], rel=0.02, abs=1e-3)
    assert loss(one) == pytest.approx(loss(two), abs=1e-3)
    assert 1.0 < loss(two) < math.log(256)
    assert (tmp_path / "one" / "step_8" / ".metadata").exists()
