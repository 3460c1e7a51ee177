"""What an observer hands out of a run, what its measuring pass agrees with, and how it answers bad input."""

import csv
import json
import math
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.small_net import model, train
from thermoopt import History, Observer, ThermoAdamW
from thermoopt.account.losses import Losses
from thermoopt.account.reading import Reading
from thermoopt.kernels import native, native_chunks
from thermoopt.observer import step_hooks as hooks
from thermoopt.observer.observer import MAX_IDLE_CALLS
from thermoopt.physics.quantities import QUANTITIES, dispersion
from thermoopt.physics.terms import Term

needs_native = pytest.mark.skipif(not native.available(), reason=native.unavailable_reason() or "built")
CLOSE = {"rtol": 2e-5, "atol": 1e-12, "equal_nan": True}


def adamw(params, **kwargs):
    return torch.optim.AdamW(params, lr=3e-3, **kwargs)


def run(net, opt, observer, steps, first=0):
    """Train in the manual form; return what ``observer.step`` returned."""
    out = []
    for step in range(first, first + steps):
        train(net, opt, 1, start=step)
        out.append(observer.step(loss=10.0 - step))
    return out


# ---------------------------------------------------------------- the measuring pass


def without_kernel(monkeypatch):
    monkeypatch.setattr(hooks, "dry_kernel", lambda groups: None)


def same_terms(a, b):
    assert a.step == b.step
    keep = [t for t in Term if t != Term.WORK_VAR]  # a difference of nearly equal numbers
    scale = np.abs(b.terms[keep]).max(axis=1, keepdims=True).clip(1e-30)
    assert np.allclose(a.terms[keep] / scale, b.terms[keep] / scale, **CLOSE)


VARIANTS = {
    "plain": {},
    "amsgrad": {"amsgrad": True},
    "maximize": {"maximize": True},
    "fused": {"fused": True},
    "tensor-lr": {"lr": torch.tensor(2e-3)},
    "tensor-betas": {"betas": (torch.tensor(0.9), torch.tensor(0.99))},
}


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kwargs", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam])
def test_kernel_and_torch_operations_agree(kind, kwargs, dtype, monkeypatch):
    """Any dtype: what the kernel cannot read goes to torch operations tensor by tensor."""
    nets = model(dtype), model(dtype)
    opts = [kind(net.parameters(), **{"lr": 3e-3, **kwargs}) for net in nets]
    fast = Observer(nets[0], opts[0], 1, ema_steps=4)
    without_kernel(monkeypatch)
    slow = Observer(nets[1], opts[1], 1, ema_steps=4)
    for step in range(6):
        for net, opt in zip(nets, opts, strict=True):
            train(net, opt, 1, start=step)
        same_terms(fast.reading, slow.reading)


@needs_native
def test_what_the_kernel_cannot_read_is_measured_all_the_same(monkeypatch):
    """Transposed, strided, complex, float64 and sparsely used tensors beside a plain one."""
    rng = torch.Generator().manual_seed(0)

    def build():
        gen = torch.Generator().manual_seed(1)
        tensors = [
            torch.randn(6, 5, generator=gen),
            torch.randn(5, 6, generator=gen).t(),
            torch.randn(6, 10, generator=gen)[:, ::2],
            torch.randn(3, 4, generator=gen, dtype=torch.complex64),
            torch.randn(7, generator=gen, dtype=torch.float64),
            torch.randn(8, generator=gen),
        ]
        return [torch.nn.Parameter(t) for t in tensors]

    sets = build(), build()
    opts = [adamw(params) for params in sets]
    fast = Observer(None, opts[0], 1, ema_steps=3)
    without_kernel(monkeypatch)
    slow = Observer(None, opts[1], 1, ema_steps=3)
    for step in range(5):
        grads = [torch.randn(p.shape, generator=rng, dtype=p.dtype) for p in sets[0]]
        for params, opt in zip(sets, opts, strict=True):
            for p, g in zip(params, grads, strict=True):
                p.grad = g.clone()
            params[-1].grad = None if step in (1, 4) else params[-1].grad
            params[0].grad = grads[0].t().contiguous().t() if step == 3 else params[0].grad  # other strides
            opt.step()
        same_terms(fast.reading, slow.reading)
    assert fast.reading.layers["group0.5"].numel == 8
    assert fast.reading.total.numel == sum(p.numel() for p in sets[0]) + 12  # complex counts twice


