"""Heat maps of layers: colours about 1, undefined in grey, labels by depth."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from tests.support.pictures import FakeHistory, png_size
from thermoopt.plots.dashboard import plot_layer_maps
from thermoopt.plots.layer_maps import MAX_FOLD, WIDE_FOLD, map_height


class Columns(FakeHistory):
    """A history whose layers hold what is given, by quantity: ``[n, n_layers]``."""

    def __init__(self, **values: np.ndarray) -> None:
        n, layers = next(iter(values.values())).shape
        super().__init__(n, [f"blocks.{i}.weight" for i in range(layers)])
        self.values = values

    def layers(self, name: str) -> np.ndarray:
        return self.values.get(name, np.full((len(self.steps), len(self.layer_names)), np.nan))


def mesh_of(figure, words: str):
    (ax,) = (ax for ax in figure.axes if words in ax.get_title(loc="left"))
    return ax, ax.collections[0]


def test_writes_two_maps(tmp_path):
    path = tmp_path / "maps.png"
    history = FakeHistory(40)
    figure = plot_layer_maps(history, path=path, title="a run")
    width, height = png_size(path)
    assert width == 1600
    assert height == round(100 * (2 * map_height(5) + 0.5))
    assert {"r", "wd_balance"} <= history.asked
    assert figure.get_suptitle() == "a run"


def test_every_cell_is_the_value_of_its_layer_and_step():
    rng = np.random.default_rng(0)
    r, balance = np.exp(rng.normal(size=(2, 30, 6)))
    figure = plot_layer_maps(Columns(r=r, wd_balance=balance))
    for words, values in (("r of each layer", r), ("R_wd of each layer", balance)):
        ax, mesh = mesh_of(figure, words)
        np.testing.assert_array_equal(np.ma.getdata(mesh.get_array()).reshape(6, 30), values.T)
        assert [t.get_text() for t in ax.get_yticklabels()] == [f"blocks.{i}" for i in range(6)]
        assert mesh.norm(1.0) == pytest.approx(0.5)


def test_long_names_leave_room_for_the_map(tmp_path):
    names = ["a" * 200 + f".{i}.weight" for i in range(3)]
    figure = plot_layer_maps(FakeHistory(40, names), path=tmp_path / "maps.png")  # without a warning
    ax, _ = mesh_of(figure, "r of each layer")
    assert ax.get_position().width > 0.5
    assert [t.get_text() for t in ax.get_yticklabels()] == ["…" + "a" * 37 + f".{i}" for i in range(3)]


def test_infinite_is_off_the_scale_and_undefined_is_grey():
    balance = np.full((10, 3), 0.5)
    balance[:, 1] = np.inf
    balance[:, 2] = [np.nan, 0.0, -1.0, -np.inf, *[np.nan] * 6]
    figure = plot_layer_maps(Columns(r=np.ones((10, 3)), wd_balance=balance))
    figure.draw_without_rendering()
    ax, mesh = mesh_of(figure, "R_wd of each layer")
    cells = mesh.get_array().reshape(3, 10)
    assert not np.ma.getmaskarray(cells)[:2].any()
    assert np.ma.getmaskarray(cells)[2].all()
    np.testing.assert_array_equal(mesh.to_rgba(cells[1:2, :1])[0, 0], mesh.cmap.get_over())
    assert mesh.norm.vmax < 10  # an infinity does not widen the scale
    assert mesh.to_rgba(cells[2:3, :1])[0, 0, 3] == 0  # transparent: the grey panel shows
    assert ax.get_facecolor()[:3] == pytest.approx((0xBB / 255,) * 3)


@pytest.mark.parametrize(("quantity", "words", "limit"), [
    ("r", "r of each layer", MAX_FOLD),
    ("wd_balance", "R_wd of each layer", WIDE_FOLD),
])  # fmt: skip
@pytest.mark.parametrize("fold", [1.3, 3.0, 1e6])
def test_the_scale_is_as_wide_as_the_values_within_bounds(quantity, words, limit, fold):
    values = np.full((20, 4), fold)
    values[::2] = 1 / fold
    figure = plot_layer_maps(Columns(**{quantity: values}))
    figure.draw_without_rendering()
    _, mesh = mesh_of(figure, words)
    assert mesh.norm.vmax == pytest.approx(min(limit, max(1.5, fold)))
    assert mesh.norm.vmin * mesh.norm.vmax == pytest.approx(1)
    ticks = [t.get_text() for t in mesh.colorbar.ax.get_yticklabels()]
    assert "1" in ticks
    assert 3 <= len(ticks) <= 7
    assert not any("e" in tick for tick in ticks)


def test_first_readings_do_not_set_the_scale():
    r = np.full((60, 3), 1.2)
    r[:2] = 1e-3  # a moment that has not built up
    _, mesh = mesh_of(plot_layer_maps(Columns(r=r)), "r of each layer")
    assert mesh.norm.vmax == pytest.approx(1.5)


def test_maps_without_anything_say_so():
    nothing = plot_layer_maps(Columns(r=np.full((5, 3), np.nan)))
    said = [text.get_text() for ax in nothing.axes for text in ax.texts]
    assert said == ["undefined in every reading"] * 2
    empty = FakeHistory(5, [])
    assert [t.get_text() for ax in plot_layer_maps(empty).axes for t in ax.texts] == ["no layer readings"] * 2


def test_too_short_a_history_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a map of layers needs a history of at least 2 readings, got 1"):
        plot_layer_maps(FakeHistory(1), path=tmp_path / "d.png")
    assert not list(tmp_path.iterdir())
