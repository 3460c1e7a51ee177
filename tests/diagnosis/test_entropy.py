"""The entropy split against a float64 loop written out here, its states, its report and its advice."""

from __future__ import annotations

import csv
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from thermoopt import EntropySplit, Observer, ThermoAdamW
from thermoopt.diagnosis.entropy_advice import dominant, split_advice
from thermoopt.diagnosis.entropy_split import r_ie_state
from thermoopt.physics.quantities import R_IE_CAP
from thermoopt.physics.terms import Term

LR, WD, BETAS, EPS = 3e-3, 0.3, (0.9, 0.99), 1e-8


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def backward(model):
    x = torch.randn(16, 6, dtype=torch.float64)
    loss = ((model(x) - x[:, :3].cos()) ** 2).mean()
    model.zero_grad()
    loss.backward()


def adamw(params, **kwargs):
    return torch.optim.AdamW(params, lr=LR, weight_decay=WD, betas=BETAS, eps=EPS, **kwargs)


class Loop:
    """Adam in plain float64: for each parameter what a step does, and the productive parts of it."""

    def __init__(self, model):
        self.moments = {name: (0.0, 0.0) for name, _ in model.named_parameters()}
        self.t = 0

    def measure(self, model):
        """eta <g, U + lambda theta> and eta lambda <g, theta> of the coming step, by layer."""
        self.t += 1
        beta1, beta2 = BETAS
        total, decay = {}, {}
        for name, p in model.named_parameters():
            g, theta = p.grad.numpy().copy(), p.detach().numpy().copy()
            m, v = self.moments[name]
            m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
            self.moments[name] = m, v
            u = (m / (1 - beta1**self.t)) / (np.sqrt(v / (1 - beta2**self.t)) + EPS)
            total[name] = LR * math.fsum((g * (u + WD * theta)).ravel())
            decay[name] = LR * WD * math.fsum((g * theta).ravel())
        return total, decay


@pytest.mark.parametrize("make", ["torch", "thermo"])
def test_split_adds_up_layer_by_layer_by_type_and_in_total(make):
    model = net()
    if make == "torch":
        opt = adamw(model.named_parameters())
        observer = Observer(model, opt, 1, ema_steps=1)
    else:
        opt = ThermoAdamW(
            model.named_parameters(),
            lr=LR,
            weight_decay=WD,
            betas=BETAS,
            eps=EPS,
            backend="torch",
            measure_every=1,
            ema_steps=1,
        )
        observer = Observer(model, opt)
    split, loop = EntropySplit(model, opt, observer), Loop(model)
    for step in range(1, 16):
        backward(model)
        total, decay = loop.measure(model)
        opt.step()
        snapshot = split.step()
        assert snapshot is split.snapshot
        assert snapshot.step == step
        for name, layer in snapshot.layers.items():
            assert layer.sigma_total == pytest.approx(total[name], rel=1e-9, abs=1e-15)
            assert layer.sigma_total == layer.d_eS + layer.d_iS
            assert layer.d_iS == pytest.approx(
                layer.d_iS_wd + layer.d_iS_momentum + layer.d_iS_noise, abs=1e-15
            )
            assert layer.d_iS_wd == pytest.approx(decay[name], rel=1e-9, abs=1e-15)
            assert layer.d_eS >= 0
            assert layer.lr == pytest.approx(LR)
        for kind, own in snapshot.types.items():
            members = [name for name, layer in snapshot.layers.items() if layer.ltype == kind]
            assert own.sigma_total == pytest.approx(sum(total[name] for name in members), rel=1e-9)
            assert own.d_iS_wd == pytest.approx(sum(decay[name] for name in members), rel=1e-9)
        assert snapshot.types.keys() == {"mlp", "head"}
        assert snapshot.total_d_eS + snapshot.total_d_iS == pytest.approx(sum(total.values()), rel=1e-9)


