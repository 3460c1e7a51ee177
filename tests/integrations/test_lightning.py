"""ThermoCallback in real Lightning runs, against plain loops with an Observer."""

import copy
import csv
import json
import math
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.support.processes import run_script
from thermoopt import Observer, ThermoAdamW, ThermoScheduler, autotune, make_param_groups
from thermoopt.integrations.artifacts import write_artifacts
from thermoopt.integrations.scalars import LAYER_SCALARS, SCALARS, run_scalars
from thermoopt.record import SavedRun

with warnings.catch_warnings():  # at import: torch's and lightning's own deprecations
    warnings.simplefilter("ignore")
    pl = pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.callbacks import LearningRateMonitor
    from lightning.pytorch.loggers import CSVLogger

    from thermoopt.integrations.lightning import ThermoCallback

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    # lightning's call of torch; by its words alone, since pytest.warns gives warnings on without their module
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),
]

BATCHES, BATCH = 20, 16


@pytest.fixture
def files():
    """Asked for by tests of the files written at the end; a picture takes a second."""


@pytest.fixture(autouse=True)
def _files_where_asked_for(request, monkeypatch):
    if "files" not in request.fixturenames:
        monkeypatch.setattr("thermoopt.integrations.lightning.write_artifacts", lambda *_, **__: [])


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))


def data():
    return torch.randn(BATCHES * BATCH, 8, generator=torch.Generator().manual_seed(1))


def loss_of(model, x):
    return (model(x) - x[:, :3] * 2).square().mean()


class Module(pl.LightningModule):
    """One network, one optimizer, made by a function of the module."""

    def __init__(self, make):
        super().__init__()
        self.net, self._make = net(), make

    def training_step(self, batch, _):
        return loss_of(self.net, batch[0])

    def configure_optimizers(self):
        return self._make(self)


def adamw(module):
    return torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=0.1)


def sgd(module):
    return torch.optim.SGD(module.parameters(), lr=1e-2, momentum=0.9)


def thermo(module):
    return ThermoAdamW(module.named_parameters(), lr=1e-2, weight_decay=0.1)


def auto(module):
    return ThermoAdamW(module.named_parameters(), weight_decay=0.1, controller=autotune(4 * BATCHES))


def trainer(folder, *callbacks, epochs=2, **flags):
    logger = flags.pop("logger", False)
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=folder,
        callbacks=list(callbacks),
        logger=CSVLogger(folder) if logger else False,
        enable_progress_bar=flags.pop("bar", False),
        enable_model_summary=False,
        enable_checkpointing=False,
        **{"log_every_n_steps": 10, **flags},
    )


def fit(folder, make, *callbacks, module=None, ckpt=None, **flags):
    """A module trained, and its trainer."""
    module = module or Module(make)
    run = trainer(folder, *callbacks, **flags)
    run.fit(module, DataLoader(TensorDataset(data()), BATCH), ckpt_path=ckpt)
    return module, run


def metrics(folder):
    """Rows of CSVLogger's file that hold a value of ours: by step, numbers by name."""
    with (folder / "lightning_logs" / "version_0" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        int(row["step"]): {k: float(v) for k, v in row.items() if k.startswith("thermo/") and v}
        for row in rows
        if any(k.startswith("thermo/") and v for k, v in row.items())
    }


def plain_loop(make, steps, clip=None, log_every=10):
    """The same training without Lightning: the model and its observer, whose readings are kept."""
    module = Module(make)
    optimizer = make(module)
    observer = Observer(module, optimizer, log_every)
    readings = {}
    batches = data().split(BATCH)
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_of(module.net, batches[step % BATCHES])
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
        observer.report_loss(loss)
        readings[step + 1] = observer.reading
    return module, observer, readings


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def finite(row):
    return {name: value for name, value in row.items() if math.isfinite(value)}


def equal(first, second):
    return np.array_equal(first, second, equal_nan=True)