@needs_native
def test_a_state_that_was_replaced_is_read_anew(monkeypatch):
    nets = model(), model()
    opts = [adamw(net.parameters()) for net in nets]
    fast = Observer(nets[0], opts[0], 1, ema_steps=1)
    without_kernel(monkeypatch)
    slow = Observer(nets[1], opts[1], 1, ema_steps=1)
    kept = []
    for step in range(4):
        for net, opt in zip(nets, opts, strict=True):
            train(net, opt, 1, start=step)
        kept.append([opt.state_dict() for opt in opts])
        kept[-1] = [{**s, "state": {i: {k: v.clone() for k, v in x.items()} for i, x in s["state"].items()}}
                    for s in kept[-1]]  # fmt: skip
    for opt, state in zip(opts, kept[1], strict=True):
        opt.load_state_dict(state)
    # and one exchanged in place
    for net, opt in zip(nets, opts, strict=True):
        p = next(iter(net.parameters()))
        opt.state[p]["exp_avg"] = opt.state[p]["exp_avg"] * 2
        p.data = p.data.clone() + 1
    for step in range(4, 6):
        for net, opt in zip(nets, opts, strict=True):
            train(net, opt, 1, start=step)
        same_terms(fast.reading, slow.reading)


@needs_native
def test_tensors_that_share_memory_are_left_to_torch():
    storage = torch.randn(30)
    params = [torch.nn.Parameter(storage[:20]), torch.nn.Parameter(storage[10:])]
    opt = adamw(params, foreach=False)
    observer = Observer(None, opt, 1, ema_steps=1)
    for _ in range(3):
        for p in params:
            p.grad = torch.ones(20)
        opt.step()
    assert observer.reading.total.numel == 40
    assert observer.reading.total.grad_norm == pytest.approx(math.sqrt(40))


@needs_native
def test_halves_of_large_tensors_take_turns():
    """Every element is read within two measured steps, and averages agree with readings of all."""
    n = 40 * native_chunks.CHUNK + 3
    shapes = [n, 100]
    params, twins = ([torch.nn.Parameter(torch.ones(k)) for k in shapes] for _ in range(2))
    opt, own = adamw(params), ThermoAdamW(twins, lr=3e-3, measure_every=1, ema_steps=50, backend="torch")
    observer = Observer(None, opt, 1, ema_steps=50)
    short = Observer(None, opt, 1, ema_steps=4)  # too short an average for it
    exact = ThermoAdamW([torch.nn.Parameter(torch.ones(k)) for k in shapes], lr=3e-3, measure_every=1,
                        ema_steps=4, backend="torch")  # fmt: skip
    uneven = torch.where(torch.arange(n) // native_chunks.CHUNK % 2 == 0, 1.1, 0.9)
    for step in range(40):
        rng = torch.Generator().manual_seed(step)
        grads = [torch.randn(n, generator=rng) * uneven, torch.randn(100, generator=rng)]
        for o in (opt, own, exact):
            for p, g in zip((p for group in o.param_groups for p in group["params"]), grads, strict=True):
                p.grad = g.clone()
            o.step()
    for name in ("sigma", "grad_norm", "param_norm", "update_norm", "r", "gaussianity", "rho_momentum"):
        mine, expected = observer.reading.layer_array(name), own.reading.layer_array(name)
        assert mine[0] == pytest.approx(expected[0], rel=0.01), name
        assert mine[0] != expected[0] or name == "rho_momentum"
        assert mine[1] == pytest.approx(expected[1], rel=1e-5)
        assert short.reading.layer_array(name) == pytest.approx(exact.reading.layer_array(name), rel=1e-5)


def test_a_closure_with_the_kernel():
    nets = model(), model()
    opts = [adamw(net.parameters()) for net in nets]
    observers = [Observer(net, opt, 1) for net, opt in zip(nets, opts, strict=True)]
    for step in range(4):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))

        def closure(net, opt, x=x):
            opt.zero_grad()
            loss = net(x).square().mean()
            loss.backward()
            return loss

        opts[0].step(lambda closure=closure: closure(nets[0], opts[0]))
        closure(nets[1], opts[1])
        opts[1].step()
    assert np.array_equal(observers[0].reading.terms, observers[1].reading.terms, equal_nan=True)