def test_an_average_of_steps_adds_up_too():
    model = net()
    opt = adamw(model.named_parameters())
    ema = 10.0
    observer = Observer(model, opt, 1, ema_steps=ema)
    split, loop = EntropySplit(model, opt, observer), Loop(model)
    mean, weight = dict.fromkeys(loop.moments, 0.0), 0.0
    for _ in range(30):
        backward(model)
        total, _ = loop.measure(model)
        opt.step()
        weight += (1 - weight) / ema
        mean = {name: value + (total[name] - value) / ema for name, value in mean.items()}
    for name, layer in split.snapshot.layers.items():
        assert layer.sigma_total == pytest.approx(mean[name] / weight, rel=1e-9, abs=1e-15)


# -------------------------------------------------------------------- states


def test_states():
    assert [r_ie_state(x) for x in (0.0, 3.0, R_IE_CAP, math.nan)] == [
        "finite",
        "finite",
        "capped",
        "undefined",
    ]


def read(layers, seen=None, step=10):
    """An observer of readings made by hand: layers ``name -> (type, {Term: value})``."""
    terms = np.zeros((len(Term), len(layers)))
    for i, (_, values) in enumerate(layers.values()):
        terms[Term.NUMEL, i] = 1
        for term, value in values.items():
            terms[term, i] = value
    reading = SimpleNamespace(
        step=step,
        names=tuple(layers),
        terms=terms,
        seen=np.ones(len(layers), dtype=bool) if seen is None else np.array(seen),
        group_of=np.zeros(len(layers), dtype=np.int64),
    )
    opt = torch.optim.AdamW([nn.Parameter(torch.ones(1))], weight_decay=0.1)
    types = {name: kind for name, (kind, _) in layers.items()}
    return SimpleNamespace(optimizer=opt, model=None, reading=reading, layer_types=types)


LAYERS = {
    "a": ("mlp", {Term.D_ES: 1.0, Term.NOISE: 2.0, Term.MOMENTUM: -0.5, Term.WD: -0.25, Term.WD_ABS: 0.25}),
    "b": ("mlp", {Term.D_ES: 1e-6, Term.NOISE: 1.0}),
    "c": ("attention", {Term.D_ES: 1.0, Term.NOISE: 1.0, Term.WORK_VAR: 1.0}),
    "d": ("attention", {Term.D_ES: 4.0, Term.WD: 2.0, Term.WD_ABS: 2.0}),
}


def test_every_state_and_the_worst_layer():
    observer = read(LAYERS)
    snapshot = EntropySplit(None, observer.optimizer, observer).snapshot
    assert {name: (layer.state, layer.R_ie) for name, layer in snapshot.layers.items() if name != "c"} == {
        "a": ("finite", 2.75),
        "b": ("capped", R_IE_CAP),
        "d": ("finite", 0.5),
    }
    assert snapshot.layers["c"].state == "undefined"  # work 1, and its error 1
    assert math.isnan(snapshot.layers["c"].R_ie)
    assert (snapshot.worst_layer, snapshot.worst_ltype, snapshot.R_ie_max) == ("b", "mlp", R_IE_CAP)
    assert snapshot.R_ie_median == 2.75
    assert snapshot.types["mlp"].R_ie == pytest.approx(3.75 / (1 + 1e-6))
    assert snapshot.R_ie == pytest.approx((2.75 + 1 + 1 + 2) / (6 + 1e-6))
    assert (snapshot.total.state, snapshot.state) == ("finite", "finite")


def test_layers_never_measured_are_absent():
    observer = read(LAYERS, seen=[True, False, False, True])
    snapshot = EntropySplit(None, observer.optimizer, observer).snapshot
    assert list(snapshot.layers) == ["a", "d"]
    assert snapshot.total_d_eS == 5.0


# -------------------------------------------------------------------- report, advice, files


def test_report_names_totals_types_worst_layers_and_counts_the_undefined():
    observer = read(LAYERS)
    split = EntropySplit(None, observer.optimizer, observer)
    lines = split.report(top_k=2).splitlines()
    assert lines[0] == "Entropy split at step 10 [loss per step]"
    assert [line.split("  ")[0] for line in lines[2:]] == [
        "total",
        "type attention",
        "type mlp",
        "b",
        "a",
        "R_ie undefined in 1 of 4 layers: work within its error of 0.",
    ]
    assert lines[5].split()[-2:] == [">1e+03", "noise"]
    assert lines[6].split()[1:] == ["2.25", "1", "2", "-0.5", "-0.25", "2.75", "noise"]
    assert lines[3].split()[-2:] == ["weight", "decay"]
    end = lines[1].index("R_ie") + len("R_ie")
    assert {len(line[:end].rstrip()) for line in lines[1:7]} == {end}  # aligned on the right
    assert len(split.report(top_k=0).splitlines()) == 6
    with pytest.raises(ValueError, match="top_k must be an integer >= 0, got -1"):
        split.report(top_k=-1)