# ---------------------------------------------------------------- scalars and artifacts


@pytest.mark.parametrize("make", [thermo, sgd])
def test_scalars_are_the_finite_quantities_of_the_reading(make):
    _, observer, _ = plain_loop(make, 20)
    reading = observer.reading
    expected = {f"thermo/{name}": getattr(reading.total, name) for name in SCALARS}
    near = [abs(layer.r - 1) <= 0.15 for layer in reading.layers.values() if math.isfinite(layer.r)]
    expected["thermo/equilibrium_fraction"] = sum(near) / len(near) if near else math.nan
    assert run_scalars(reading) == {k: v for k, v in expected.items() if math.isfinite(v)}

    for name in SCALARS:
        expected[f"x/group0/{name}"] = getattr(reading.groups[0], name)
    for layer, quantities in reading.layers.items():
        expected.update({f"x/layer/{layer}/{name}": getattr(quantities, name) for name in LAYER_SCALARS})
    everything = {k.replace("thermo/", "x/"): v for k, v in expected.items() if math.isfinite(v)}
    given = run_scalars(reading, groups=True, layers=True, prefix="x/")
    assert given == everything
    assert {type(value) for value in given.values()} == {float}
    assert ("x/r" in given) == (make is thermo)  # SGD has no moments


def test_artifacts_can_be_read_back(tmp_path):
    _, observer, _ = plain_loop(adamw, 40)
    written = write_artifacts(observer, tmp_path / "a" / "thermo")
    names = ["dashboard.png", "history.csv", "history.jsonl", "diagnosis.txt", "diagnosis.json"]
    assert written == [tmp_path / "a" / "thermo" / name for name in names]
    picture, table, lines, text, plain = written
    assert picture.read_bytes().startswith(b"\x89PNG")
    with table.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["scope"] == "total"]
    assert [float(row["r"]) for row in rows] == observer.history.total("r").tolist()
    saved = SavedRun.read(lines)
    assert saved.history.steps.tolist() == observer.history.steps.tolist() == [10, 20, 31]
    assert saved.losses.values.tolist() == observer.history.losses.tolist()
    assert json.loads(plain.read_text())["summary"] in text.read_text()


@pytest.mark.parametrize(("steps", "files"), [(5, []), (10, ["history.csv", "history.jsonl"])])
def test_what_cannot_be_written_is_named_and_the_rest_is_there(tmp_path, steps, files):
    _, observer, _ = plain_loop(adamw, steps)
    with pytest.warns(RuntimeWarning, match=r"not written: dashboard\.png \(it needs 2 readings") as record:
        written = write_artifacts(observer, tmp_path)
    assert ("history.csv" in str(record[0].message)) != bool(files)
    expected = sorted([*files, "diagnosis.txt", "diagnosis.json"])
    assert sorted(path.name for path in written) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == expected


def test_without_matplotlib_the_rest_is_written(tmp_path, monkeypatch):
    _, observer, _ = plain_loop(adamw, 20)
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.warns(RuntimeWarning, match=r"dashboard\.png \(plots need matplotlib: pip install"):
        written = write_artifacts(observer, tmp_path)
    assert len(written) == 4
    assert all(path.exists() for path in written)


# ---------------------------------------------------------------- what is measured and logged


@pytest.mark.parametrize("make", [adamw, sgd, thermo])
def test_logged_are_the_readings_of_a_plain_loop(tmp_path, make):
    callback = ThermoCallback(layers=True)
    module, _ = fit(tmp_path, make, callback, logger=True)
    model, observer, readings = plain_loop(make, 2 * BATCHES)
    assert same(module, model)
    table = metrics(tmp_path)
    assert sorted(table) == [9, 19, 29, 39]  # Lightning counts steps from 0
    for step, row in table.items():
        expected = run_scalars(readings[step + 1], layers=True)
        given = finite(row)
        assert given == pytest.approx(expected, rel=1e-6)  # Lightning stores them as float32
        assert "thermo/layer/net.0.weight/sigma" in given
    assert callback.observers[0].losses.values.tolist() == observer.losses.values.tolist()


