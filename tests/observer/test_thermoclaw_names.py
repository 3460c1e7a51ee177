"""What thermoclaw's users write runs with the import changed, and says something sensible."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

pytest.importorskip("matplotlib")

import thermoopt
from thermoopt import CollapseDetector, EntropySplit, Observer, ThermoScheduler, diagnose, make_param_groups


def setup(groups=True, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 3))
    given = make_param_groups(model, lr=3e-4, weight_decay=0.01) if groups else model.parameters()
    optimiser = torch.optim.AdamW(given, **options)
    x = torch.randn(256, 12)
    y = (x[:, :3] + 0.5 * x[:, 3:6] * x[:, 6:9]).argmax(1)

    def backward():
        rows = torch.randint(len(x), (32,))
        loss = F.cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        return loss

    return model, optimiser, backward


def test_observe_and_diagnose(tmp_path, capsys):
    model, optimiser, backward = setup(groups=False, lr=3e-4)
    observer = Observer(model, optimiser)
    for _ in range(120):
        loss = backward()
        optimiser.step()
        snapshot = observer.step(loss=loss.item())
        optimiser.zero_grad()
    assert snapshot.step == 116
    report = diagnose(observer)
    print(report)
    assert "Diagnosis" in capsys.readouterr().out
    assert isinstance(report.healthy, bool)
    assert isinstance(report.recommendations, list)
    observer.plot_dashboard(save_path=str(tmp_path / "dashboard.png"))
    assert (tmp_path / "dashboard.png").stat().st_size > 10_000
    observer.export_csv(str(tmp_path / "run.csv"))
    assert (tmp_path / "run.csv").read_text().startswith("step,scope,sigma")
    entry = observer.epoch_end(val_loss=1.0, val_acc=0.5)
    assert entry["val_acc"] == 0.5
    assert observer.summary()["optimizer"] == "AdamW"


def test_collapse_detector_in_the_loop():
    model, optimiser, backward = setup()
    for group in optimiser.param_groups:
        group["weight_decay"], group["lr"] = 30.0, 1e-3
    detector = CollapseDetector(model, optimiser)
    interventions = 0
    for _ in range(300):
        backward()
        optimiser.step()
        detector.step()
        optimiser.zero_grad()
        if detector.is_collapsing:
            interventions += 1
            for group in optimiser.param_groups:
                group["weight_decay"] *= 0.1
    # it says so, and re-arms instead of firing for ever
    assert 1 <= interventions <= 5
    assert detector.get_recommendations()


def test_entropy_split_in_the_loop(tmp_path):
    model, optimiser, backward = setup()
    observer = Observer(model, optimiser)
    splitter = EntropySplit(model, optimiser, observer)
    for _ in range(120):
        loss = backward()
        optimiser.step()
        observer.step(loss=loss.item())
        splitter.step()
        optimiser.zero_grad()
    report = diagnose(observer, splitter)
    assert "Entropy split" in str(report)
    splitter.plot_entropy_split(save_path=str(tmp_path / "split.png"))
    assert (tmp_path / "split.png").stat().st_size > 10_000


def test_scheduler_by_position_and_name():
    _, optimiser, backward = setup()
    scheduler = ThermoScheduler(optimiser, total_steps=50)
    for _ in range(50):
        backward()
        optimiser.step()
        scheduler.step()
        optimiser.zero_grad()
    assert scheduler.get_last_lr()[0] == pytest.approx(0, abs=1e-12)


def test_diagnose_takes_all_three():
    model, optimiser, backward = setup()
    observer = Observer(model, optimiser)
    splitter = EntropySplit(model, optimiser, observer)
    detector = CollapseDetector(model, optimiser, observer=observer)
    for _ in range(120):
        backward()
        optimiser.step()
        optimiser.zero_grad()
    report = diagnose(observer, splitter, collapse_detector=detector)
    assert set(report.sections) == {"Entropy split", "Collapse detector"}
    assert "Entropy split" in report.to_markdown()


def test_names_are_exported():
    for name in (
        "CollapseDetector",
        "DiagnosticReport",
        "EntropySplit",
        "Observer",
        "ThermoScheduler",
        "detect_layer_type",
        "diagnose",
        "make_param_groups",
    ):
        assert hasattr(thermoopt, name)
