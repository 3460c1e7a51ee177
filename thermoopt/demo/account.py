"""What the demo says: tables and sentences from readings, losses and actions."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from thermoopt.account import HistoryLike
from thermoopt.account.reading import Reading
from thermoopt.demo.ways import Way
from thermoopt.inspection import Table

__all__ = ["account", "compared", "figures", "tail"]

TAIL = 50
"""Training losses in the mean at the end: the loss of one batch varies by 10 % and more."""

FURTHEST = 5
"""Layers in the table of those furthest from equilibrium."""


def tail(losses: Sequence[float]) -> float:
    """Mean of the last losses, at least one of them."""
    last = losses[-TAIL:]
    return sum(last) / len(last)


def figures(way: Way, steps: int) -> dict[str, Any]:
    """Return the figures that ways are compared by, as plain data; None for what is not finite.

    ``lr`` is the one given, ``loss`` the mean of the last training losses and the last validation loss,
    ``r`` and ``lr_eff`` (mean over all parameters) those of the first reading from half the run on and of
    the last one, ``actions`` their number.

    Args:
        way: a trained one.
        steps: length of the run.
    """
    history = way.optimizer.history
    r, lr_eff = history.total("r"), history.total("lr_eff")
    mid = int(np.searchsorted(history.steps, steps / 2))
    return {
        "lr": way.lr,
        "loss": {"train": _plain(tail(way.losses.train)), "valid": _plain(way.losses.valid[-1])},
        "r": {"mid": _at(r, mid), "end": _at(r, -1)},
        "lr_eff": {"mid": _at(lr_eff, mid), "end": _at(lr_eff, -1)},
        "actions": len(way.actions),
        "backend": way.optimizer.backend,
    }


def compared(ways: Sequence[Way], steps: int) -> list[str]:
    """Lay out the figures of the ways as a table, one row per way."""
    head = ("way", "lr given", "training loss", "validation loss", "r mid-run", "r end", "lr_eff mid-run")
    rows = [(*head, "actions")]
    for way in ways:
        f = figures(way, steps)
        rows.append(
            (
                way.name,
                "none" if way.lr is None else f"{way.lr:g}",
                _number(f["loss"]["train"], ".3f"),
                _number(f["loss"]["valid"], ".3f"),
                _number(f["r"]["mid"], ".2f"),
                _number(f["r"]["end"], ".2f"),
                _number(f["lr_eff"]["mid"], ".2e"),
                str(f["actions"]),
            )
        )
    return _lines(rows, 0)


def account(way: Way) -> list[str]:
    """Say which layers are furthest from equilibrium and where the entropy of a run went."""
    reading = way.optimizer.reading
    if reading is None:
        return ["no reading was completed: train for more steps"]
    lines = [f"Five layers furthest from equilibrium (r = 1), at step {reading.step}"]
    lines += [*_furthest(reading, FURTHEST), ""]
    lines += _split(way.optimizer.history, way.losses.train[0] - tail(way.losses.train))
    skipped = [f"{count} × {cause}" for cause, count in reading.skipped.items() if count]
    return [*lines, "measurements skipped: " + ", ".join(skipped)] if skipped else lines


def _furthest(reading: Reading, count: int) -> list[str]:
    """Lay out the layers of largest |log r| as a table."""
    total = reading.total.sigma
    layers = {name: x for name, x in reading.layers.items() if x.r > 0 and math.isfinite(x.r)}
    names = sorted(layers, key=lambda name: -abs(math.log(layers[name].r)))[:count]
    head = ("layer", "r", "", "σ", "share of σ", "gaussianity", "R_wd", "angular step")
    rows = [head]
    for name in names:
        x = layers[name]
        word = "coherent drift" if x.r > 1 else "intermittent"
        share = f"{x.sigma / total:+.1%}" if total else "-"
        cells = (f"{x.r:.2f}", word, f"{x.sigma:+.2e}", share)
        balance = "∞" if x.wd_balance == math.inf else f"{x.wd_balance:.2f}"
        rows.append((name, *cells, f"{x.gaussianity:.3f}", balance, f"{x.angular_step:.1e}"))
    return _lines(rows, 0, 2)


def _lines(rows: Sequence[tuple[str, ...]], *left: int) -> list[str]:
    """Lay out a head and rows, as wide as they are."""
    return Table("", rows[0], rows[1:], frozenset(left)).lines(sys.maxsize)[1:]


def _split(history: HistoryLike, fall: float) -> list[str]:
    """Say where the run's entropy production went, summed over its steps."""
    names = ("sigma", "d_eS", "d_iS", "d_iS_noise", "d_iS_momentum", "d_iS_wd")
    sigma, work, heat, noise, momentum, decay = (_integral(history, name) for name in names)
    return [
        f"Entropy production over the run: Σσ = {sigma:+.3g} nats per byte, the first-order descent of each",
        f"step on its own batch; the training loss fell by {fall:.3g}",
        f"  productive work (d_eS)  {work:+9.3g}   fresh gradients agree with the motion of the weights",
        f"  heat (d_iS)             {heat:+9.3g}   the rest, consisting of",
        f"    gradient noise        {noise:+9.3g}   motion that only the step's own batch asks for",
        f"    momentum              {momentum:+9.3g}   motion that fresh gradients oppose: overshooting",
        f"    weight decay          {decay:+9.3g}   work of decay against the gradient",
    ]


def _integral(history: HistoryLike, name: str) -> float:
    """Sum over steps; a reading stands for the steps since the one before it."""
    y = np.nan_to_num(np.asarray(history.total(name), dtype=float))
    return float((y * np.diff(history.steps, prepend=0)).sum())


def _at(series: Any, index: int) -> float | None:
    """Return one value of a series; where it ends before ``index``, its last; None where it is empty."""
    return _plain(float(series[min(index, len(series) - 1)])) if len(series) else None


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