def test_what_is_not_defined_any_more_is_logged_as_nan(tmp_path, monkeypatch):
    """Lightning itself would go on with the last value."""
    values = [{"thermo/r": 1.0, "thermo/R_ie": 2.0}, {"thermo/r": 3.0}, {"thermo/r": 4.0, "thermo/R_ie": 5.0}]
    values = iter([*values, {}])
    monkeypatch.setattr("thermoopt.integrations.lightning.run_scalars", lambda *_, **__: next(values))
    fit(tmp_path, adamw, ThermoCallback(), logger=True)
    table = metrics(tmp_path)
    assert [row["thermo/r"] for row in table.values()][:3] == [1, 3, 4]
    heat = [row["thermo/R_ie"] for row in table.values()]
    assert [heat[0], heat[2]] == [2, 5]
    assert all(math.isnan(x) for x in (heat[1], heat[3], table[39]["thermo/r"]))


class Clips(Module):
    """Clips in its own hook, to a fixed norm, and keeps what the norm was before."""

    norms: list[float]

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.norms.append(float(torch.nn.utils.clip_grad_norm_(self.parameters(), 0.01)))


@pytest.mark.parametrize("make", [adamw, sgd, thermo])
@pytest.mark.parametrize("how", ["trainer", "module"])
def test_gradients_are_read_after_clipping(tmp_path, make, how):
    module = Module(make) if how == "trainer" else Clips(make)
    module.norms = []
    callback = ThermoCallback(log_every=1)
    flags = {"gradient_clip_val": 0.01} if how == "trainer" else {}
    fit(tmp_path, make, callback, module=module, epochs=1, **flags)
    assert callback.observers[0].steps == BATCHES
    # an average of squares that are all the same
    assert callback.observers[0].reading.total.grad_norm == pytest.approx(0.01, rel=1e-4)
    model, unclipped, _ = plain_loop(make, BATCHES, log_every=1)
    assert unclipped.reading.total.grad_norm > 0.1
    model, _, _ = plain_loop(make, BATCHES, clip=0.01)
    assert same(module, model)
    assert all(norm > 0.1 for norm in module.norms)
    assert len(module.norms) == (BATCHES if how == "module" else 0)


@pytest.mark.parametrize("make", [adamw, sgd, auto])
def test_the_callback_changes_no_bit(tmp_path, make):
    watched, _ = fit(tmp_path, make, ThermoCallback(log_every=1, track=("rho", "distance")))
    alone, _ = fit(tmp_path, make)
    assert same(watched, alone)
    assert not same(watched, Module(make))


def test_accumulation_counts_optimizer_steps_and_their_losses(tmp_path):
    callback = ThermoCallback(log_every=1)
    module, run = fit(tmp_path, adamw, callback, epochs=1, accumulate_grad_batches=4)
    assert run.global_step == callback.observers[0].steps == BATCHES // 4
    model = Module(adamw)
    optimizer, losses = adamw(model), []
    for four in data().split(BATCH * 4):
        optimizer.zero_grad()
        parts = [loss_of(model.net, x) for x in four.split(BATCH)]
        for part in parts:
            (part / 4).backward()
        optimizer.step()
        losses.append(sum(part.item() for part in parts) / 4)
    assert same(module, model)
    assert callback.observers[0].losses.values == pytest.approx(losses, rel=1e-5)
    assert callback.observers[0].losses.steps.tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("make", [adamw, thermo])
