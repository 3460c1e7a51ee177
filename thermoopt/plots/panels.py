"""Shared by all plots: colours, the style of a panel, the columns of a history (extra ``viz``)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from thermoopt.account import HistoryLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "BINS",
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "PURPLE",
    "RED",
    "SKY",
    "Array",
    "binned",
    "blank",
    "check_length",
    "decades",
    "finish",
    "frame",
    "gaps",
    "headroom",
    "layer_band",
    "legend",
    "line",
    "words",
]

Array = NDArray[np.float64]

BINS = 500
"""Parts into which a long series is divided: the pixels of half a page, two per part."""

# Okabe and Ito's palette: distinguishable with every common colour blindness and in grey.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
GREY = "#666666"


def blank(height: float) -> Figure:
    """Return an empty figure, 1600 pixels wide, without touching matplotlib's global state.

    Args:
        height: in hundreds of pixels.

    Raises:
        ImportError: matplotlib is missing; the message says what to install.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as e:
        raise ImportError("plots need matplotlib: pip install thermoopt[viz]") from e
    figure = Figure(figsize=(16, height), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    return figure


def check_length(history: HistoryLike, what: str) -> None:
    """Raise unless a history holds two readings, the fewest for lines and maps.

    Args:
        history: to draw.
        what: the picture, with its article.

    Raises:
        ValueError: saying how many readings there are and what to do.
    """
    n = len(history.steps)
    if n < 2:
        raise ValueError(f"{what} needs a history of at least 2 readings, got {n}; train for more steps")


def finish(figure: Figure, title: str | None, path: str | Path | None) -> Figure:
    """Set a figure's title, write it if a path is given, and return it."""
    if title is not None:
        figure.suptitle(title, fontsize=15, fontweight="bold")
    if path is not None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        engine = figure.get_layout_engine()
        if engine is not None:
            engine.execute(figure)
        figure.set_layout_engine("none")  # it is laid out; savefig would draw it all once more to see where
        if Path(path).suffix == ".png" and isinstance(figure.canvas, FigureCanvasAgg):
            figure.canvas.print_png(path)
        else:
            figure.savefig(path)
        figure.set_layout_engine(engine)
    return figure


def gaps(values: NDArray[Any]) -> Array:
    """Return a float copy with NaN, which lines skip, in place of every non-finite value."""
    values = np.array(values, dtype=float)
    values[~np.isfinite(values)] = np.nan
    return values


def frame(ax: Axes, title: str, grid: bool = True) -> None:
    """Set a panel's title and the common style; long numbers of steps are short, so that they stand apart."""
    ax.set_title(title, loc="left", fontsize=13, fontweight="bold")
    ax.set_xlabel("step", fontsize=11)
    ax.xaxis.set_major_formatter(short_steps)
    ax.tick_params(labelsize=11)
    ax.spines[["top", "right"]].set_visible(False)
    ax.margins(x=0.01)
    if grid:
        ax.grid(alpha=0.25, lw=0.6)


def short_steps(step: float, place: object = None) -> str:
    """Label a step: ``8000``, ``12k``, ``1.5M``."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(step) >= max(size, 1e4):
            return f"{step / size:g}{unit}"
    return f"{step:g}"


def legend(ax: Axes, **options: Any) -> None:
    """Add a legend in the common style; it takes no part in the layout: long names would squeeze panels."""
    ax.legend(framealpha=0.85, edgecolor="none", fontsize=11, **options).set_in_layout(False)


def binned(steps: NDArray[Any], values: Array, bins: int = BINS) -> tuple[Array, Array, Array, Array]:
    """Reduce a series to what a panel has pixels for: step, least, mean and largest value of each part.

    Parts are equally wide in steps; what is not finite is left out, and a part without anything is NaN.

    Args:
        steps: ``[n]``, ascending.
        values: ``[n]``.
        bins: parts.

    Returns:
        Four arrays of as many parts as hold a reading.
    """
    x, y = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    width = (x[-1] - x[0]) / bins or 1.0
    part = np.minimum(((x - x[0]) / width).astype(np.int64), bins - 1)
    starts = np.flatnonzero(np.diff(part, prepend=-1))
    known = np.isfinite(y)
    count = np.add.reduceat(known.astype(float), starts)
    none = count == 0

    def reduced(of: np.ufunc, fill: float) -> Array:
        return np.where(none, np.nan, of.reduceat(np.where(known, y, fill), starts))

    mean = np.divide(reduced(np.add, 0.0), count, out=np.full(len(starts), np.nan), where=~none)
    middle = np.add.reduceat(x, starts) / np.diff(np.append(starts, len(x)))
    return middle, reduced(np.minimum, np.inf), mean, reduced(np.maximum, -np.inf)


def line(ax: Axes, steps: NDArray[Any], values: Array, *style: str, **options: Any) -> None:
    """Draw a series: as it is where a panel has the pixels, else means with a band from least to largest.

    One reading that stands out is a spike of the band, however many readings there are.

    Args:
        ax: the panel.
        steps, values: ``[n]``.
        style: of the line, in matplotlib's short form.
        options: as matplotlib's ``plot`` takes them.
    """
    if len(steps) <= 2 * BINS:
        ax.plot(steps, values, *style, **options)
        return
    x, low, mean, high = binned(steps, values)
    (drawn,) = ax.plot(x, mean, *style, **options)
    ax.fill_between(x, low, high, color=drawn.get_color(), alpha=0.3, lw=0.5)


def layer_band(ax: Axes, steps: NDArray[Any], values: Array, color: str = BLUE) -> None:
    """Draw the range of the middle 80 % of the layers."""
    if len(steps) < 2 or not values.size:
        return
    low, high = (np.full(len(values), np.nan) for _ in range(2))
    for i, row in enumerate(values):
        row = row[np.isfinite(row)]
        if row.size:
            low[i], high[i] = np.quantile(row, (0.1, 0.9))
    ax.fill_between(steps, low, high, color=color, alpha=0.18, lw=0, label="80 % of layers")


def decades(ax: Axes, axes: str = "y") -> None:
    """Label log axes at 1, 2 and 5 if they span little, else at powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for name in axes:
        axis = getattr(ax, f"{name}axis")
        low, high = getattr(ax, f"get_{name}lim")()
        short = high / low < 300
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if short else (1,), numticks=12))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def headroom(ax: Axes, share: float) -> None:
    """Leave a fraction of a panel free at the top for a legend."""
    low, high = ax.get_ylim()
    more = share / (1 - share)
    log = ax.get_yscale() == "log"
    ax.set_ylim(low, high * (high / low) ** more if log else high + more * (high - low))


def words(ax: Axes, text: str) -> None:
    """Write in the middle of an empty panel why it is empty."""
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    ax.text(0.5, 0.5, text, ha="center", va="center", transform=ax.transAxes, fontsize=12, bbox=box)
