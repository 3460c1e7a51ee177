"""The picture of the entropy split: stacks, shares, heat over work."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import PolyCollection

pytest.importorskip("matplotlib")

from tests.support.pictures import FakeHistory, png_size
from thermoopt.plots.dashboard import plot_entropy_split
from thermoopt.plots.panels import GREEN, GREY, ORANGE, PURPLE

PARTS = {"d_eS": GREEN, "d_iS_noise": ORANGE, "d_iS_momentum": PURPLE, "d_iS_wd": GREY}


class Split(FakeHistory):
    """Parts that add up, of layers and in total, momentum's negative."""

    def __init__(self, n: int = 20) -> None:
        super().__init__(n)
        rng = np.random.default_rng(1)
        self.parts = {name: np.exp(rng.normal(size=(n, 5))) for name in PARTS}
        self.parts["d_iS_momentum"] *= -1
        self.parts["sigma"] = sum(self.parts.values())
        self.parts["R_ie"] = np.exp(rng.normal(size=(n, 5)))

    def layers(self, name: str) -> np.ndarray:
        return self.parts[name]

    def total(self, name: str) -> np.ndarray:
        return self.parts[name].sum(axis=1)


def panel(figure, words: str):
    (ax,) = (ax for ax in figure.axes if words in ax.get_title(loc="left"))
    return ax


def test_writes_a_picture_with_its_panels(tmp_path):
    path = tmp_path / "split.png"
    figure = plot_entropy_split(Split(), path=path, title="a run")
    assert png_size(path)[0] == 1600
    for words in ("Entropy production", "Share of each part", "R_ie of each layer"):
        panel(figure, words)


def test_the_stack_tops_out_at_what_is_produced():
    history = Split()
    ax = panel(plot_entropy_split(history), "Entropy production")
    tops = [band.get_paths()[0].vertices[:, 1].max() for band in ax.collections[::2]]  # above 0
    bottoms = [band.get_paths()[0].vertices[:, 1].min() for band in ax.collections[1::2]]
    produced = sum(history.total(name) for name in PARTS if name != "d_iS_momentum")
    assert max(tops) == pytest.approx(produced.max())
    assert min(bottoms) == pytest.approx(history.total("d_iS_momentum").min())
    (sigma,) = (line for line in ax.lines if line.get_label() == "σ")
    np.testing.assert_allclose(sigma.get_ydata(), produced + history.total("d_iS_momentum"))


def test_shares_are_those_of_the_second_half_by_magnitude():
    history = Split()
    history.parts["d_eS"][12] = np.nan  # one undefined reading is left out
    ax = panel(plot_entropy_split(history), "Share of each part")
    late = {name: np.abs(history.parts[name][10:]) for name in PARTS}
    sizes = {name: np.nanmean(values, axis=0) for name, values in late.items()}
    whole = sum(sizes.values())
    ends = np.zeros(len(whole))
    drawn = [c for c in ax.collections if isinstance(c, PolyCollection)]
    for bars, name in zip(drawn, PARTS, strict=True):
        extents = np.array([bar.get_extents().intervalx for bar in bars.get_paths()])
        np.testing.assert_allclose(extents[:, 0], ends, atol=1e-12, err_msg=name)
        np.testing.assert_allclose(extents[:, 1] - extents[:, 0], sizes[name] / whole, err_msg=name)
        ends = extents[:, 1]
    np.testing.assert_allclose(ends, 1)


def test_undefined_heat_over_work_is_a_gap():
    history = Split()
    history.parts["R_ie"][5:9, 2] = np.nan
    mesh = panel(plot_entropy_split(history), "R_ie of each layer").collections[0]
    gaps = np.ma.getmaskarray(mesh.get_array()).reshape(5, 20)
    want = np.zeros((5, 20), dtype=bool)
    want[2, 5:9] = True
    np.testing.assert_array_equal(gaps, want)


def test_rows_of_bars_and_of_the_map_are_the_same_layers():
    figure = plot_entropy_split(Split())
    bars, heat = panel(figure, "Share of each part"), panel(figure, "R_ie of each layer")
    assert bars.get_ylim() == heat.get_ylim()
    assert list(bars.get_yticks()) == list(heat.get_yticks())


@pytest.mark.parametrize("fill", [np.nan, 0.0])
def test_an_optimizer_without_moments_has_no_split_and_the_picture_says_so(fill):
    figure = plot_entropy_split(FakeHistory(5, fill=fill))
    figure.draw_without_rendering()
    said = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert said == ["no split: it needs Adam's moments", "undefined in every reading"]


def test_a_run_without_layers_says_so():
    figure = plot_entropy_split(FakeHistory(5, []))
    assert [t.get_text() for ax in figure.axes for t in ax.texts] == ["no layer readings"] * 2


def test_too_short_a_history_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match="a picture of the split needs a history of at least 2 readings, got 0"
    ):
        plot_entropy_split(FakeHistory(0), path=tmp_path / "d.png")
    assert not list(tmp_path.iterdir())