def test_bf16_mixed(tmp_path, make):
    callback = ThermoCallback()
    module, run = fit(tmp_path, make, callback, precision="bf16-mixed", gradient_clip_val=0.01)
    reading = callback.observers[0].reading
    assert reading.step == (2 * BATCHES if make is thermo else 31)
    assert reading.total.grad_norm == pytest.approx(0.01, rel=1e-3)
    assert math.isfinite(float(run.callback_metrics["thermo/r"]))
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_values_stand_on_the_progress_bar_where_asked_for(tmp_path):
    _, run = fit(tmp_path, thermo, ThermoCallback(prog_bar=("r", "lr_eff")), epochs=1)
    shown = {name for name in run.progress_bar_metrics if name.startswith("thermo/")}
    assert shown == {"thermo/r", "thermo/lr_eff"}
    assert "thermo/sigma" in run.logged_metrics
    _, run = fit(tmp_path, thermo, ThermoCallback(), epochs=1)
    assert not run.progress_bar_metrics


class Adversarial(pl.LightningModule):
    """Two networks, two optimizers of two kinds, stepped by hand; the second every other batch."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.one, self.two = net(), net()

    def training_step(self, batch, index):
        optimizers = self.optimizers()
        for model, optimizer in zip((self.one, self.two), optimizers, strict=True):
            if model is self.one or index % 2 == 0:
                loss = loss_of(model, batch[0])
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()

    def configure_optimizers(self):
        return [thermo(self.one), torch.optim.AdamW(self.two.parameters(), lr=1e-2)]


@pytest.mark.parametrize("names", [None, ("generator", "critic")])
def test_manual_optimization_names_every_optimizer(tmp_path, names):
    callback = ThermoCallback(names=names, log_every=5)
    module, run = fit(tmp_path, None, callback, module=Adversarial(), epochs=1)
    first, second = names or ("optimizer0", "optimizer1")
    assert [observer.steps for observer in callback.observers] == [BATCHES, BATCHES // 2]
    for name, observer in zip((first, second), callback.observers, strict=True):
        r = observer.reading.total.r
        assert float(run.callback_metrics[f"thermo/{name}/r"]) == pytest.approx(r, rel=1e-6)
    # the same as alone, under the names of the module
    alone = ThermoCallback(log_every=5)
    only, _ = fit(tmp_path / "alone", thermo, alone, epochs=1)
    assert same(module.one, only.net)
    assert equal(callback.observers[0].reading.terms, alone.observers[0].reading.terms)
    assert callback.observers[1].reading.names[0] == "two.0.weight"


def test_a_module_knows_the_length_of_its_run_and_reads_its_optimizer(tmp_path):
    class Reads(Module):
        def on_train_batch_end(self, outputs, batch, index):
            self.seen = self.trainer.optimizers[0].reading

    def make(module):
        steps = module.trainer.estimated_stepping_batches
        return ThermoAdamW(module.named_parameters(), weight_decay=0.1, controller=autotune(steps))

    module, _ = fit(tmp_path, make, ThermoCallback(), module=Reads(make), epochs=4)
    model, observer, _ = plain_loop(auto, 4 * BATCHES)
    assert same(module, model)
    assert equal(module.seen.terms, observer.reading.terms)


# ---------------------------------------------------------------- rates


def test_learning_rate_monitor_shows_the_names_of_groups(tmp_path):
    monitor = LearningRateMonitor("step")

    def make(module):
        return ThermoAdamW(make_param_groups(module, lr=2e-3), controller=autotune(2 * BATCHES))

    callback = ThermoCallback(groups=True, layers=True)
    _, run = fit(tmp_path, make, callback, monitor, logger=True)
    assert set(monitor.lrs) == {"lr-ThermoAdamW/net.0", "lr-ThermoAdamW/net.2"}
    assert {lr for lrs in monitor.lrs.values() for lr in lrs} == {2e-3}  # a controller leaves group["lr"]
    assert {"thermo/net.0/r", "thermo/net.2/r"} <= run.callback_metrics.keys()
    thermo = run.optimizers[0].param_groups[1]["thermo"]
    effective = 2e-3 * thermo["lr_scale"] * float(thermo["layer_factors"][0])
    logged = float(run.callback_metrics["thermo/layer/net.2.weight/lr_eff"])
    assert logged == pytest.approx(effective, rel=1e-6)
    assert logged != pytest.approx(2e-3, rel=0.1)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", ["plain", "controlled"])
def test_a_thermo_scheduler_sets_the_rates_of_a_plain_loop(tmp_path, kind, accumulate):
    steps = 2 * BATCHES // accumulate

    def schedule(optimizer):
        if kind == "plain":
            return ThermoScheduler(optimizer, steps, warmup_steps=5, shape="cosine")
        return ThermoScheduler(optimizer, steps, shape="constant", controller=autotune(steps))

    class Rates(pl.Callback):
        def __init__(self):
            self.lrs = []

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            self.lrs.append(optimizer.param_groups[0]["lr"])

    def make(module):
        optimizer = adamw(module)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule(optimizer), "interval": "step"},
        }

    rates = Rates()
    module, _ = fit(tmp_path, make, ThermoCallback(), rates, accumulate_grad_batches=accumulate)
    model, expected = Module(adamw), []
    optimizer = adamw(model)
    scheduler = schedule(optimizer)
    for _ in range(2):
        for part in data().split(BATCH * accumulate):
            optimizer.zero_grad()
            for x in part.split(BATCH):
                (loss_of(model.net, x) / accumulate).backward()
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    assert rates.lrs == expected
    assert len(set(expected)) > 5
    assert same(module, model)


# ---------------------------------------------------------------- checkpoints


def controlled(module):
    optimizer = adamw(module)
    scheduler = ThermoScheduler(optimizer, 4 * BATCHES, shape="constant", controller=autotune(4 * BATCHES))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


@pytest.mark.parametrize("make", [auto, controlled, sgd])
def test_a_run_resumes_bit_for_bit(tmp_path, make):
    def callbacks():
        return ThermoCallback(log_every=3, track=("rho",)), LearningRateMonitor("step")

    flags = {"logger": True, "gradient_clip_val": 0.5}
    whole, whole_monitor = callbacks()
    straight, _ = fit(tmp_path / "whole", make, whole, whole_monitor, epochs=4, **flags)
    first = callbacks()
    _, run = fit(tmp_path / "half", make, *first, epochs=2, **flags)
    path = tmp_path / "half.ckpt"
    run.save_checkpoint(path)
    assert len(torch.load(path, weights_only=True)["callbacks"]["ThermoCallback"]["observers"]) == 1
    second, monitor = callbacks()
    resumed, run = fit(tmp_path / "rest", make, second, monitor, ckpt=path, epochs=4, **flags)
    assert run.global_step == 4 * BATCHES
    assert same(straight, resumed)
    one, two = whole.observers[0], second.observers[0]
    assert one.steps == two.steps == 4 * BATCHES
    assert equal(one.reading.terms, two.reading.terms)
    assert one.start_norms == two.start_norms
    late = one.history.steps > 2 * BATCHES
    assert two.history.steps.tolist() == one.history.steps[late].tolist()
    assert equal(two.history.total("R_ie"), one.history.total("R_ie")[late])
    halves = {name: first[1].lrs[name] + monitor.lrs[name] for name in monitor.lrs}
    assert halves == whole_monitor.lrs
    rows = {step: finite(row) for step, row in metrics(tmp_path / "whole").items() if step >= 2 * BATCHES}
    assert {step: finite(row) for step, row in metrics(tmp_path / "rest").items()} == rows
    assert len(rows) == 4


@pytest.mark.parametrize("make", [adamw, thermo])
def test_a_checkpoint_written_without_the_callback_loads(tmp_path, make):
    _, run = fit(tmp_path, make, epochs=1)
    run.save_checkpoint(tmp_path / "old.ckpt")
    callback = ThermoCallback()
    resumed, _ = fit(tmp_path, make, callback, ckpt=tmp_path / "old.ckpt")
    alone, _ = fit(tmp_path, make)
    assert same(resumed, alone)
    assert callback.observers[0].steps == 2 * BATCHES  # the optimizer's own count


@pytest.mark.parametrize(("before", "after"), [(thermo, adamw), (adamw, thermo)])
def test_a_checkpoint_of_another_optimizer_loads(tmp_path, before, after):
    _, run = fit(tmp_path, before, ThermoCallback(), epochs=1)
    run.save_checkpoint(tmp_path / "other.ckpt")
    callback = ThermoCallback()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, after, callback, ckpt=tmp_path / "other.ckpt")
    ours = [str(w.message) for w in caught if "ThermoCallback measured other optimizers" in str(w.message)]
    assert len(ours) == (before is thermo)  # of AdamW's averages nothing is needed
    assert callback.observers[0].steps == 2 * BATCHES
    assert math.isfinite(callback.observers[0].reading.total.r)


def test_a_checkpoint_of_more_optimizers_starts_afresh(tmp_path):
    callback = ThermoCallback()
    callback.setup(trainer(tmp_path, callback), None, "fit")
    _, observer, _ = plain_loop(adamw, 10)
    state = {"observers": [observer.state_dict()] * 2}
    module = Module(adamw)

    class Loads(pl.Callback):
        def on_fit_start(self, trainer, pl_module):
            callback.load_state_dict(copy.deepcopy(state))
            assert len(callback.state_dict()["observers"]) == 2  # nothing is lost before training starts

    with pytest.warns(RuntimeWarning, match=r"measured other optimizers \(2\) than the trainer has now \(1"):
        fit(tmp_path, adamw, Loads(), callback, module=module, epochs=1)
    assert callback.observers[0].steps == BATCHES


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("logger", [False, True])
def test_files_lie_in_the_log_folder(tmp_path, logger, files):
    callback = ThermoCallback()
    _, run = fit(tmp_path, adamw, callback, logger=logger)
    folder = (tmp_path / "lightning_logs" / "version_0" if logger else tmp_path) / "thermo"
    assert {path.parent for path in callback.written} == {folder}
    assert len(callback.written) == 5
    report = json.loads((folder / "diagnosis.json").read_text())
    assert report["facts"]["steps"] == 2 * BATCHES == run.global_step
    assert not run.optimizers[0]._optimizer_step_pre_hooks  # ours are gone


def test_every_optimizer_has_a_folder(tmp_path, files):
    callback = ThermoCallback(names=("one", "two"))
    fit(tmp_path, None, callback, module=Adversarial(), epochs=2)
    assert {path.parent for path in callback.written} == {tmp_path / "thermo" / x for x in ("one", "two")}
    assert len(callback.written) == 10


def test_the_folder_can_be_chosen(tmp_path, files):
    callback = ThermoCallback(folder=tmp_path / "here")
    fit(tmp_path / "root", adamw, callback)
    assert (tmp_path / "here" / "dashboard.png").exists()
    assert not (tmp_path / "root").exists()


def test_fast_dev_run_writes_nothing(tmp_path, files):
    callback = ThermoCallback(log_every=1)
    fit(tmp_path, adamw, callback, fast_dev_run=2)
    assert callback.observers[0].steps == 2
    assert callback.written == []
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_leaves_its_files(tmp_path, files):
    class Fails(Module):
        def training_step(self, batch, index):
            if self.global_step == 30:
                raise FloatingPointError("the user's own")
            return super().training_step(batch, index)

    callback = ThermoCallback()
    with pytest.raises(FloatingPointError, match="the user's own"):
        fit(tmp_path, adamw, callback, module=Fails(adamw))
    report = json.loads((tmp_path / "thermo" / "diagnosis.json").read_text())
    assert report["facts"]["steps"] == 30


def test_a_callback_measures_one_run_after_the_other(tmp_path):
    callback = ThermoCallback()
    first, _ = fit(tmp_path / "1", adamw, callback)
    one = callback.observers[0].reading
    second, _ = fit(tmp_path / "2", adamw, callback)
    two = callback.observers[0].reading
    assert same(first, second)
    assert equal(one.terms, two.terms)
    assert one.step == two.step == 31


# ---------------------------------------------------------------- bad input


def test_two_callbacks_are_refused(tmp_path):
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `ThermoCallback`"):
        trainer(tmp_path, ThermoCallback(), ThermoCallback())

    class Mine(ThermoCallback):
        pass

    with pytest.raises(ValueError, match="one ThermoCallback only, got 2"):
        fit(tmp_path, adamw, ThermoCallback(), Mine())


@pytest.mark.parametrize(
    ("flags", "error", "words"),
    [
        ({"log_every": 0}, ValueError, "log_every must be an integer >= 1, got 0"),
        ({"log_every": True}, TypeError, "log_every must be an integer >= 1, got True"),
        ({"prog_bar": "r"}, TypeError, "prog_bar must .* got 'r'"),
        ({"prog_bar": ["loss"]}, ValueError, r"prog_bar must .* got \['loss'\]"),
        ({"names": "critic"}, TypeError, "names must .* got 'critic'"),
        ({"names": ["a", "a"]}, ValueError, r"names must .* got \['a', 'a'\]"),
        ({"names": ["a/b"]}, ValueError, r"names must .* got \['a/b'\]"),
    ],
)
def test_bad_arguments(flags, error, words):
    with pytest.raises(error, match=words):
        ThermoCallback(**flags)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"names": ["a", "b"]}, r"names .* the trainer's 1 optimizers, got \['a', 'b'\]"),
        ({"track": ["sigma"]}, r"track must hold only .* got \['sigma'\]"),
        ({"folder": "s3://bucket/run"}, "folder must be a local one, got 's3://bucket/run'"),
    ],
)
def test_what_only_the_run_shows_is_refused_before_a_step(tmp_path, flags, words):
    module = Module(adamw)
    with pytest.raises(ValueError, match=words):
        fit(tmp_path, adamw, ThermoCallback(**flags), module=module)
    assert same(module, Module(adamw))


def test_exchanged_optimizers_are_followed_with_a_warning(tmp_path):
    class Exchanges(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                self.old = trainer.optimizers[0]
                trainer.optimizers = [sgd(pl_module)]

    exchange, callback = Exchanges(), ThermoCallback()
    with pytest.warns(RuntimeWarning, match="were exchanged after training had started") as record:
        fit(tmp_path, adamw, exchange, callback)
    assert sum("exchanged" in str(w.message) for w in record) == 1
    assert isinstance(callback.observers[0].optimizer, torch.optim.SGD)
    assert callback.observers[0].steps == BATCHES
    assert not exchange.old._optimizer_step_pre_hooks


def test_a_step_optimizer_of_other_parameters_is_measured_without_names(tmp_path):
    outside = net()

    class Outside(pl.LightningModule):
        def training_step(self, batch, _):
            return loss_of(outside, batch[0])

        def configure_optimizers(self):
            return adamw(outside)

    callback = ThermoCallback()
    fit(tmp_path, None, callback, module=Outside(), epochs=1)
    assert callback.observers[0].reading.names[0] == "group0.0"


BLOCKED = """
import sys
for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
    sys.modules[name] = None
