"""The dashboard: what it draws, what it refuses, what it leaves alone."""

from __future__ import annotations

import builtins
import sys

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from tests.support.pictures import FakeHistory, losses, png_size, titles
from thermoopt.plots import dashboard as plotting
from thermoopt.plots.dashboard import LossCurve, plot_dashboard
from thermoopt.plots.panels import blank, finish, frame, short_steps


def test_writes_a_picture_with_all_panels(tmp_path):
    path = tmp_path / "d.png"
    history = FakeHistory(60)
    figure = plot_dashboard(history, losses(), path=path, title="a run")
    width, height = png_size(path)
    assert width == 1600
    assert 1100 <= height <= 1300
    assert path.stat().st_size > 50_000
    for word in ("Loss", "Entropy production", "r of each layer", "balance", "Gaussianity", "Size of a step"):
        assert word in titles(figure)
    assert {"sigma", "d_eS", "d_iS_noise", "d_iS_momentum", "d_iS_wd", "r", "wd_balance"} <= history.asked
    assert {"gaussianity", "lr_eff", "angular_step"} <= history.asked


@pytest.mark.parametrize("layout", [None, "constrained"])
def test_a_figure_is_written_whatever_lays_it_out_and_keeps_its_layout(tmp_path, layout):
    figure = Figure(layout=layout)
    figure.subplots()
    engine = figure.get_layout_engine()
    finish(figure, None, tmp_path / "f.png")
    assert png_size(tmp_path / "f.png") == (640, 480)
    assert figure.get_layout_engine() is engine


def test_reads_the_librarys_own_history():
    from thermoopt.account.history import History

    assert all(hasattr(History, name) for name in ("steps", "layer_steps", "layer_names", "total", "layers"))


def test_colours_are_centred_on_equilibrium():
    figure = plot_dashboard(FakeHistory(30))
    (heat,) = (ax for ax in figure.axes if "r of each layer" in ax.get_title(loc="left"))
    norm = heat.collections[0].norm
    assert norm(1.0) == pytest.approx(0.5)
    assert norm.vmin * norm.vmax == pytest.approx(1)


def test_labels_of_long_runs_stand_apart():
    assert [short_steps(s) for s in (0, 0.2, 8000, 10_000, 12_500, 980_000, 1_000_000, 1_500_000)] == [
        "0", "0.2", "8000", "10k", "12.5k", "980k", "1M", "1.5M",
    ]  # fmt: skip
    ax = blank(4).subplots()
    frame(ax, "")
    ax.plot([0, 20_000], [0, 1])
    ax.figure.canvas.draw()
    assert {"0", "5000", "10k", "20k"} <= {label.get_text() for label in ax.get_xticklabels()}


def test_nan_leaves_gaps():
    history = FakeHistory(40)
    whole = history._values

    def holed(name: str, shape: tuple[int, ...]) -> np.ndarray:
        values = whole(name, shape)
        values[10:20] = np.nan
        return values

    history._values = holed
    figure = plot_dashboard(history, losses())
    figure.draw_without_rendering()
    (heat,) = (ax for ax in figure.axes if "r of each layer" in ax.get_title(loc="left"))
    shown = np.ma.getmaskarray(heat.collections[0].get_array()).reshape(5, 40)
    assert shown[:, 10:20].all()
    assert not shown[:, :10].any()


@pytest.mark.parametrize("fill", [np.nan, 0.0, np.inf, -1.0])
def test_a_history_without_one_usable_number_still_draws(fill):
    plot_dashboard(FakeHistory(5, fill=fill)).draw_without_rendering()


def test_panels_without_a_number_say_why():
    figure = plot_dashboard(FakeHistory(5, fill=np.nan))
    said = {ax.get_title(loc="left"): [t.get_text() for t in ax.texts] for ax in figure.axes}
    assert said["Loss"] == ["no losses given"]
    assert said["Decay balance R_wd (> 1: norm shrinks)"] == ["undefined: no weight decay"]
    assert said["Gaussianity of gradients  N1/d"] == ["undefined: it needs Adam's moments"]
    (parts,) = (ax for ax in figure.axes if "Entropy production" in ax.get_title(loc="left"))
    assert [t.get_text() for t in parts.get_legend().get_texts()] == ["σ"]


@pytest.mark.parametrize("value", [np.nan, 0.0, 1e9])
def test_losses_of_any_kind_draw(value):
    plot_dashboard(FakeHistory(3), LossCurve([1, 2], [value] * 2, [2], [value])).draw_without_rendering()


@pytest.mark.parametrize("n", [0, 1])
def test_too_short_a_history_is_refused(tmp_path, n):
    with pytest.raises(ValueError, match=f"at least 2 readings, got {n}"):
        plot_dashboard(FakeHistory(n), path=tmp_path / "d.png")
    assert not list(tmp_path.iterdir())


def test_many_layers_are_named_by_block():
    names = [f"blocks.{i}.{part}.weight" for i in range(12) for part in ("a", "b", "c", "d")]
    figure = plot_dashboard(FakeHistory(5, names))
    (heat,) = (ax for ax in figure.axes if "r of each layer" in ax.get_title(loc="left"))
    assert [t.get_text() for t in heat.get_yticklabels()] == [f"blocks.{i}" for i in range(12)]


def test_layers_of_a_block_lie_together():
    # two groups, as weight decay on matrices only gives: depth counts, not the group
    names = ["wte", "h.0.w", "h.1.w", "head", "h.0.norm", "h.1.norm"]
    figure = plot_dashboard(FakeHistory(5, names))
    (heat,) = (ax for ax in figure.axes if "r of each layer" in ax.get_title(loc="left"))
    shown = [t.get_text() for t in heat.get_yticklabels()]
    assert shown == ["wte", "h.0.w", "h.0.norm", "h.1.w", "h.1.norm", "head"]


def test_leaves_the_global_backend_alone(monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    plot_dashboard(FakeHistory(5))
    assert "matplotlib.pyplot" not in sys.modules


def test_missing_matplotlib_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"pip install thermoopt\[viz\]"):
        plotting.plot_dashboard(FakeHistory(5))