# ---------------------------------------------------------------- the manual form


def test_step_returns_the_newest_reading_with_its_loss():
    net = model()
    opt = adamw(net.parameters())
    observer = Observer(net, opt, 2, ema_steps=1)
    readings = run(net, opt, observer, 5)
    assert [r and r.step for r in readings] == [None, 2, 2, 4, 4]
    assert [r and r.loss for r in readings] == [None, 9.0, 8.0, 7.0, 6.0]
    assert observer.reading.loss == 6.0
    assert np.array_equal(observer.losses.steps, [1, 2, 3, 4, 5])
    assert np.array_equal(observer.losses.values, [10.0, 9.0, 8.0, 7.0, 6.0])
    assert observer.history.losses.tolist() == [9.0, 7.0]  # those of the readings' own steps


@pytest.mark.parametrize("kind", ["adamw", "thermo"])
def test_calling_twice_counts_nothing_twice(kind):
    nets = model(), model()
    make = adamw if kind == "adamw" else lambda p: ThermoAdamW(p, lr=3e-3, measure_every=1, ema_steps=4)
    opts = [make(net.parameters()) for net in nets]
    once, twice = (Observer(net, opt, 1, ema_steps=4) for net, opt in zip(nets, opts, strict=True))
    for step in range(6):
        for net, opt in zip(nets, opts, strict=True):
            train(net, opt, 1, start=step)
        loss = 5.0 - step if step != 3 else math.nan
        once.step(loss)
        twice.step(loss=99.0)
        twice.step(torch.tensor(loss))
        twice.step(loss)
        twice.step()
    assert np.array_equal(once.reading.terms, twice.reading.terms, equal_nan=True)
    first, second = ([{**r, "loss": 0} for r in o.history.records()] for o in (once, twice))
    assert first == second
    assert once.history.losses.tolist() == [5.0, 4.0, 3.0, 3.0, 1.0, 0.0]
    assert twice.history.losses.tolist() == [5.0, 4.0, 3.0, 99.0, 1.0, 0.0]
    assert once.losses.steps.tolist() == [1, 2, 3, 5, 6]
    assert twice.losses.steps.tolist() == [1, 2, 3, 4, 5, 6]  # at 4 another loss was finite
    assert once.bad_losses == twice.bad_losses == 1
    assert once.steps == twice.steps == 6


def test_the_wrong_order_is_told():
    net = model()
    opt, other = adamw(net.parameters()), torch.optim.SGD(net.parameters(), lr=0.1)
    observer = Observer(net, opt)
    for step in range(MAX_IDLE_CALLS - 1):
        train(net, other, 1, start=step)
        assert observer.step(1.0) is None
    with pytest.raises(
        RuntimeError, match=r"10 times, .*AdamW.* no step since: call it after optimizer.step\(\)"
    ):
        observer.step(1.0)
    train(net, opt, 1)
    for _ in range(3 * MAX_IDLE_CALLS):  # gradients that are accumulated, steps that a GradScaler holds back
        observer.step(1.0)
    fresh = Observer(net, opt)
    fresh.load_state_dict(observer.state_dict())
    for _ in range(MAX_IDLE_CALLS - 1):
        fresh.step(1.0)
    train(net, opt, 1)
    fresh.step(1.0)