try:
    import thermoopt.integrations.lightning
except ImportError as error:
    print(error)
"""


def test_without_lightning_the_error_names_the_extra():
    done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, timeout=120)
    assert done.stdout == "ThermoCallback needs Lightning: pip install 'thermoopt[lightning]'\n"


OLD_NAME = """
import sys, warnings
warnings.simplefilter("ignore")
if sys.argv[1] == "only":
    sys.modules["lightning"] = sys.modules["lightning.pytorch"] = None
import torch, pytorch_lightning as pl
from thermoopt import ThermoAdamW
from thermoopt.integrations.lightning import ThermoCallback

class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(4, 2)
    def training_step(self, batch, _):
        return self.net(batch).square().mean()
    def configure_optimizers(self):
        return ThermoAdamW(self.named_parameters())

callback = ThermoCallback()
run = pl.Trainer(accelerator="cpu", max_epochs=1, default_root_dir=sys.argv[2], logger=False,
                 enable_checkpointing=False, callbacks=[callback], enable_progress_bar=False)
run.fit(Module(), torch.utils.data.DataLoader(torch.randn(80, 4), 4))
print(float(run.callback_metrics["thermo/r"]) > 0, len(callback.written), callback.observers[0].steps)
"""


@pytest.mark.slow
@pytest.mark.parametrize("which", ["only", "both"])
def test_pytorch_lightning(tmp_path, which):
    """The package's old name: alone, and beside ``lightning``, whose Callback ours then is."""
    pytest.importorskip("pytorch_lightning")
    script = tmp_path / "old_name.py"
    script.write_text(OLD_NAME)
    done = run_script(script, which, tmp_path)
    assert done.code == 0, done.errors
    assert done.output.endswith("True 5 20\n")


