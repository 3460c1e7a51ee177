"""The callback and the optimizer in real Trainers: what reaches whom, and that nothing else changes."""

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from tests.support.processes import run_processes
from thermoopt import ThermoAdamW, autotune
from thermoopt.controllers import Chain, Thermostat
from thermoopt.integrations.huggingface import (
    OBSERVER_FILE,
    ThermoCallback,
    thermo_adamw,
    thermo_optimizer,
    training_steps,
    unwrap,
)
from thermoopt.param_groups import make_param_groups

pytestmark = [
    # torch.jit.script, somewhere below accelerate and transformers
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    # the machine has no accelerator to pin memory for
    pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning:torch.utils.data.dataloader"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard"),
]

NAMES = {"sigma", "r", "lr_eff", "coherence", "gaussianity", "equilibrium_fraction", "findings"}
"""What every log has; R_ie and wd_balance are undefined at times."""


@pytest.fixture
def files():
    """For tests that look at the files of the end; the others save the seconds that a picture takes."""


@pytest.fixture(autouse=True)
def no_files_else(request, monkeypatch):
    if "files" not in request.fixturenames:
        monkeypatch.setattr("thermoopt.integrations.trainer_callback.write_artifacts", lambda *_: [])


def bert(dropout=0.1):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        num_labels=3,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return BertForSequenceClassification(config)


