"""Where a norm goes under weight decay: the forecast of a layer, and what to say of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from thermoopt.diagnosis.finding import two_digits
from thermoopt.diagnosis.layer_rates import LayerRates
from thermoopt.physics import FREE_FALL, NU, Balance, repaired_decay

__all__ = ["CollapseAlarm", "Forecast", "advice", "afterwards", "count"]

Array = NDArray[np.float64]

MOST = 1000.0
"""Largest factor that is advised as one, as far as the barostat goes; beyond it the advice is no decay."""


@dataclass(frozen=True)
class Forecast:
    """Where decay and source take the norm of a layer, at the rates that hold now.

    Attributes:
        layer, step: whose, and the step of the reading it stands on.
        norm_now, norm_start: norm in the average of that reading, and at the start, [th].
        norm_forecast: norm at the horizon, [th].
        low, high: its interval, from the scatter of the source over the last 10 readings: about 95 % in
            pure noise; up to infinity from fewer than three readings.
        horizon: steps ahead, as many as the source is trusted for.
        R_wd: decay over the decay that would keep the norm; infinite where no source holds against it.
        free_fall: 1 - 1/R_wd.
        weight_decay: the group's, now.
        repaired_decay: weight decay that would hold half of the norm at the start; 0 where no source does.
    """

    layer: str
    step: int
    norm_now: float
    norm_start: float
    norm_forecast: float
    low: float
    high: float
    horizon: float
    R_wd: float
    free_fall: float
    weight_decay: float
    repaired_decay: float

    @classmethod
    def of(
        cls, balance: Balance, i: int, *, step: int, low: Array, high: Array, rates: LayerRates, ahead: Array
    ) -> Forecast:
        """Form that of the i-th layer.

        Args:
            balance: of all layers, at ``rates``.
            i: which.
            step: of the reading.
            low, high: norms between which the forecast lies.
            rates: of all layers, now.
            ahead: steps looked ahead.
        """
        held2, strength = NU**2 * float(balance.reference2[i]), float(rates.lr[i] * rates.gain[i])
        repaired = repaired_decay(float(balance.source[i]), strength, held2) if held2 > 0 else math.nan
        return cls(
            layer=balance.names[i],
            step=step,
            norm_now=float(np.sqrt(balance.norm2[i])),
            norm_start=float(np.sqrt(balance.reference2[i])),
            norm_forecast=float(np.sqrt(balance.forecast2[i])),
            low=float(low[i]),
            high=float(high[i]),
            horizon=float(ahead[i]),
            R_wd=float(balance.excess[i]),
            free_fall=float(balance.free_fall[i]),
            weight_decay=float(rates.wd[i]),
            repaired_decay=repaired,
        )

    @property
    def confidence(self) -> str:
        """``"HIGH"``: all of the interval is below half of the start and decay dominates; or ``"MEDIUM"``."""
        sure = self.high < NU * self.norm_start and self.free_fall > FREE_FALL
        return "HIGH" if sure else "MEDIUM"


@dataclass(frozen=True)
class CollapseAlarm:
    """A layer that began to collapse.

    Attributes:
        step: optimizer step of the reading that showed it.
        layer, layer_type: which.
        forecast: as it was then, with its confidence.
    """

    step: int
    layer: str
    layer_type: str
    forecast: Forecast


def count(layer_type: str, n: int) -> str:
    """So many layers of a type, in words."""
    return f"{n} {layer_type} layer" + "s" * (n != 1)


def advice(layer_type: str, forecasts: Sequence[Forecast]) -> str:
    """What to do about collapsing layers of one type; the one that can hold least of its decay decides."""
    worst = min(forecasts, key=lambda f: f.repaired_decay / f.weight_decay)
    level = "HIGH" if any(f.confidence == "HIGH" for f in forecasts) else "MEDIUM"
    wd, repaired = worst.weight_decay, worst.repaired_decay
    if wd <= MOST * repaired:
        lower = f"lower weight_decay by a factor {two_digits(wd / repaired)} ({wd:g} → {repaired:.2g})"
        takes = f"takes {two_digits(worst.R_wd)} times what the gradients give back"
    else:
        lower = f"set weight_decay to 0 (now {wd:g}) until gradients hold against it"
        takes = "finds next to nothing that the gradients give back"
    now, ahead, low, high = (
        norm / worst.norm_start for norm in (worst.norm_now, worst.norm_forecast, worst.low, worst.high)
    )
    interval = f" ({low:.2f} to {high:.2f})" if math.isfinite(high) else ""
    return (
        f"[{level}] Weight decay collapses {count(layer_type, len(forecasts))}: {lower}. In {worst.layer} it "
        f"{takes}; its norm, {now:.2f} of that at the start, would be {ahead:.2f}{interval} of it in "
        f"{worst.horizon:g} steps."
    )


def afterwards(layer_type: str, alarms: Sequence[CollapseAlarm]) -> str:
    """What is left to say of alarms of one step that no longer hold."""
    worst = min(alarms, key=lambda a: a.forecast.repaired_decay)
    return (
        f"[LOW] At step {worst.step} {count(layer_type, len(alarms))}, as {worst.layer}, began to collapse "
        f"({worst.forecast.confidence} then, at weight_decay {worst.forecast.weight_decay:g}); it does "
        "not show now."
    )