TWO_RANKS = """
import sys, warnings
warnings.simplefilter("ignore")
import torch, lightning.pytorch as pl
from pathlib import Path
from thermoopt import ThermoAdamW, autotune
from thermoopt.integrations.lightning import ThermoCallback

FOLDER = Path(sys.argv[1])

class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Linear(4, 2)
    def training_step(self, batch, _):
        return (self.net(batch) - batch[:, :2] * 2).square().mean()
    def configure_optimizers(self):
        return ThermoAdamW(self.named_parameters(), controller=autotune(20))
    def on_train_end(self):
        callback = self.trainer.callbacks[0]
        state = [torch.from_numpy(callback.observers[0].reading.terms), len(callback.written),
                 float(self.trainer.callback_metrics["thermo/r"]), callback.observers[0].steps]
        torch.save(state, FOLDER / f"{self.global_rank}.pt")

if __name__ == "__main__":
    rows = torch.randn(160, 4, generator=torch.Generator().manual_seed(0))
    run = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp_fork", max_epochs=1,
                     callbacks=[ThermoCallback()], default_root_dir=FOLDER / "root", logger=False,
                     enable_checkpointing=False, enable_progress_bar=False)
    run.fit(Module(), torch.utils.data.DataLoader(rows, 4))
"""


def test_a_pickled_callback_measures_like_the_first(tmp_path):
    """Strategies that spawn processes pickle the trainer with its callbacks."""
    first = ThermoCallback(log_every=2, track=("rho",), layers=True, prog_bar=("r",))
    readings = []
    for i, callback in enumerate((first, pickle.loads(pickle.dumps(first)))):
        fit(tmp_path / str(i), adamw, callback, epochs=1)
        readings.append(callback.observers[0].reading)
    np.testing.assert_array_equal(readings[0].terms, readings[1].terms)
    assert readings[0].step == readings[1].step == BATCHES
    assert math.isfinite(readings[1].total.rho)


@pytest.mark.dist
def test_two_ranks_measure_the_same_and_the_first_writes(tmp_path):
    script = tmp_path / "two_ranks.py"
    script.write_text(TWO_RANKS)
    done = run_script(script, tmp_path)
    assert done.code == 0, done.errors
    (terms, files, r, steps), second = (
        torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)
    )
    assert steps == second[3] == 20
    assert torch.equal(torch.nan_to_num(terms), torch.nan_to_num(second[0]))
    assert r == second[2]
    assert math.isfinite(r)
    assert (files, second[1]) == (5, 0)
    assert len(list((tmp_path / "root" / "thermo").iterdir())) == 5
