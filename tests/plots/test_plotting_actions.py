"""The picture of controllers' actions: where the scales were, and why they moved."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from tests.support.pictures import FakeHistory, png_size, titles
from thermoopt.controllers import Action
from thermoopt.plots.actions import MAX_CAPTIONS, as_action, caption
from thermoopt.plots.dashboard import plot_actions


def move(step: int, old: float, new: float, group: str = "all", kind: str = "lr", **evidence) -> Action:
    return Action(
        step, "Thermostat(diffusion)", group, kind, old, new, evidence or {"r": (1.4, 0.1)}, "drift"
    )


ACTIONS = [
    move(10, 1.0, 2.0, "a"),
    move(30, 1.0, 0.5, "b"),
    move(50, 2.0, 3.0, "a"),
    move(40, 1.0, 0.25, "a", "wd"),
]


def panel(figure, words: str):
    (ax,) = (ax for ax in figure.axes if words in ax.get_title(loc="left"))
    return ax


def reasons(figure) -> list[str]:
    (text,) = panel(figure, "Why").texts
    return text.get_text().splitlines()


def test_scales_are_drawn_where_they_were(tmp_path):
    path = tmp_path / "actions.png"
    figure = plot_actions(ACTIONS, FakeHistory(8), path=path, title="a run")
    assert png_size(path)[0] == 1600
    lr = panel(figure, "Learning-rate scale")
    lines = {line.get_label(): line for line in lr.lines}
    assert list(lines["a: 2 actions"].get_xdata()) == [10, 50]
    assert list(lines["a: 2 actions"].get_ydata()) == [2.0, 3.0]
    assert list(lines["b: 1 action"].get_xdata()) == [30]
    path_of_a = next(line for line in lr.lines if len(line.get_xdata()) == 4)
    assert list(path_of_a.get_xdata()) == [0, 10, 50, 80]  # to the last reading
    assert list(path_of_a.get_ydata()) == [1.0, 2.0, 3.0, 3.0]
    assert path_of_a.get_drawstyle() == "steps-post"
    marked = {t.get_text(): t.xy for t in lr.texts}
    assert marked == {"1": (10, 2.0), "2": (30, 0.5), "4": (50, 3.0)}
    assert panel(figure, "Weight-decay scale").texts[0].xy == (40, 0.25)


def test_effective_rates_stand_below_where_a_history_is_given():
    history = FakeHistory(8)
    figure = plot_actions(ACTIONS, history)
    rates = panel(figure, "Effective rates")
    lines = {line.get_label(): line for line in rates.lines}
    np.testing.assert_array_equal(lines["learning rate"].get_ydata(), history.total("lr_eff"))
    np.testing.assert_array_equal(lines["weight decay"].get_ydata(), history.total("wd_eff"))
    assert "Effective rates" not in titles(plot_actions(ACTIONS))


@pytest.mark.parametrize("fill", [np.nan, 0.0])
def test_rates_that_are_not_known_draw(fill):
    plot_actions(ACTIONS, FakeHistory(8, fill=fill)).draw_without_rendering()


def test_reasons_are_numbered_in_the_order_of_the_run():
    figure = plot_actions(reversed(ACTIONS))
    told = reasons(figure)
    assert [line.split()[:3] for line in told] == [
        [str(i), "step", str(s)] for i, s in enumerate((10, 30, 40, 50), 1)
    ]
    assert panel(figure, "Why").get_title(loc="left") == "Why: all of them"


def test_a_long_name_leaves_room_for_the_panels(tmp_path):
    figure = plot_actions([move(10, 1.0, 2.0, "a" * 250)], path=tmp_path / "a.png")  # without a warning
    assert panel(figure, "Learning-rate scale").get_position().width > 0.8


def test_of_many_moves_the_largest_are_told():
    sizes = np.random.default_rng(0).permutation(np.linspace(1.01, 3.0, 40))
    actions = [move(10 * i + 10, 1.0, float(f)) for i, f in enumerate(sizes)]
    figure = plot_actions(actions)
    largest = sorted(10 * int(i) + 10 for i in np.argsort(sizes)[-MAX_CAPTIONS:])
    assert [int(line.split()[2]) for line in reasons(figure)] == largest
    assert panel(figure, "Why").get_title(loc="left") == f"Why: the {MAX_CAPTIONS} largest of 40"
    assert len(panel(figure, "Learning-rate").texts) == MAX_CAPTIONS


def test_a_scale_of_zero_is_drawn_on_a_linear_axis():
    figure = plot_actions([move(10, 1.0, 0.0), move(20, 0.0, 0.5)])
    figure.draw_without_rendering()
    assert panel(figure, "Learning-rate").get_yscale() == "linear"
    assert panel(plot_actions(ACTIONS), "Learning-rate").get_yscale() == "log"


def test_actions_come_back_from_json():
    action = move(3, 1.0, 2.0, r=(1.5, 0.1), distance=(2.0, math.nan))
    saved = {**action.to_dict(), "evidence": {"r": [1.5, 0.1], "distance": [2.0, None]}}
    back = as_action(json.loads(json.dumps(saved)))
    assert back.to_dict().keys() == action.to_dict().keys()
    assert (back.step, back.old, back.new, back.evidence["r"]) == (3, 1.0, 2.0, (1.5, 0.1))
    assert math.isnan(back.evidence["distance"][1])
    assert as_action(action) is action
    plot_actions([saved])


def test_a_caption_gives_old_new_reason_and_evidence():
    action = move(133, 0.2, 0.3, r=(1.007, 0.02), distance=(1.25, math.nan))
    want = "step 133  Thermostat(diffusion): rate of all 0.2 → 0.3, drift  (r 1.01 ± 0.02, distance 1.25)"
    assert caption(action) == want
    assert "decay of b 1 → 0.5" in caption(move(1, 1.0, 0.5, "b", "wd"))


def test_no_actions_are_refused():
    with pytest.raises(ValueError, match="actions must be a controller's log"):
        plot_actions([])


@pytest.mark.parametrize(
    "wrong", [{"step": 1}, {}, 3, {**ACTIONS[0].to_dict(), "evidence": {"r": 1.0}}], ids=str
)
def test_what_is_no_action_is_named(tmp_path, wrong):
    with pytest.raises(ValueError, match=r"actions must be a controller's actions, .*, got .*"):
        plot_actions([ACTIONS[0], wrong], path=tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