def test_dominant_source_needs_more_than_half():
    assert dominant({"d_iS_noise": 2.0, "d_iS_momentum": -1.0, "d_iS_wd": 0.5}) == "noise"
    assert dominant({"d_iS_noise": 1.0, "d_iS_momentum": -3.0, "d_iS_wd": math.nan}) == "momentum"
    assert dominant({"d_iS_noise": 1.0, "d_iS_momentum": 0.0, "d_iS_wd": -1.0}) is None
    assert dominant(dict.fromkeys(("d_iS_noise", "d_iS_wd"), math.nan)) is None


def columns(**kwargs):
    """Five equal readings of layers of work 1."""
    n = len(next(iter(kwargs.values())))
    out = {"d_eS": np.ones((6, n))}
    for name in ("noise", "momentum", "wd"):
        out[f"d_iS_{name}"] = np.tile(np.array(kwargs.get(name, [0.0] * n)), (6, 1))
    out["R_ie"] = sum(abs(out[f"d_iS_{name}"]) for name in ("noise", "momentum", "wd"))
    return out


SETTINGS = [(0.2, 0.95), (0.2, 0.95), (0.2, 0.95)]
NAMES, TYPES = ["x", "y", "z"], ["mlp", "mlp", "head"]


def test_advice_names_the_source_and_by_how_much_to_change_it():
    (line,) = split_advice(columns(wd=[-4.0, 6.0, 0.5]), TYPES, NAMES, SETTINGS)
    assert line.startswith(
        "2 mlp layers: weight decay makes most of the heat, 5 times the work (R_ie up to 6 in y)."
    )
    assert "weight_decay by a factor of 5 (0.2 → 0.04)" in line
    (line,) = split_advice(columns(momentum=[-0.5, -0.5, -4.0]), TYPES, NAMES, SETTINGS)
    assert line.startswith("1 head layer: momentum ")
    assert "beta1 from 0.95 to 0.8" in line
    (line,) = split_advice(columns(noise=[3.0, 3.0, 0.5]), TYPES, NAMES, SETTINGS)
    assert "batch 3 times as large" in line


@pytest.mark.parametrize("case", ["few", "undefined", "unsteady", "changing", "no leader", "less than work"])
def test_no_advice_on_what_is_not_steady(case):
    data = columns(noise=[3.0], momentum=[0.0], wd=[0.0])
    if case == "few":
        data = {name: values[:4] for name, values in data.items()}
    elif case == "undefined":
        data["R_ie"][3] = math.nan
    elif case == "unsteady":
        data["R_ie"][3] *= 3
    elif case == "changing":
        data["d_iS_momentum"][4] = -9.0
    elif case == "no leader":
        data["d_iS_wd"][:] = 3.0
    else:
        data["d_eS"][:] = 4.0
    assert split_advice(data, ["mlp"], ["x"], SETTINGS[:1]) == []
    assert split_advice(columns(noise=[3.0]), ["mlp"], ["x"], SETTINGS[:1])


def trained(opt_of, steps=120, log_every=10):
    model = net()
    opt = opt_of(model)
    observer = Observer(model, opt, log_every)
    for _ in range(steps):
        backward(model)
        opt.step()
    return model, opt, observer


def test_recommendations_of_pure_noise_blame_noise():
    torch.manual_seed(0)
    model = nn.Linear(64, 64)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    observer = Observer(model, opt)
    split = EntropySplit(model, opt, observer)
    assert split.get_recommendations() == []
    for _ in range(120):
        for p in model.parameters():
            p.grad = torch.randn_like(p) + 0.3  # some signal: work is defined
        opt.step()
    lines = split.get_recommendations()
    assert lines
    assert all(" noise makes most of the heat" in line for line in lines)


