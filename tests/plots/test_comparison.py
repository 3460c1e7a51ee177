"""The picture of runs beside each other: what it draws, what it refuses, what it leaves alone."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from tests.support.pictures import FakeHistory, losses, png_size, titles
from thermoopt.controllers import Action
from thermoopt.plots.comparison import ComparedRun, plot_comparison


class GroupedHistory(FakeHistory):
    def group(self, index: int, name: str) -> np.ndarray:
        return self._values(name, (len(self.steps),)) * (index + 1)


def action(step: int, new: float, *, group: str = "all", kind: str = "lr", **evidence: tuple) -> Action:
    known = evidence or {"r": (1.4, 0.1), "r_setpoint": (1.0, 0.0)}
    return Action(step, "Thermostat(diffusion)", group, kind, new / 2, new, known, "drift")


def three() -> list[ComparedRun]:
    actions = [action(50, 0.1), action(120, 0.3), action(200, 0.5, kind="wd")]
    return [
        ComparedRun("AdamW low", GroupedHistory(30), losses()),
        ComparedRun("AdamW high", GroupedHistory(30), losses()),
        ComparedRun("autotuned", GroupedHistory(30), losses(), actions),
    ]


def panel(figure, words: str):
    (ax,) = (ax for ax in figure.axes if words in ax.get_title(loc="left"))
    return ax


def labels(ax) -> list[str]:
    return ax.get_legend_handles_labels()[1]


def test_writes_a_picture_with_four_panels(tmp_path):
    path = tmp_path / "c.png"
    figure = plot_comparison(three(), path=path, title="three ways")
    assert png_size(path) == (1600, 1150)
    for words in ("Loss", "Effective learning rate", "r of all parameters", "Actions"):
        assert words in titles(figure)
    for words in ("Loss", "Effective", "r of all"):
        shown = " ".join(labels(panel(figure, words)))
        assert all(name in shown for name in ("AdamW low", "AdamW high", "autotuned")), words


def test_losses_rates_and_actions_are_drawn_where_they_were():
    runs = three()
    figure = plot_comparison(runs)
    curves = {line.get_label(): line for line in panel(figure, "Loss").lines}
    valid = curves["autotuned: 2.100"]
    assert list(valid.get_xdata()) == [100, 200]
    assert list(valid.get_ydata()) == [3.0, 2.1]
    rate = next(line for line in panel(figure, "Effective").lines if line.get_label() == "autotuned")
    assert list(rate.get_ydata()) == list(runs[2].history.total("lr_eff"))
    marks = next(x for x in panel(figure, "Actions").lines if x.get_label() == "autotuned: 2 actions")
    assert list(marks.get_xdata()) == [50, 120]
    assert list(marks.get_ydata()) == [0.1, 0.3]
    assert "weight decay moved: 1" in labels(panel(figure, "Actions"))


def test_the_best_and_the_emphasised_run_stay_in_the_picture():
    runs = three()
    runs[1].losses.train[150:] = [50.0] * 50  # one that diverged
    low, high = panel(plot_comparison(runs), "Loss").get_ylim()
    assert low < 2.1
    assert high > 3.0


def test_groups_have_a_curve_each():
    run = ComparedRun(
        "grouped", GroupedHistory(20), losses(), [action(30, 0.2, group="decay")], ["decay", "rest"]
    )
    figure = plot_comparison([run])
    assert {"grouped, decay", "grouped, rest"} <= set(labels(panel(figure, "Effective")))
    assert labels(panel(figure, "Actions")) == ["grouped, decay: 1 actions"]


def test_runs_are_told_apart_without_colour():
    lines = panel(plot_comparison(three()), "Effective").lines
    assert len({line.get_linestyle() for line in lines}) == 3


def test_no_action_is_said():
    figure = plot_comparison([ComparedRun("plain", GroupedHistory(9), losses())])
    assert [t.get_text() for t in panel(figure, "Actions").texts] == ["no action on the rate"]


@pytest.mark.parametrize("fill", [np.nan, 0.0, np.inf, -1.0])
def test_without_one_usable_number_it_still_draws(fill):
    acted = [action(10, 0.1, loss=(2.0, math.nan)), action(20, 0.2, r=(1.0, math.nan))]
    run = ComparedRun("odd", GroupedHistory(5, fill=fill), losses(), acted)
    plot_comparison([run]).draw_without_rendering()


def test_bad_runs_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="runs must hold 1 to 8 runs, got 0"):
        plot_comparison([], path=tmp_path / "c.png")
    with pytest.raises(ValueError, match="runs must hold 1 to 8 runs, got 9"):
        plot_comparison(three()[:1] * 9, path=tmp_path / "c.png")
    short = ComparedRun("short", GroupedHistory(1), losses())
    with pytest.raises(ValueError, match="at least 2 readings, got 1 in 'short'"):
        plot_comparison([*three(), short], path=tmp_path / "c.png")
    assert not list(tmp_path.iterdir())


def test_leaves_the_global_backend_alone(monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    plot_comparison(three())
    assert "matplotlib.pyplot" not in sys.modules


def test_reads_the_librarys_own_history():
    from thermoopt.account.history import History

    assert all(hasattr(History, name) for name in ("steps", "layer_steps", "total", "layers", "group"))