def examples(n=48):
    """Sentences of 8 words whose label is the first word's remainder."""
    words = torch.randint(0, 50, (n, 8), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": int(row[0]) % 3} for row in words]


def arguments(folder, **given):
    fixed = {
        "output_dir": str(folder),
        "max_steps": 20,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 24,
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "logging_steps": 5,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return TrainingArguments(**{**fixed, **given})


def trainer(args, callbacks=(), model=None, **given):
    model = bert() if model is None else model
    return Trainer(
        model=model,
        args=args,
        train_dataset=examples(),
        eval_dataset=examples(24),
        callbacks=[*callbacks],
        **given,
    )


class Recorder(TrainerCallback):
    """A reporter: keeps every log it is shown, as TensorBoard and W&B do."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append((state.global_step, dict(logs)))


def thermo(log):
    return {name.removeprefix("thermo/"): value for name, value in log.items() if name.startswith("thermo/")}


def weights(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


# ---------------------------------------------------------------- the callback: what it measures


class ByHand(TrainerCallback):
    """Entropy production and gradient norm of each step, from what a Trainer's optimizer holds after it."""

    def __init__(self):
        self.sigma, self.grad_norm = {}, {}

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.lrs = [group["lr"] for group in optimizer.param_groups]
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        self.grad_norm[state.global_step + 1] = (
            torch.cat([g.double().reshape(-1) for g in grads]).norm().item()
        )

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        total = 0.0
        for group, lr in zip(optimizer.param_groups, self.lrs, strict=True):
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                s = optimizer.state[p]
                m = s["exp_avg"].double() / (1 - beta1 ** s["step"].item())
                v = s["exp_avg_sq"].double() / (1 - beta2 ** s["step"].item())
                total += lr * (p.grad.double() * m / (v.sqrt() + group["eps"])).sum().item()
        self.sigma[state.global_step + 1] = total


@pytest.mark.parametrize("accumulation", [1, 2])
def test_readings_are_of_the_clipped_accumulated_step(tmp_path, accumulation):
    """With an average of one step the log holds what a plain computation around the real step gives."""
    hand = ByHand()
    callback = ThermoCallback(log_every=1, ema_steps=1)
    given = {"max_grad_norm": 0.3, "gradient_accumulation_steps": accumulation, "logging_steps": 1}
    run = trainer(arguments(tmp_path, max_steps=6, **given), [hand, callback])
    run.train()
    logs = [log for log in run.state.log_history if "loss" in log]
    assert [log["step"] for log in logs] == [1, 2, 3, 4, 5, 6]
    for log in logs:
        assert log["thermo/sigma"] == pytest.approx(hand.sigma[log["step"]], rel=1e-4)
        assert log["thermo/lr_eff"] == pytest.approx(log["learning_rate"])
    assert callback.observer.steps == run.state.global_step == 6
    norms = callback.observer.history.total("grad_norm")
    assert norms == pytest.approx([hand.grad_norm[i] for i in range(1, 7)], rel=1e-4)
    assert max(norms) == pytest.approx(0.3, rel=1e-4)  # clipping was at work, and had been done


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd", "adafactor"])
def test_it_changes_no_bit(tmp_path, optim):
    after = []
    for callbacks in ([], [ThermoCallback(log_every=1, track=("rho", "distance"))]):
        run = trainer(arguments(tmp_path, optim=optim), callbacks)
        run.train()
        after.append(weights(run.model))
    assert torch.equal(*after)
    assert math.isfinite(callbacks[0].observer.reading.total.sigma)


def test_mixed_precision(tmp_path):
    callback = ThermoCallback(log_every=1)
    run = trainer(arguments(tmp_path, bf16=True), [callback])
    run.train()
    assert set(thermo(run.state.log_history[0])) >= NAMES
    assert callback.observer.steps == 20
    assert not any(callback.observer.skipped.values())


# ---------------------------------------------------------------- the callback: who sees it


def test_values_reach_reporters_console_log_history_and_tensorboard(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
    before, after = Recorder(), Recorder()
    run = trainer(
        arguments(tmp_path, report_to=["tensorboard"]), [before, ThermoCallback(log_every=1), after]
    )
    run.train()
    entries = [log for log in run.state.log_history if "loss" in log]
    assert [entry["step"] for entry in entries] == [5, 10, 15, 20]
    for recorder in (before, after):
        for (step, log), entry in zip(recorder.logs, entries, strict=False):
            assert step == entry["step"]
            assert thermo(log) == thermo(entry)
        assert len(recorder.logs) == 5  # and the summary at the end,
        assert not thermo(recorder.logs[-1][1])  # which is no step's
    for entry in entries:
        assert set(thermo(entry)) >= NAMES
        assert all(type(value) is float and math.isfinite(value) for value in thermo(entry).values())
    assert entries[0]["thermo/sigma"] != entries[1]["thermo/sigma"]

    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    for name in NAMES:
        shown = [(event.step, event.value) for event in events.Scalars(f"train/thermo/{name}")]
        wanted = [(entry["step"], pytest.approx(entry[f"thermo/{name}"], rel=1e-6)) for entry in entries]
        assert shown == wanted

    printed = [line for line in capsys.readouterr().out.splitlines() if "'loss'" in line]
    assert len(printed) == 4
    assert all("thermo/sigma" in line for line in printed)


def test_groups_and_layers_on_request(tmp_path):
    args = arguments(tmp_path, max_steps=5)
    run = trainer(
        args, [ThermoCallback(groups=True, layers=True)], optimizer_cls_and_kwargs=thermo_optimizer(args)
    )
    run.train()
    log = thermo(run.state.log_history[0])
    optimizer = unwrap(run.optimizer)
    assert log["decay/sigma"] + log["no_decay/sigma"] == pytest.approx(log["sigma"])
    layers = [name for name in log if name.startswith("layer/") and name.endswith("/sigma")]
    assert len(layers) == len(optimizer.reading.layers)
    assert sum(log[name] for name in layers) == pytest.approx(log["sigma"])
    assert log["layer/classifier.weight/lr_eff"] == pytest.approx(log["lr_eff"])


def test_losses_of_log_and_evaluation_go_to_the_observer(tmp_path):
    callback = ThermoCallback()
    run = trainer(arguments(tmp_path, eval_strategy="steps", eval_steps=10, eval_on_start=True), [callback])
    run.train()
    logged = [log["loss"] for log in run.state.log_history if "loss" in log]
    assert callback.observer.losses.values.tolist() == logged
    assert callback.observer.losses.steps.tolist() == [5, 10, 15, 20]
    valid = [(log["step"], log["eval_loss"]) for log in run.state.log_history if "eval_loss" in log]
    assert [(epoch["step"], epoch["val_loss"]) for epoch in callback.observer.epochs] == valid
    assert [step for step, _ in valid] == [0, 10, 20]
    run.evaluate()  # after training, of nobody's concern
    assert len(callback.observer.epochs) == 3


def test_findings_are_counted(tmp_path):
    """A rate a thousand times too high is seen while it trains; the count is the report's."""
    callback = ThermoCallback(log_every=1)
    args = arguments(
        tmp_path, max_steps=120, learning_rate=1.0, lr_scheduler_type="constant", logging_steps=20
    )
    run = trainer(args, [callback])
    run.train()
    counted = [log["thermo/findings"] for log in run.state.log_history if "loss" in log]
    sure = [f for f in callback.report.findings if f.confidence in ("HIGH", "MEDIUM")]
    assert counted[-1] == len(sure) >= 1


# ---------------------------------------------------------------- the callback: what it leaves


def test_files_at_the_end(files, tmp_path):
    run = trainer(arguments(tmp_path), [ThermoCallback()])
    run.train()
    folder = tmp_path / "thermo"
    assert {path.name for path in folder.iterdir()} == {
        "dashboard.png",
        "diagnosis.json",
        "diagnosis.txt",
        "history.csv",
        "history.jsonl",
    }
    assert (folder / "dashboard.png").read_bytes().startswith(b"\x89PNG")
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    entry = next(log for log in reversed(run.state.log_history) if "loss" in log)
    assert lines[-1]["step"] == entry["step"] == 20
    # added up by groups in a record, over all layers in a reading
    assert lines[-1]["total"]["sigma"] == pytest.approx(entry["thermo/sigma"], rel=1e-12)
    assert "classifier.weight" in lines[-1]["layers"]
    with (folder / "history.csv").open(newline="", encoding="utf-8") as file:
        assert {int(row["step"]) for row in csv.DictReader(file)} == {line["step"] for line in lines}
    report = json.loads((folder / "diagnosis.json").read_text(encoding="utf-8"))
    assert report["facts"]["steps"] == 20
    assert report["summary"] in (folder / "diagnosis.txt").read_text(encoding="utf-8")


def test_a_folder_of_ones_own(files, tmp_path):
    trainer(arguments(tmp_path / "run"), [ThermoCallback(output_dir=tmp_path / "own")]).train()
    assert (tmp_path / "own" / "diagnosis.json").is_file()
    assert not (tmp_path / "run" / "thermo").exists()


def test_only_the_first_process_writes(files, tmp_path, monkeypatch):
    callback = ThermoCallback()
    run = trainer(arguments(tmp_path, save_strategy="steps", save_steps=20), [callback])
    monkeypatch.setattr(TrainerState, "is_world_process_zero", False)
    monkeypatch.setattr(
        TrainerState,
        "init_training_references",
        lambda self, trainer, steps, epochs, trial: _references(self, steps),
    )
    run.train()
    assert callback.observer.reading.step == 20
    assert not (tmp_path / "thermo").exists()
    assert (tmp_path / "checkpoint-20").is_dir()
    assert not (tmp_path / "checkpoint-20" / OBSERVER_FILE).exists()


def _references(state, steps):
    state.max_steps, state.num_train_epochs = steps, 10
    state.is_local_process_zero = state.is_world_process_zero = False


def test_a_second_training_gets_a_report_of_its_own(tmp_path):
    callback = ThermoCallback(log_every=1)
    run = trainer(arguments(tmp_path), [callback])
    run.train()
    first = callback.observer
    assert first.steps == 20
    run.train()
    assert callback.observer is not first
    assert first.steps == 20  # its hooks are gone
    assert callback.observer.history.steps.tolist() == [21, 31]  # the optimizer goes on, and counts on


# ---------------------------------------------------------------- checkpoints


def everything(run):
    """All that decides how a run goes on, flattened."""
    optimizer = unwrap(run.optimizer).state_dict()
    flat = {"weights": weights(run.model)}
    for i, group in enumerate(optimizer["param_groups"]):
        flat.update((f"{i}.{key}", value) for key, value in group.items() if key != "thermo")
        flat.update((f"{i}.thermo.{key}", value) for key, value in group.get("thermo", {}).items())
    for i, state in optimizer["state"].items():
        flat.update((f"state.{i}.{key}", value) for key, value in state.items())
    return flat


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key, value in a.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, b[key]), key
        else:  # as text: logs of a controller hold NaN
            assert json.dumps(value) == json.dumps(b[key]), key


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_resume_is_the_uninterrupted_run_bit_for_bit(tmp_path, dropout):
    def make(folder):
        args = arguments(
            tmp_path / folder, save_strategy="steps", save_steps=14, max_steps=20, logging_steps=2
        )
        preset = autotune(20, shape="constant")  # Trainer has a schedule
        acting = Chain(Thermostat("bounded_diffusion", total_steps=20), *preset.controllers[1:])
        optimizer = thermo_optimizer(args, controller=acting, measure_every=1)
        model = bert(dropout)
        return trainer(args, [ThermoCallback()], model, optimizer_cls_and_kwargs=optimizer)

    whole = make("whole")
    whole.train()
    again = make("whole")
    again.model.load_state_dict(
        {k: v + 1 for k, v in again.model.state_dict().items()}
    )  # nothing is left of this
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-14"))
    assert_same(everything(whole), everything(again))
    assert len(unwrap(whole.optimizer).controller.log) > 1
    strip = [{k: v for k, v in log.items() if "loss" in log} for log in whole.state.log_history]
    assert strip == [{k: v for k, v in log.items() if "loss" in log} for log in again.state.log_history]


def test_averages_of_any_optimizer_survive_a_resume(tmp_path):
    def make():
        args = arguments(tmp_path, save_strategy="steps", save_steps=10)
        return trainer(args, [ThermoCallback(log_every=2, track=("rho",), layers=True)])

    whole = make()
    whole.train()
    logs = [thermo(log) for log in whole.state.log_history if "loss" in log]
    again = make()
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert [thermo(log) for log in again.state.log_history if "loss" in log] == logs
    saved = torch.load(tmp_path / "checkpoint-10" / OBSERVER_FILE, weights_only=True)
    assert saved["observer"]["step"] == 10

    # a file that is not of this run is not taken up
    saved["run"] = "another"
    torch.save(saved, tmp_path / "checkpoint-10" / OBSERVER_FILE)
    other = make()
    other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    mine = [thermo(log) for log in other.state.log_history if "loss" in log]
    assert mine[:2] == logs[:2]  # what the checkpoint's log says
    assert mine[2]["sigma"] != logs[2]["sigma"]
    assert torch.equal(weights(other.model), weights(whole.model))


@pytest.mark.parametrize(("written_with", "resumed_with"), [(False, True), (True, False)])
def test_checkpoints_with_and_without_the_callback(tmp_path, written_with, resumed_with):
    def make(folder, watched):
        args = arguments(tmp_path / folder, save_strategy="steps", save_steps=10)
        return trainer(args, [ThermoCallback()] if watched else [])

    whole = make("run", written_with)
    whole.train()
    last = weights(whole.model)
    shutil.rmtree(tmp_path / "run" / "checkpoint-20")
    assert (tmp_path / "run" / "checkpoint-10" / OBSERVER_FILE).exists() is written_with
    again = make("run", resumed_with)
    again.train(resume_from_checkpoint=True)
    assert torch.equal(weights(again.model), last)
    assert (tmp_path / "run" / "checkpoint-20" / "trainer_state.json").is_file()
    state = json.loads(
        (tmp_path / "run" / "checkpoint-20" / "trainer_state.json").read_text(encoding="utf-8")
    )
    assert set(state["stateful_callbacks"]) == {"TrainerControl"}
    assert bool(thermo(state["log_history"][-1])) is resumed_with


def test_a_run_of_adamw_goes_on_with_thermo_adamw(tmp_path):
    args = {"save_strategy": "steps", "save_steps": 10, "optim": "adamw_torch"}
    whole = trainer(arguments(tmp_path, **args))
    whole.train()
    args = arguments(tmp_path, **args)
    again = trainer(args, optimizer_cls_and_kwargs=thermo_optimizer(args, backend="torch"))
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert unwrap(again.optimizer).steps == 20
    assert torch.equal(weights(again.model), weights(whole.model))


# ---------------------------------------------------------------- the optimizer


@pytest.mark.parametrize("where", ["optimizer_cls_and_kwargs", "optimizers"])
def test_the_optimizer_is_the_arguments_adamw(tmp_path, where):
    """Groups, rates and the trained weights are those of Trainer's own AdamW."""
    given = {"adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-6, "optim": "adamw_torch"}
    args = arguments(tmp_path, **given)
    plain = trainer(args)
    plain.train()
    model = bert()
    if where == "optimizers":
        made = {where: (thermo_adamw(model, args, backend="torch"), None)}
    else:
        made = {where: thermo_optimizer(args, backend="torch")}
    ours = trainer(args, model=model, **made)
    ours.train()
    groups, wanted = unwrap(ours.optimizer).param_groups, plain.optimizer.param_groups
    assert [group["name"] for group in groups] == ["decay", "no_decay"]
    names = {p: name for name, p in plain.model.named_parameters()}
    for group, want in zip(groups, wanted, strict=True):
        assert group["param_names"] == [names[p] for p in want["params"]]
        for key in ("lr", "betas", "eps", "weight_decay", "initial_lr"):
            assert group[key] == want[key]
    assert isinstance(unwrap(ours.optimizer), ThermoAdamW)
    assert torch.equal(weights(ours.model), weights(plain.model))


@pytest.mark.parametrize("by", ["layer", "type"])
def test_groups_of_layers_decay_as_trainers_do(tmp_path, by):
    model, args = bert(), arguments(tmp_path)
    model.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    optimizer = thermo_adamw(model, args, by=by)
    decaying = set(trainer(args, model=model).get_decay_parameter_names(model))
    seen = []
    for group in optimizer.param_groups:
        for name in group["param_names"]:
            assert group["weight_decay"] == (0.1 if name in decaying else 0.0)
        seen += group["param_names"]
    assert sorted(seen) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    wanted = {group["name"] for group in make_param_groups(model, by=by)}
    assert {group["name"].removesuffix(".no_decay") for group in optimizer.param_groups} == wanted


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_the_shape_of_the_run_is_given_once(tmp_path, kind):
    """By Trainer's schedule if it has one, else by the preset; never by both."""
    args = arguments(tmp_path, max_steps=40, lr_scheduler_type=kind, logging_steps=1)
    run = trainer(args, optimizer_cls_and_kwargs=thermo_optimizer(args, preset="finetune"))
    run.train()
    cooling = unwrap(run.optimizer).controller.controllers[-1]
    for log in run.state.log_history[4:40]:  # after the preset's warm-up, a tenth of the run
        # the preset's shape begins where its warm-up ends
        done = (log["step"] - 5) / 36 if kind == "constant" else (log["step"] - 1) / 40
        shapes = {"constant": min(1, 2 - 2 * done), "cosine": (1 + math.cos(math.pi * done)) / 2}
        wanted = shapes.get(kind, 1 - done)
        assert log["learning_rate"] / 1e-3 * cooling.update(None, log["step"]).lr == pytest.approx(
            wanted, abs=0.06
        )


@pytest.mark.parametrize(
    "given",
    [
        {"max_steps": 7},
        *(
            {
                "max_steps": -1,
                "num_train_epochs": epochs,
                "per_device_train_batch_size": batch,
                "gradient_accumulation_steps": accumulation,
                "dataloader_drop_last": drop,
            }
            for epochs, batch, accumulation, drop in [
                (0.3, 5, 1, False),  # each value with each other, and a remainder in all of its places
                (0.3, 5, 3, True),
                (0.3, 7, 3, False),
                (0.3, 48, 1, True),
                (2, 5, 3, False),
                (2, 7, 1, True),
                (2, 7, 3, True),
                (2, 48, 3, False),
            ]
        ),
    ],
    ids=str,
)
def test_training_steps_are_trainers(tmp_path, given):
    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x, labels=None):
            return {"loss": (self.weight * x).sum()}

    args = arguments(tmp_path, logging_strategy="no", **given)
    data = [{"x": 1.0, "labels": 0}] * 48
    run = Trainer(model=Linear(), args=args, train_dataset=data)
    run.train()
    assert training_steps(args, 48) == run.state.max_steps == run.state.global_step


def test_unwrap():
    sgd = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    assert unwrap(sgd) is sgd
    from accelerate import Accelerator

    prepared = Accelerator(cpu=True).prepare(sgd)
    assert isinstance(prepared, AcceleratedOptimizer)
    assert unwrap(prepared) is sgd
    assert unwrap(AcceleratedOptimizer(prepared)) is sgd
    with pytest.raises(TypeError, match=r"optimizer must be or hold a torch\.optim\.Optimizer, got 3"):
        unwrap(3)


# ---------------------------------------------------------------- what may go wrong


def test_an_optimizer_without_names_gets_the_models(tmp_path):
    model = bert()
    callback = ThermoCallback(log_every=1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer(arguments(tmp_path, max_steps=5), [callback], model, optimizers=(sgd, None)).train()
    names = {name for name, _ in model.named_parameters()}
    assert set(callback.observer.reading.layers) == names


def test_two_callbacks_are_refused(tmp_path):
    wanted = "callbacks must hold one ThermoCallback per Trainer, got 2"
    with pytest.raises(ValueError, match=wanted):
        trainer(arguments(tmp_path), [ThermoCallback(), ThermoCallback()])
    run = trainer(arguments(tmp_path), [ThermoCallback])
    run.add_callback(ThermoCallback())
    with pytest.raises(ValueError, match=wanted):
        run.train()


def test_an_optimizer_replaced_while_training_is_followed(tmp_path):
    class Replace(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 10:
                run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.01)

    callback = ThermoCallback(log_every=1, ema_steps=1)
    run = trainer(arguments(tmp_path), [callback, Replace()])
    with pytest.warns(
        RuntimeWarning, match="replaced by a SGD after step 10: ThermoCallback measures that one"
    ):
        run.train()
    assert isinstance(callback.observer.optimizer, torch.optim.SGD)
    assert callback.observer.steps == 10
    assert run.state.log_history[1]["thermo/r"] > 0
    assert "thermo/r" not in run.state.log_history[2]  # no moments, no r
    assert run.state.log_history[2]["thermo/lr_eff"] == pytest.approx(0.01)


def test_events_from_someone_else_than_a_trainer(tmp_path):
    model = bert()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    callback = ThermoCallback(log_every=1)
    args, state, control = arguments(tmp_path), TrainerState(), TrainerControl()
    with (
        pytest.raises(ValueError, match="with an optimizer, got none"),
        pytest.warns(RuntimeWarning, match="not called by"),
    ):
        callback.on_train_begin(args, state, control, model=model)
    with pytest.warns(RuntimeWarning, match=r"not called by a transformers\.Trainer"):
        callback.on_train_begin(args, state, control, model=model, optimizer=sgd)
    model(input_ids=torch.zeros(1, 2, dtype=torch.long), labels=torch.tensor([1])).loss.backward()
    callback.on_pre_optimizer_step(args, state, control)
    sgd.step()
    logs = {"loss": 1.0}
    callback.on_log(args, state, control, logs=logs)
    assert logs["thermo/sigma"] > 0
    callback.on_train_end(args, state, control)


def test_what_the_observer_refuses_is_refused_at_once():
    with pytest.raises(ValueError, match="log_every must be an integer >= 1, got 0"):
        ThermoCallback(log_every=0)
    with pytest.raises(ValueError, match="track must hold only"):
        ThermoCallback(track=("speed",))


def test_arguments_of_the_optimizer(tmp_path):
    args = arguments(tmp_path)
    for make in (
        lambda **given: thermo_optimizer(args, **given),
        lambda **given: thermo_adamw(bert(), args, **given),
    ):
        with pytest.raises(TypeError, match=r"lr must be set in TrainingArguments \(learning_rate"):
            make(lr=0.1)
        with pytest.raises(ValueError, match=r"preset must be .* got 'warm'"):
            make(preset="warm")
        with pytest.raises(
            ValueError, match="preset and controller cannot be combined, got preset='default'"
        ):
            make(preset="default", controller=autotune(20))
        with pytest.raises(ValueError, match=r"total_steps must be the 20 steps .*got 30"):
            make(preset="default", total_steps=30)
        with pytest.raises(ValueError, match=r"total_steps must be None without a preset.* got 20"):
            make(total_steps=20)
        with pytest.raises(ValueError, match="examples must be an integer >= 1, got 0"):
            make(preset="default", examples=0)
        with pytest.raises(TypeError, match=r"examples must be an integer >= 1, got 2\.5"):
            make(preset="default", examples=2.5)
    with pytest.raises(ValueError, match=r"by must be .* got 'colour'"):
        thermo_adamw(bert(), args, by="colour")
    frozen = bert().requires_grad_(False)
    with pytest.raises(ValueError, match="at least one trainable parameter"):
        thermo_adamw(frozen, args)
    epochs = arguments(tmp_path, max_steps=-1)
    with pytest.raises(ValueError, match=r"total_steps must be given .*examples=len"):
        thermo_optimizer(epochs, preset="default")
    thermo_optimizer(epochs, preset="default", examples=48)
    own = Thermostat("coherence", total_steps=20)
    assert thermo_adamw(bert(), args, controller=own, ema_steps=7).controller is own


def test_a_trainer_that_knows_no_factories_is_told(tmp_path):
    """transformers before 5 calls what it is given with groups, as an optimizer class."""
    model = bert()
    made, options = thermo_optimizer(arguments(tmp_path))
    with pytest.raises(TypeError, match=r"as in transformers before 5: there, use Trainer\(optimizers="):
        made([{"params": list(model.parameters())}], **options)
    assert isinstance(made()(model, **options), ThermoAdamW)


def test_without_transformers():
    code = "import sys; sys.modules['transformers'] = None\nimport thermoopt.integrations.huggingface"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "ImportError: thermoopt.integrations.huggingface needs transformers" in done.stderr
    assert "pip install 'thermoopt[hf]'" in done.stderr


# ---------------------------------------------------------------- two processes

RANKS, TIMEOUT = 2, 240


def worker(rank, folder, port):
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(RANKS),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
    )
    given = {"max_steps": 12, "save_strategy": "steps", "save_steps": 12, "ddp_backend": "gloo"}
    args = arguments(Path(folder) / "run", **given)
    assert args.world_size == RANKS
    callback, recorder = ThermoCallback(), Recorder()
    chosen = thermo_optimizer(args, preset="default", measure_every=1)
    run = trainer(args, [recorder, callback], optimizer_cls_and_kwargs=chosen)
    run.train()
    optimizer = unwrap(run.optimizer)
    seen = {
        "weights": weights(run.model),
        "scales": [group["thermo"]["layer_factors"] for group in optimizer.param_groups],
        "actions": len(optimizer.controller.log),
        "logs": [thermo(log) for _, log in recorder.logs],
        "layers": list(callback.observer.reading.layers),
    }
    torch.save(seen, Path(folder) / f"{rank}.pt")


@pytest.mark.dist
def test_two_processes_read_the_same_and_one_writes(tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run_processes(worker, (str(tmp_path), port), RANKS, TIMEOUT)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(RANKS))
    assert torch.equal(first["weights"], second["weights"])
    assert all(torch.equal(a, b) for a, b in zip(first["scales"], second["scales"], strict=True))
    assert first["actions"] == second["actions"] > 0
    assert first["logs"] == second["logs"]
    assert set(first["logs"][0]) >= NAMES
    assert set(first["layers"]) == {name for name, _ in bert().named_parameters()}
    assert (tmp_path / "run" / "thermo" / "dashboard.png").is_file()
    assert (tmp_path / "run" / "checkpoint-12" / OBSERVER_FILE).is_file()