def test_losses_are_bounded_and_at_equal_distance():
    losses = Losses(max_losses=8)
    for step in range(1, 101):
        losses.report(step, float(step))
        assert len(losses) < 8
        assert len(set(np.diff(losses.steps).tolist())) <= 1
        assert np.array_equal(losses.steps, losses.values)
    assert losses.steps[0] == 1
    assert losses.steps[-1] > 75
    assert losses.last == 100.0
    losses.rewind(50, 50.0, 2)
    assert losses.steps[-1] <= 50
    assert (losses.last, losses.bad) == (50.0, 2)
    with pytest.raises(ValueError, match="max_losses must be >= 2, got 1"):
        Losses(1)


class Late:
    """Stands in for a loss under way from a device."""

    def __init__(self, value):
        self.value, self.arrived = value, False

    def ready(self):
        return self.arrived

    def numpy(self):
        self.arrived = True
        return np.array(float(self.value))


def test_a_loss_on_a_device_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("thermoopt.account.losses.Fetch", Late)
    losses = Losses()
    for step in range(1, 13):
        losses.report(step, 1.0 / step)
        fetches = [fetch for _, fetch in losses._coming]
        assert not any(fetch.arrived for fetch in fetches)
    assert len(fetches) == 8  # then the oldest is waited for
    assert losses.steps.tolist() == [1, 2, 3, 4]
    losses.settle(wait=True)
    assert losses.values == pytest.approx(1.0 / np.arange(1, 13))


# ---------------------------------------------------------------- D and the fraction in equilibrium


def reading_of(r, seen=None):
    """A reading whose layers have these r."""
    terms = np.ones((len(Term), len(r)))
    terms[Term.UU] = r
    everything = np.ones(len(r), dtype=bool) if seen is None else np.array(seen)
    names = tuple(f"layer{i}" for i in range(len(r)))
    return Reading(1, names, terms, np.zeros(len(r), dtype=np.int64), ("group0",), everything, {})


def test_dispersion_and_equilibrium_fraction():
    reading = reading_of([0.5, 0.86, 1.14, 1.5, np.nan, 70.0], seen=[True] * 5 + [False])
    expected = [0.5, 0.86, 1.14, 1.5]
    mean = sum(expected) / 4
    assert reading.dispersion == pytest.approx(sum((r - mean) ** 2 for r in expected) / 4)
    assert reading.equilibrium_fraction() == 0.5
    assert reading.equilibrium_fraction(0.1) == 0.0
    assert reading.equilibrium_fraction(band=0.5) == 1.0
    assert math.isnan(reading_of([1.0]).dispersion)
    assert reading_of([1.0]).equilibrium_fraction(0) == 1.0
    nothing = reading_of([np.nan, np.nan])
    assert math.isnan(nothing.dispersion)
    assert math.isnan(nothing.equilibrium_fraction())
    assert math.isnan(dispersion(np.zeros(0)))


@pytest.mark.parametrize(
    ("band", "error"), [(-0.1, ValueError), (math.nan, ValueError), ("0.15", TypeError), (True, TypeError)]
)
def test_bad_bands(band, error):
    with pytest.raises(error, match=r"band must be a number >= 0, got "):
        reading_of([1.0]).equilibrium_fraction(band)


# ---------------------------------------------------------------- epochs, summary, files, picture