def test_csv_holds_the_split_of_every_reading_and_layer(tmp_path):
    model, opt, observer = trained(lambda model: adamw(model.named_parameters()))
    split = EntropySplit(model, opt, observer)
    split.export_csv(tmp_path / "split.csv")
    rows = list(csv.DictReader((tmp_path / "split.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == len(observer.history.layer_steps) * 6
    last = {row["layer"]: row for row in rows if row["step"] == "116"}
    for name, layer in split.snapshot.layers.items():
        row = last[name]
        assert float(row["sigma_total"]) == pytest.approx(layer.sigma_total, rel=1e-4, abs=1e-12)
        assert float(row["d_iS_wd"]) == pytest.approx(layer.d_iS_wd, rel=1e-4, abs=1e-12)
        assert (row["type"], row["state"]) == (layer.ltype, layer.state)
        assert float(row["d_eS"]) + float(row["d_iS"]) == pytest.approx(float(row["sigma_total"]), abs=1e-12)


def test_it_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    model, opt, observer = trained(lambda model: adamw(model.named_parameters()))
    EntropySplit(model, opt, observer).plot_entropy_split(save_path=tmp_path / "split.png")
    assert (tmp_path / "split.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(RuntimeError, match=r"show must be False .*got True"):
        EntropySplit(model, opt, observer).plot_entropy_split(show=True)


# -------------------------------------------------------------------- without moments, bad input


def test_without_moments_it_says_what_is_unavailable():
    model, opt, observer = trained(lambda model: torch.optim.SGD(model.parameters(), lr=0.01))
    split = EntropySplit(model, opt, observer)
    report = split.report()
    assert "unavailable: SGD keeps no second moment" in report
    assert "coupled" not in report
    layer = split.snapshot.layers["0.weight"]
    assert (layer.state, layer.d_iS_wd) == ("undefined", 0.0)
    assert math.isnan(layer.sigma_total)
    assert (split.snapshot.worst_layer, split.snapshot.worst_ltype) == (None, None)
    assert math.isnan(split.snapshot.R_ie_max)
    assert split.get_recommendations() == []


def test_coupled_decay_is_not_given_as_zero():
    model, opt, observer = trained(
        lambda model: torch.optim.SGD(model.parameters(), lr=0.01, weight_decay=0.1)
    )
    split = EntropySplit(model, opt, observer)
    assert math.isnan(split.snapshot.layers["0.weight"].d_iS_wd)
    assert "d_iS_wd unavailable where weight decay is coupled" in split.report()


def test_decoupled_decay_is_known_without_moments():
    class Plain(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"lr": LR, "weight_decay": WD, "decoupled_weight_decay": True})

        @torch.no_grad()
        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                p.mul_(1 - LR * WD).sub_(LR * p.grad)

    model = net()
    opt = Plain(model.parameters())
    split = EntropySplit(model, opt, Observer(model, opt, 1, ema_steps=1))
    for _ in range(5):
        backward(model)
        expected = {
            name: LR * WD * math.fsum((p.grad * p.detach()).flatten().tolist())
            for name, p in model.named_parameters()
        }
        opt.step()
        for name, layer in split.snapshot.layers.items():
            assert layer.d_iS_wd == pytest.approx(expected[name], rel=1e-9)


def test_before_the_first_reading(tmp_path):
    model = net()
    opt = adamw(model.parameters())
    split = EntropySplit(model, opt, Observer(model, opt))
    assert split.step() is None
    assert split.snapshot is None
    assert split.report().startswith("No reading yet")
    assert split.get_recommendations() == []
    with pytest.raises(ValueError, match="history is empty"):
        split.export_csv(tmp_path / "split.csv")
    assert not (tmp_path / "split.csv").exists()


def test_an_observer_of_something_else_is_refused():
    model, other = net(), net()
    first, second = adamw(model.parameters()), adamw(other.parameters())
    with pytest.raises(ValueError, match=r"observer must observe .* another AdamW"):
        EntropySplit(model, first, Observer(other, second))
    with pytest.raises(ValueError, match=r"model must be .* another Sequential"):
        EntropySplit(other, first, Observer(model, first))
