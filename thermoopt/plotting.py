"""Pictures of a run (extra ``viz``): what training did, on one page."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "PURPLE",
    "RED",
    "Array",
    "HistoryLike",
    "LossCurve",
    "blank",
    "decades",
    "frame",
    "gaps",
    "layer_band",
    "legend",
    "plot_dashboard",
    "smooth",
]

Array = NDArray[np.float64]

# Okabe and Ito's palette: told apart under every common colour blindness and in grey.
BLUE, ORANGE, GREEN, RED, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
GREY = "#666666"
# N1/d of Gaussian gradients, the mean of |x| for x ~ N(0, 1).
_GAUSSIAN = math.sqrt(2 / math.pi)
# More rows than this and the heat map names groups of layers instead of layers.
_MAX_LABELS = 32
# Largest fold away from r = 1 that the colours resolve; beyond it they saturate (the bar has arrows).
_MAX_FOLD = 8.0


class HistoryLike(Protocol):
    """What a plot reads from a run: the columns of :class:`thermoopt.history.History`."""

    @property
    def steps(self) -> NDArray[Any]:
        """Steps of the readings, ``[n]``."""

    @property
    def layer_steps(self) -> NDArray[Any]:
        """Steps of the layers' readings, ``[m]``."""

    @property
    def layer_names(self) -> Sequence[str]:
        """Names of the layers, in the order of the model."""

    def total(self, name: str) -> NDArray[Any]:
        """One quantity of all parameters together, ``[n]``."""

    def layers(self, name: str) -> NDArray[Any]:
        """One quantity of every layer, ``[m, n_layers]``."""


@dataclass
class LossCurve:
    """Losses of a run, and the loss to compare them with.

    Attributes:
        train_steps, train: steps and losses of the training batches.
        valid_steps, valid: steps and losses on validation data.
        unigram: entropy of the data without context, drawn as a line; None draws none.
        unit: of the losses.
    """

    train_steps: list[int] = field(default_factory=list)
    train: list[float] = field(default_factory=list)
    valid_steps: list[int] = field(default_factory=list)
    valid: list[float] = field(default_factory=list)
    unigram: float | None = None
    unit: str = "nats/byte"


def plot_dashboard(
    history: HistoryLike,
    losses: LossCurve | None = None,
    *,
    path: str | Path | None = None,
    title: str | None = None,
) -> Figure:
    """Draw the thermodynamics of a run: six panels, 1600 x 1240 pixels.

    Loss, entropy production and its parts, ``r`` of every layer over depth and steps, the balance of
    weight decay, gaussianity, and the sizes of the steps. Undefined values are gaps. Nothing of
    matplotlib's global state is touched, and no display is needed.

    Args:
        history: an optimizer's ``history``, or anything with the same columns.
        losses: drawn in the first panel; without them the panel says that there are none.
        path: where to write the picture; the suffix chooses the format (.png, .pdf, .svg).
        title: a line above the panels.

    Returns:
        The figure, for more drawing.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: the history holds fewer than two readings.
    """
    n = len(history.steps)
    if n < 2:
        raise ValueError(f"a dashboard needs a history of at least 2 readings, got {n}; train for more steps")
    figure = blank(12.4)
    grid = figure.add_gridspec(3, 6, height_ratios=[1.0, 1.45, 0.9])
    _loss(figure.add_subplot(grid[0, :3]), losses)
    _sigma(figure.add_subplot(grid[0, 3:]), history)
    _heat(figure.add_subplot(grid[1, :]), history)
    _balance(figure.add_subplot(grid[2, :2]), history)
    _gaussianity(figure.add_subplot(grid[2, 2:4]), history)
    _pace(figure.add_subplot(grid[2, 4:]), history)
    if title is not None:
        figure.suptitle(title, fontsize=15, fontweight="bold")
    if path is not None:
        figure.savefig(path)
    return figure


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