@pytest.mark.parametrize("kind", ["adamw", "thermo"])
def test_epochs(kind):
    net = model()
    opt = (
        adamw(net.parameters())
        if kind == "adamw"
        else ThermoAdamW(net.parameters(), lr=3e-3, measure_every=1)
    )
    observer = Observer(net, opt, 1, ema_steps=5 if kind == "adamw" else 50)
    empty = observer.epoch_end()
    assert (empty["epoch"], empty["step"]) == (1, 0)
    assert all(math.isnan(empty[key]) for key in ("sigma", "r", "D", "rho_momentum", "loss"))
    run(net, opt, observer, 24)
    second = observer.epoch_end(val_loss=torch.tensor(0.5), val_acc=0.25)
    run(net, opt, observer, 24, first=24)
    third = observer.epoch_end(val_loss=0.25)
    history = observer.history
    for epoch, own in ((second, history.steps <= 24), (third, history.steps > 24)):
        for name in ("sigma", "r", "rho_momentum"):
            values = history.total(name)[own]
            assert epoch[name] == pytest.approx(values[np.isfinite(values)].mean()), name
        layers = history.layers("r")[own]
        assert epoch["D"] == pytest.approx(np.mean([np.var(row) for row in layers]))
    assert (second["step"], second["val_loss"], second["val_acc"]) == (24, 0.5, 0.25)
    assert second["loss"] == pytest.approx(np.mean([10.0 - step for step in range(24)]))
    assert third["loss"] == pytest.approx(np.mean([10.0 - step for step in range(24, 48)]))
    assert third["val_acc"] is None
    assert observer.epochs == [pytest.approx(empty, nan_ok=True), second, third]
    third["loss"] = 0.0
    assert observer.epochs[2]["loss"] != 0.0
    resumed = Observer(net, opt, 1)
    resumed.load_state_dict(observer.state_dict())
    assert resumed.epochs[1:] == observer.epochs[1:]
    assert resumed.epoch_end()["epoch"] == 4


@pytest.mark.parametrize(("name", "value", "error"), [("val_loss", "0.3", TypeError),
                                                      ("val_acc", torch.ones(2), ValueError)])  # fmt: skip
def test_bad_validation_values(name, value, error):
    observer = Observer(None, adamw(model().parameters()))
    with pytest.raises(error, match=f"{name} must be"):
        observer.epoch_end(**{name: value})
    assert observer.epochs == []


def test_summary():
    net = model()
    opt = adamw(net.parameters())
    observer = Observer(net, opt, 2, ema_steps=10, track=("rho",))
    assert observer.summary() == {"n_steps": 0, "n_readings": 0, "optimizer": "AdamW"}
    run(net, opt, observer, 12)
    opt.zero_grad()
    for _ in range(3):
        opt.step()
    summary, total = observer.summary(), observer.reading.total
    assert (summary["n_steps"], summary["n_readings"], summary["optimizer"]) == (15, 5, "AdamW")
    history = observer.history
    for name in ("sigma", "r", "rho_momentum"):
        values = history.total(name)
        assert summary[f"{name}_mean"] == pytest.approx(values[np.isfinite(values)].mean())
        assert summary[f"{name}_final"] == getattr(total, name)
    assert summary["D_final"] == observer.reading.dispersion
    assert summary["D_mean"] == pytest.approx(np.mean([np.var(row) for row in history.layers("r")]))
    assert summary["rho_final"] == total.rho
    assert "distance_final" not in summary
    assert summary["loss_mean"] == pytest.approx(np.mean([10.0 - step for step in range(12)]))
    assert summary["loss_final"] == -1.0
    assert summary["eq_frac_final"] == observer.reading.equilibrium_fraction()
    assert (summary["skipped"], summary["skipped_no_gradients"]) == (1, 1)
    assert all(isinstance(value, (int, float, str)) for value in summary.values())


def test_summary_of_sgd_says_what_it_does_not_know():
    net = model()
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    observer = Observer(net, opt, 1)
    train(net, opt, 3)
    summary = observer.summary()
    assert summary["sigma_final"] > 0
    assert all(math.isnan(summary[key]) for key in ("r_mean", "D_mean", "D_final", "eq_frac_final"))
    assert "loss_mean" not in summary


