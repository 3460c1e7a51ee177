"""The demo: its text, its model, its files."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from thermoopt.demo import GPT, GPTConfig, load_corpus, run_demo
from thermoopt.demo import corpus as corpus_module
from thermoopt.demo import progress as progress_module
from thermoopt.demo.corpus import MIN_VALID_BYTES, batches, unigram_entropy, windows
from thermoopt.inspection import InputError

PICTURES = {"compare.png", "dashboard.png"}
WAYS = {
    "adamw-1e-3": {"loss.csv", "history.jsonl", "history.csv"},
    "adamw-1e-2": {"loss.csv", "history.jsonl", "history.csv"},
    "autotuned": {"loss.csv", "history.jsonl", "history.csv", "actions.jsonl"},
}
TINY = GPTConfig(depth=2, width=32, heads=2, context=32)


@pytest.fixture(scope="module")
def corpus():
    return load_corpus()


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "rhyme.txt"
    path.write_bytes(b"the cat sat on the mat and the rat ate the hat; " * 600)
    return path


@pytest.fixture(scope="module")
def run(text, tmp_path_factory):
    said: list[str] = []
    out = tmp_path_factory.mktemp("run") / "deep" / "demo"
    result = run_demo(40, text, out, 3, config=TINY, batch=8, say=said.append)
    return result, said


# the text


def test_default_text_is_real_and_bounded(corpus):
    total = len(corpus.train) + len(corpus.valid)
    assert 2_000_000 < total <= corpus_module.MAX_BYTES
    assert corpus.train.dtype == corpus.valid.dtype == torch.uint8
    assert 0.04 < len(corpus.valid) / total < 0.25
    assert b"def " in corpus.train.numpy().tobytes()
    assert b'The "import" statement' in (corpus.train.numpy().tobytes() + corpus.valid.numpy().tobytes())
    assert corpus.valid_files >= 10


def test_text_is_the_same_each_time_and_in_each_process(corpus):
    again = load_corpus()
    assert again.sha256 == corpus.sha256
    assert torch.equal(again.train, corpus.train)
    assert torch.equal(again.valid, corpus.valid)
    code = "import torch, sys\nfrom thermoopt.demo.corpus import load_corpus\nprint(load_corpus().sha256)"
    # another hash seed, so that no salted hash decides on anything
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )
    assert ran.stdout.strip() == corpus.sha256


def test_split_is_by_file_and_disjoint(corpus, monkeypatch):
    made = {f"m{i}.py": f"<{i}>".encode() * 40 for i in range(400)}
    monkeypatch.setattr(corpus_module, "_sources", lambda: made)
    monkeypatch.setattr(corpus_module, "_topics", dict)
    small = load_corpus()
    parts = [part.numpy().tobytes() for part in (small.train, small.valid)]
    for text in made.values():
        assert (text in parts[0]) != (text in parts[1])
    assert small.train_files + small.valid_files == 400
    assert 20 <= small.valid_files <= 65
    # a file's part depends on nothing but its own path
    kept = dict(list(made.items())[::3])
    monkeypatch.setattr(corpus_module, "_sources", lambda: kept)
    fewer = load_corpus()
    for text in kept.values():
        assert (text in fewer.valid.numpy().tobytes()) == (text in parts[1])


def test_one_file_is_cut_at_nine_tenths(text):
    raw = text.read_bytes()
    own = load_corpus(text)
    assert own.train.numpy().tobytes() + own.valid.numpy().tobytes() == raw
    assert len(own.valid) == len(raw) // 10


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such file"), (b"", "empty"), (b"x" * 10 * (MIN_VALID_BYTES - 1), "too few")],
)
def test_bad_text_is_named(tmp_path, content, words):
    path = tmp_path / "t.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((FileNotFoundError, ValueError), match=words) as error:
        load_corpus(path)
    assert str(path) in str(error.value)


def test_shortest_text_that_is_allowed(tmp_path):
    path = tmp_path / "t.txt"
    path.write_bytes(b"x" * 10 * MIN_VALID_BYTES)
    assert len(load_corpus(path).valid) == MIN_VALID_BYTES


def test_batches_follow_their_seed_alone():
    data = torch.arange(200, dtype=torch.uint8)
    a, b, c = (batches(data, 4, 16, seed) for seed in (1, 1, 2))
    torch.manual_seed(0)
    x, y = next(a)
    torch.manual_seed(1)
    assert torch.equal(x, next(b)[0])
    assert not torch.equal(x, next(c)[0])
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert x.shape == y.shape == (4, 16)


def test_windows_reach_both_ends():
    data = torch.arange(100, dtype=torch.uint8)
    x, y = windows(data, 5, 16)
    assert x[0, 0] == 0
    assert y[-1, -1] == 99
    with pytest.raises(ValueError, match="16 bytes are too few"):
        windows(data[:16], 1, 16)


def test_unigram_entropy():
    assert unigram_entropy(torch.arange(256, dtype=torch.uint8)) == pytest.approx(5.545177)  # ln 256
    assert unigram_entropy(torch.zeros(9, dtype=torch.uint8)) == 0


# the model


def test_size_of_the_default_model():
    assert 500_000 <= sum(p.numel() for p in GPT(GPTConfig()).parameters()) <= 1_000_000


def test_model_sees_no_future_and_all_of_the_past():
    torch.manual_seed(0)
    model = GPT(GPTConfig(context=32))
    idx = torch.randint(256, (1, 32))
    other = idx.clone()
    other[0, 20] = (other[0, 20] + 1) % 256
    with torch.no_grad():
        change = (model(idx) - model(other)).abs().amax(-1)[0]
    assert change[:20].max() == 0
    assert change[20:].min() > 0


def test_fresh_model_is_indifferent():
    torch.manual_seed(0)
    idx = torch.randint(256, (8, 65))
    with torch.no_grad():
        logits = GPT(GPTConfig())(idx[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), idx[:, 1:].flatten())
    assert loss.item() == pytest.approx(5.545, abs=0.1)  # ln 256


def test_model_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="not a multiple of heads 3"):
        GPT(GPTConfig(heads=3))
    with pytest.raises(ValueError, match="longer than the context of 32"):
        GPT(TINY)(torch.zeros(1, 33, dtype=torch.long))


# the run


def test_run_writes_its_files_and_learns(run):
    result, _ = run
    assert {path.name for path in result.out.iterdir()} == PICTURES | {"summary.json"} | WAYS.keys()
    for way, files in WAYS.items():
        assert {path.name for path in (result.out / way).iterdir()} == files
        assert all(path.stat().st_size > 0 for path in (result.out / way).iterdir())
    assert result.losses.train[-1] < result.losses.train[0] - 1
    assert result.valid_loss < result.losses.train[0] - 1


def test_files_hold_the_run(run):
    result, _ = run
    summary = json.loads((result.out / "summary.json").read_text())
    assert summary == result.summary
    assert summary["run"]["seed"] == 3
    assert {"python", "torch", "numpy"} <= summary["versions"].keys()
    assert [summary["ways"][way]["lr"] for way in WAYS] == [1e-3, 1e-2, None]
    for way, files in WAYS.items():
        told, folder = summary["ways"][way], result.out / way
        assert told["backend"]
        rows = list(csv.DictReader((folder / "loss.csv").read_text().splitlines()))
        assert [int(row["step"]) for row in rows] == list(range(1, 41))
        assert [float(row["train"]) for row in rows] == result.curves[way].train
        assert float(rows[-1]["valid"]) == told["loss"]["valid"]
        lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        assert lines[-1]["step"] == 40
        if "actions.jsonl" in files:
            actions = [json.loads(line) for line in (folder / "actions.jsonl").read_text().splitlines()]
            assert len(actions) == told["actions"] > 0
            assert {"step", "group", "old", "new", "evidence", "reason"} <= actions[0].keys()
        else:
            assert told["actions"] == 0


def test_ways_start_alike_and_adamw_is_torchs(text, run):
    """The first losses agree; the AdamW ways are torch's own AdamW with torch's own scheduler."""
    result, _ = run
    assert len({curve.train[0] for curve in result.curves.values()}) == 1
    corpus = load_corpus(text)
    torch.manual_seed(3)
    model = GPT(TINY)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    # two steps of warm-up are 5 % of 40, then torch's own cosine
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD(model.parameters(), 1e-2), 38)
    rates = [0.5e-2, 1e-2]
    for _ in range(38):
        rates.append(cosine.get_last_lr()[0])
        cosine.optimizer.step()
        cosine.step()
    draws, theirs = batches(corpus.train, 8, TINY.context, 3), []
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        x, y = next(draws)
        loss = torch.nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        theirs.append(loss.item())
    assert theirs == pytest.approx(result.curves["adamw-1e-2"].train, rel=1e-3)


def test_report_names_what_matters(run):
    result, said = run
    text = "\n".join(said)
    assert result.summary["text"]["sha256"] in text
    for word in (
        "furthest from equilibrium",
        "gaussianity",
        "R_wd",
        "productive work",
        "gradient noise",
        "unigram",
    ):
        assert word in text
    start = next(i for i, line in enumerate(said) if "furthest" in line)
    table = said[start + 3 : start + 8]
    assert all("intermittent" in line or "coherent drift" in line for line in table)
    assert said[-1] == f"results     {result.out}/"


def test_same_seed_same_run(text, tmp_path, run):
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    again = run_demo(40, text, tmp_path / "b", 3, config=TINY, batch=8, say=lambda line: None)
    assert again.losses.train == run[0].losses.train
    assert torch.equal(torch.random.get_rng_state(), before)


def test_one_step_is_enough(text, tmp_path):
    said: list[str] = []
    result = run_demo(1, text, tmp_path, config=TINY, batch=2, say=said.append)
    assert len(result.losses.train) == len(result.losses.valid) == 1
    assert any(line.startswith("no pictures: a comparison needs") for line in said)
    assert {path.name for path in tmp_path.iterdir()} == {"summary.json"} | WAYS.keys()


def test_bad_arguments_are_named_before_anything_is_made(text, tmp_path):
    blocked = text / "inside-a-file"
    for arguments, name, words in (
        ({"steps": 0}, "steps", "at least 1"),
        ({"text": tmp_path / "none.txt"}, "text", "no such file"),
        ({"text": tmp_path}, "text", "not a regular file"),
        ({"text": text, "out": blocked}, "out", "must be a writable folder"),
    ):
        with pytest.raises(InputError, match=words) as error:
            run_demo(**({"steps": 1, "out": tmp_path / "o"} | arguments))
        assert error.value.argument == name
        assert str(error.value).startswith(f"{name}=")
    assert not (tmp_path / "o").exists()


def test_stopping_in_mid_run_loses_nothing(text, tmp_path, monkeypatch):
    monkeypatch.setattr(progress_module, "PLAIN_SECONDS", 0.0)
    said = []

    def say(line):
        said.append(line)
        if line.startswith("step    20/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_demo(40, text, tmp_path, config=TINY, batch=2, say=say)
    for way in WAYS:
        with (tmp_path / way / "loss.csv").open() as file:
            assert len(list(csv.DictReader(file))) == 20
        lines = (tmp_path / way / "history.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, 21))
    assert (tmp_path / "autotuned" / "actions.jsonl").exists()
    assert "stopped after 20 steps" in said[-1]