def _loss(ax: Axes, losses: LossCurve | None) -> None:
    if losses is None or not (losses.train or losses.valid):
        frame(ax, "Loss")
        ax.text(0.5, 0.5, "no losses given", ha="center", va="center", transform=ax.transAxes, color=GREY)
        return
    frame(ax, f"Loss  [{losses.unit}]")
    if losses.train:
        train = np.asarray(losses.train, dtype=float)
        ax.plot(losses.train_steps, train, color=BLUE, alpha=0.25, lw=0.8)
        width = max(1, len(train) // 50)
        x = np.asarray(losses.train_steps, dtype=float)
        label = f"training (mean of {width})" if width > 1 else "training"
        ax.plot(smooth(x, width), smooth(train, width), color=BLUE, lw=2, label=label)
    if losses.valid:
        ax.plot(losses.valid_steps, losses.valid, "o-", color=RED, ms=4, lw=1.5, label="validation")
        last = losses.valid[-1]
        ax.annotate(
            f"{last:.3f}",
            (losses.valid_steps[-1], last),
            (-4, 12),
            textcoords="offset points",
            ha="right",
            color=RED,
            fontweight="bold",
        )
    if losses.unigram is not None:
        label = f"no context (unigram entropy {losses.unigram:.2f})"
        ax.axhline(losses.unigram, color=GREY, ls="--", lw=1.2, label=label)
    # the first steps fall from ln 256; let them leave the picture, so that the rest can be read
    settled = [*losses.train[len(losses.train) // 20 :], *losses.valid, losses.unigram or 0.0]
    top = max((y for y in settled if math.isfinite(y)), default=0.0)
    low, high = ax.get_ylim()
    if top > low:
        ax.set_ylim(low, min(high, low + 1.15 * (top - low)))
    legend(ax)


def _sigma(ax: Axes, history: HistoryLike) -> None:
    """Stack the parts: what lies above 0 is produced, what lies below is taken back."""
    frame(ax, "Entropy production σ and its parts  [loss units per step]")
    steps = history.steps
    work, noise = gaps(history.total("d_eS")), gaps(history.total("d_iS_noise"))
    momentum, decay = gaps(history.total("d_iS_momentum")), gaps(history.total("d_iS_wd"))
    up, down = np.zeros(len(steps)), np.zeros(len(steps))
    for part, color, label in (
        (work, GREEN, "productive (d_eS)"),
        (noise, ORANGE, "heat: gradient noise"),
        (momentum, PURPLE, "heat: overshooting momentum"),
        (decay, GREY, "heat: weight decay"),
    ):
        above, below = np.maximum(part, 0), np.minimum(part, 0)
        ax.fill_between(steps, up, up + above, color=color, alpha=0.75, lw=0, label=label)
        ax.fill_between(steps, down, down + below, color=color, alpha=0.75, lw=0)
        up, down = up + np.nan_to_num(above), down + np.nan_to_num(below)
    sigma = gaps(history.total("sigma"))
    ax.plot(steps, sigma, color="black", lw=1.8, label="σ")
    ax.axhline(0, color="black", lw=0.6)
    # where the first readings dwarf the rest of the run, they leave the picture
    settled = slice(len(steps) // 20, None)
    if up.max() < 2 * up[settled].max():
        settled = slice(None)
    ax.set_ylim(*_limits(down[settled], up[settled], sigma[settled]))
    legend(ax, ncols=2, loc="upper right")


def _heat(ax: Axes, history: HistoryLike) -> None:
    from matplotlib.colors import LogNorm, Normalize

    frame(ax, "r of each layer: update energy against thermal equilibrium", grid=False)
    order, names = _by_depth(list(history.layer_names))
    r = np.asarray(history.layers("r"), dtype=float)
    steps = np.asarray(history.layer_steps, dtype=float)
    if len(steps) < 2 or not names:
        ax.text(0.5, 0.5, "no layer readings", ha="center", va="center", transform=ax.transAxes, color=GREY)
        return
    r = np.ma.masked_invalid(np.where(r > 0, r, np.nan)[:, order].T)
    spread = np.abs(np.log(r.compressed()))
    fold = min(_MAX_FOLD, max(1.5, math.exp(float(np.quantile(spread, 0.98))))) if spread.size else 2.0
    norm: Normalize = LogNorm(1 / fold, fold)
    ax.set_facecolor("#BBBBBB")  # undefined
    mesh = ax.pcolormesh(
        _edges(steps), np.arange(len(names) + 1), r, norm=norm, cmap="RdBu_r", rasterized=True
    )
    _label_depth(ax, names)
    ax.invert_yaxis()
    colorbar = ax.figure.colorbar(mesh, ax=ax, extend="both", pad=0.01, aspect=22)
    ticks = [t for t in (1 / 8, 1 / 4, 1 / 2, 1 / 1.5, 1, 1.5, 2, 4, 8) if 1 / fold <= t <= fold]
    if fold > 2:
        ticks = [t for t in ticks if t not in (1.5, 1 / 1.5)]
    colorbar.set_ticks(ticks, labels=[f"{t:.2g}" for t in ticks])
    colorbar.minorticks_off()
    colorbar.ax.tick_params(labelsize=11)
    colorbar.set_label("intermittent  ←  r  →  coherent drift", fontsize=12)


def _balance(ax: Axes, history: HistoryLike) -> None:
    frame(ax, "Weight-decay balance  R_wd")
    layers = np.asarray(history.layers("wd_balance"), dtype=float)
    total = gaps(history.total("wd_balance"))
    # a negative balance means that the gradient itself shrinks the weights: no decay could balance it
    layer_band(ax, history.layer_steps, np.where(layers > 0, layers, np.nan))
    total = np.where(total > 0, total, np.nan)
    ax.plot(history.steps, total, color=BLUE, lw=2, label="all parameters")
    ax.axhline(1, color="black", ls="--", lw=1.2, label="1: norm stays, above: shrinks")
    if np.isfinite(total).any() or np.isfinite(layers).any():
        ax.set_yscale("log")
        decades(ax)
    else:
        ax.text(0.5, 0.3, "undefined: no weight decay", ha="center", transform=ax.transAxes, color=GREY)
    legend(ax)


def _gaussianity(ax: Axes, history: HistoryLike) -> None:
    frame(ax, "Gaussianity of gradients  N1/d")
    layer_band(ax, history.layer_steps, np.asarray(history.layers("gaussianity"), dtype=float))
    ax.plot(history.steps, gaps(history.total("gaussianity")), color=BLUE, lw=2, label="all parameters")
    ax.axhline(_GAUSSIAN, color="black", ls="--", lw=1.2, label=f"{_GAUSSIAN:.3f}: Gaussian")
    ax.set_ylim(bottom=0)
    legend(ax, loc="lower right")


def _pace(ax: Axes, history: HistoryLike) -> None:
    frame(ax, "Size of a step")
    steps = history.steps
    for name, color, style, label in (
        ("lr_eff", ORANGE, "--", "learning rate"),
        ("angular_step", BLUE, "-", "angular step  η‖U‖/‖θ‖"),
    ):
        y = gaps(history.total(name))
        ax.plot(steps, np.where(y > 0, y, np.nan), style, color=color, lw=2, label=label)
    ax.set_yscale("log")
    decades(ax)
    legend(ax, loc="lower center")


def gaps(values: NDArray[Any]) -> Array:
    """Return a float copy with NaN, which lines leave out, wherever a value is not finite."""
    values = np.array(values, dtype=float)
    values[~np.isfinite(values)] = np.nan
    return values


def frame(ax: Axes, title: str, grid: bool = True) -> None:
    """Give a panel its title and the look that all panels share."""
    ax.set_title(title, loc="left", fontsize=13, fontweight="bold")
    ax.set_xlabel("step", fontsize=11)
    ax.tick_params(labelsize=11)
    ax.spines[["top", "right"]].set_visible(False)
    ax.margins(x=0.01)
    if grid:
        ax.grid(alpha=0.25, lw=0.6)


def legend(ax: Axes, **options: Any) -> None:
    """Add a legend in the look that all panels share."""
    ax.legend(framealpha=0.85, edgecolor="none", fontsize=11, **options)


def layer_band(ax: Axes, steps: NDArray[Any], values: Array, color: str = BLUE) -> None:
    """Draw where the middle 80 % of the layers lie."""
    if len(steps) < 2 or not values.size:
        return
    low, high = (np.full(len(values), np.nan) for _ in range(2))
    for i, row in enumerate(values):
        row = row[np.isfinite(row)]
        if row.size:
            low[i], high[i] = np.quantile(row, (0.1, 0.9))
    ax.fill_between(steps, low, high, color=color, alpha=0.18, lw=0, label="80 % of layers")


def decades(ax: Axes) -> None:
    """Label a log axis at 1, 2 and 5 when it spans little, at powers of ten otherwise."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = ax.get_ylim()
    short = high / low < 300
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if short else (1,), numticks=12))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _by_depth(names: list[str]) -> tuple[list[int], list[str]]:
    """Order layers by the model's own order, layers of one block kept together."""
    first: dict[str, int] = {}
    for i, name in enumerate(names):
        first.setdefault(_block(name), i)
    order = sorted(range(len(names)), key=lambda i: (first[_block(names[i])], i))
    return order, [names[i] for i in order]


def _block(name: str) -> str:
    """``blocks.3.attn.qkv.weight`` lies in ``blocks.3``, ``head.weight`` in itself."""
    found = re.match(r".*?\d+(?=\.|$)", name)
    return found[0] if found else name


def _label_depth(ax: Axes, names: list[str]) -> None:
    blocks = [_block(name) for name in names]
    starts = [i for i in range(len(names)) if i == 0 or blocks[i] != blocks[i - 1]]
    ends = [*starts[1:], len(names)]
    for start, end in zip(starts, ends, strict=True):
        if start and (end - start > 1 or start - starts[starts.index(start) - 1] > 1):
            ax.axhline(start, color="black", lw=0.8)
    if len(names) <= _MAX_LABELS:
        ax.set_yticks(np.arange(len(names)) + 0.5, [name.removesuffix(".weight") for name in names])
        ax.tick_params(axis="y", labelsize=9, length=0)
        return
    every = math.ceil(len(starts) / _MAX_LABELS)
    spans = list(zip(starts, ends, strict=True))[::every]
    ax.set_yticks([(a + b) / 2 for a, b in spans], [blocks[a].removesuffix(".weight") for a, _ in spans])
    ax.tick_params(axis="y", labelsize=10, length=0)


def _edges(steps: Array) -> Array:
    middle = (steps[1:] + steps[:-1]) / 2
    return np.concatenate([[1.5 * steps[0] - 0.5 * steps[1]], middle, [1.5 * steps[-1] - 0.5 * steps[-2]]])


def smooth(x: Array, width: int) -> Array:
    """Return running means of ``width`` values, ``[len(x) - width + 1]``."""
    return np.convolve(x, np.full(width, 1 / width), mode="valid")


def _limits(*series: Array) -> tuple[float, float]:
    """Limits that hold every finite value, 0 included, with room for a legend above."""
    joined = np.concatenate([np.asarray(s, dtype=float) for s in series])
    joined = joined[np.isfinite(joined)]
    low, high = min(0.0, joined.min(initial=0.0)), max(0.0, joined.max(initial=0.0))
    room = (high - low) or 1.0
    return low - 0.05 * room, high + 0.35 * room