@pytest.mark.parametrize("kind", ["adamw", "thermo"])
def test_files_carry_readings_and_losses(tmp_path, kind):
    net = model()
    opt = adamw(net.parameters()) if kind == "adamw" else ThermoAdamW(net.parameters(), measure_every=1)
    observer = Observer(net, opt, 1, ema_steps=1)
    train(net, opt, 1)
    observer.export_jsonl(tmp_path / "bare.jsonl")
    assert json.loads((tmp_path / "bare.jsonl").read_text())["loss"] is None
    run(net, opt, observer, 24, first=1)
    observer.export_jsonl(tmp_path / "run.jsonl")
    observer.export_csv(tmp_path / "run.csv")
    records = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == observer.history.steps.tolist()
    assert [r["loss"] for r in records[1:]] == [11.0 - r["step"] for r in records[1:]]
    assert records[0]["loss"] is None
    with (tmp_path / "run.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "scope", *QUANTITIES]
    assert float(rows[-2]["sigma"]) == observer.history.total("sigma")[-1]


def test_readings_that_go_to_sinks_carry_the_last_loss_known():
    got = []

    class Sink:
        def write(self, reading):
            got.append((reading.step, reading.loss))

    net = model()
    opt = adamw(net.parameters())
    observer = Observer(net, opt, 1, ema_steps=1, sinks=[Sink()])
    run(net, opt, observer, 3)
    assert got == [(1, None), (2, 10.0), (3, 9.0)]  # written when the step ends, before its loss is known
    assert observer.history.losses.tolist() == [10.0, 9.0, 8.0]


def test_losses_of_a_history():
    history = History()
    for step in (2, 4, 6):
        history.append(replace(reading_of([1.0]), step=step))
    assert np.isnan(history.losses).all()
    assert history.last_step == 6
    history.put_losses(np.array([3, 4, 5]), np.array([0.3, 0.4, 0.5]))
    assert history.losses == pytest.approx([np.nan, 0.4, 0.5], nan_ok=True)
    assert [record["loss"] for record in history.records()] == [None, 0.4, 0.5]
    assert History().last_step == 0


def test_dashboard(tmp_path):
    pytest.importorskip("matplotlib")
    net = model()
    opt = adamw(net.parameters())
    observer = Observer(net, opt, 1, ema_steps=1)
    run(net, opt, observer, 8)
    observer.epoch_end(val_loss=2.0)
    figure = observer.plot_dashboard(save_path=tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 10_000
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert lines["validation"].get_xydata().tolist() == [[8.0, 2.0]]
    assert any(line.get_ydata().tolist() == [10.0 - s for s in range(8)] for line in figure.axes[0].lines)


def test_show_needs_a_window(monkeypatch, tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    net = model()
    opt = adamw(net.parameters())
    observer = Observer(net, opt, 1, ema_steps=1)
    run(net, opt, observer, 3)
    matplotlib.use("agg")
    with pytest.raises(RuntimeError, match="show must be False with matplotlib's backend 'agg'"):
        observer.plot_dashboard(save_path=tmp_path / "run.png", show=True)
    assert not (tmp_path / "run.png").exists()

    from matplotlib.backend_bases import FigureManagerBase
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    shown = []

    class Manager(FigureManagerBase):
        def show(self):
            shown.append(self.canvas.figure)

        @classmethod
        def start_main_loop(cls):
            shown.append("loop")

    class Canvas(FigureCanvasAgg):
        manager_class = Manager

    backend = types.ModuleType("window_for_tests")
    backend.FigureCanvas, backend.FigureManager = Canvas, Manager
    monkeypatch.setitem(sys.modules, "window_for_tests", backend)
    matplotlib.use("module://window_for_tests")
    try:
        figure = observer.plot_dashboard(show=True)
    finally:
        matplotlib.use("agg")
    assert shown == [figure, "loop"]


@pytest.mark.parametrize("call", ["plot_dashboard", "export_csv", "export_jsonl"])
def test_an_empty_history_says_train_first(call, tmp_path):
    net = model()
    opt = adamw(net.parameters())
    observer = Observer(net, opt, 3)
    for _ in range(7):
        opt.step()
    with pytest.raises(
        ValueError, match=r"history is empty after 7 steps .* one in 3 .*no_gradients: 2.*train first"
    ):
        getattr(observer, call)(tmp_path / "file")
    assert not (tmp_path / "file").exists()


# ---------------------------------------------------------------- layers


def test_what_is_known_of_the_layers():
    net = torch.nn.ModuleDict(
        {
            "odd": torch.nn.Embedding(5, 4),
            "stem": torch.nn.Conv1d(3, 4, 2),
            "b": torch.nn.LayerNorm(4),
        }
    )
    net["stem"].weight.requires_grad_(False)
    stranger = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    opt = adamw([*net.parameters(), stranger])
    observer = Observer(net, opt)
    assert observer.layer_types == {
        "odd.weight": "embedding",
        "stem.weight": "convolution",
        "stem.bias": "convolution",
        "b.weight": "norm",
        "b.bias": "norm",
        "group0.5": "other",
    }
    assert observer.frozen == {"stem.weight"}
    assert observer.start_norms["group0.5"] == pytest.approx(25.0)
    assert observer.start_norms["b.weight"] == pytest.approx(4.0)
    assert observer.start_norms["b.bias"] == 0.0
    assert observer.model is net
    with torch.no_grad():
        stranger.mul_(2)
    opt.add_param_group({"params": [torch.nn.Parameter(torch.tensor([1j]))]})
    assert observer.start_norms["group0.5"] == pytest.approx(25.0)
    assert observer.start_norms["group1.0"] == pytest.approx(1.0)
    assert list(observer.start_norms) == [*observer.layer_types]


def test_layers_of_a_thermoadamw_keep_its_names():
    net = model()
    opt = ThermoAdamW([(f"own.{name}", p) for name, p in net.named_parameters()], measure_every=1)
    observer = Observer(net, opt)
    train(net, opt, 2)
    assert tuple(observer.layer_types) == tuple(observer.start_norms) == observer.reading.names
    assert set(observer.layer_types.values()) <= {"mlp", "head", "other"}


def test_meta_parameters_have_no_start():
    p = torch.nn.Parameter(torch.empty(3, device="meta"))
    observer = Observer(None, adamw([p]))
    assert math.isnan(observer.start_norms["group0.0"])


# ---------------------------------------------------------------- bad input of the issue


@pytest.mark.parametrize("kind", ["adamw", "sgd", "thermo"])
def test_no_gradients_at_all(kind):
    net = model()
    make = {
        "adamw": adamw,
        "sgd": lambda params: torch.optim.SGD(params, lr=0.1),
        "thermo": lambda params: ThermoAdamW(params, measure_every=1),
    }[kind]
    opt = make(net.parameters())
    observer = Observer(net, opt, 1)
    for _ in range(4):
        opt.step()
        assert observer.step() is None
    assert observer.reading is None
    assert observer.skipped["no_gradients"] == 4
    name = type(opt).__name__
    assert observer.summary() == {
        "n_steps": 4, "n_readings": 0, "optimizer": name, "skipped_no_gradients": 4
    }  # fmt: skip


def test_a_frozen_backbone_that_the_optimizer_does_not_hold():
    net = model()
    opt = adamw(net[2].parameters())
    observer = Observer(net, opt, 1)
    train(net, opt, 2)
    assert observer.reading.names == ("2.weight", "2.bias")


def test_tied_parameters_are_one_layer():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(7, 4)
            self.head = torch.nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight

    net = Tied()
    opt = adamw(net.parameters())
    observer = Observer(net, opt, 1)
    net.head(net.embed(torch.arange(7))).square().mean().backward()
    opt.step()
    assert observer.reading.names == ("embed.weight",)
    assert observer.reading.total.numel == 28
    assert list(observer.layer_types) == ["embed.weight"]


def test_log_every_is_the_third_argument():
    net = model()
    opt = adamw(net.parameters())
    observer = Observer(net, opt, 4)
    assert observer.measure_every == 4
    train(net, opt, 7)
    assert observer.reading.step == 4
    assert Observer(net, opt).measure_every == 10
