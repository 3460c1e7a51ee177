"""Pictures of a run; matplotlib is loaded when the first one is drawn."""

from thermoopt.plots.actions import as_action, caption, plot_actions
from thermoopt.plots.comparison import ComparedRun, plot_comparison
from thermoopt.plots.dashboard import LossCurve, plot_dashboard
from thermoopt.plots.entropy_split import plot_entropy_split
from thermoopt.plots.layer_maps import plot_layer_maps
from thermoopt.plots.panels import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    blank,
    decades,
    finish,
    frame,
    headroom,
    legend,
    words,
)
from thermoopt.plots.window import check_display, show_figure

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "PURPLE",
    "RED",
    "SKY",
    "ComparedRun",
    "LossCurve",
    "as_action",
    "blank",
    "caption",
    "check_display",
    "decades",
    "finish",
    "frame",
    "headroom",
    "legend",
    "plot_actions",
    "plot_comparison",
    "plot_dashboard",
    "plot_entropy_split",
    "plot_layer_maps",
    "show_figure",
    "words",
]
