"""Where a norm is heading under weight decay: the forecast of a layer, and the advice that follows."""

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
"""Largest reduction advised, the same as the barostat's; beyond it the advice is no decay."""


@dataclass(frozen=True)
class Forecast:
    """Where decay and source take the norm of a layer at the present rates.

    Attributes:
        layer, step: name of the layer, and step of the reading behind the forecast.
        norm_now, norm_start: norm averaged as in that reading, and at the start, [th].
        norm_forecast: norm at the horizon, [th].
        low, high: its interval, from the scatter of the source over the last 10 readings: about 95 % in
            pure noise; 0 to infinity with fewer than three readings.
        horizon: steps ahead, as many as the source is trusted for.
        R_wd: decay over the decay that would keep the norm; infinite where there is no positive source.
        free_fall: 1 - 1/R_wd.
        weight_decay: the group's present value.
        repaired_decay: weight decay that would hold half of the initial norm; 0 without a positive source.
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
        """Build the forecast of the i-th layer.

        Args:
            balance: balance of all layers at ``rates``.
            i: index of the layer.
            step: step of the reading.
            low, high: lower and upper norms of the forecast, ``[n]``.
            rates: present rates of all layers.
            ahead: steps to look ahead, ``[n]``.
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
        """``"HIGH"`` if the whole interval is below half of the start and decay rules, else ``"MEDIUM"``."""
        sure = self.high < NU * self.norm_start and self.free_fall > FREE_FALL
        return "HIGH" if sure else "MEDIUM"


@dataclass(frozen=True)
class CollapseAlarm:
    """A layer that began to collapse.

    Attributes:
        step: optimizer step of the reading that showed it.
        layer, layer_type: name and type of the layer.
        forecast: the forecast at that time, with its confidence.
    """

    step: int
    layer: str
    layer_type: str
    forecast: Forecast


def count(layer_type: str, n: int) -> str:
    """Return a number of layers of a type in words."""
    return f"{n} {layer_type} layer" + "s" * (n != 1)


def advice(layer_type: str, forecasts: Sequence[Forecast]) -> str:
    """Return what to do about the collapsing layers of one type, judged by the worst of them."""
    worst = min(forecasts, key=lambda f: f.repaired_decay / f.weight_decay)
    level = "HIGH" if any(f.confidence == "HIGH" for f in forecasts) else "MEDIUM"
    wd, repaired = worst.weight_decay, worst.repaired_decay
    if wd <= MOST * repaired:
        lower = f"lower weight_decay by a factor of {two_digits(wd / repaired)} ({wd:g} → {repaired:.2g})"
        takes = f"removes {two_digits(worst.R_wd)} times as much as gradients restore"
    else:
        lower = f"set weight_decay to 0 (now {wd:g}) until gradients restore the norm"
        takes = "removes weights that gradients hardly restore"
    now, ahead, low, high = (
        norm / worst.norm_start for norm in (worst.norm_now, worst.norm_forecast, worst.low, worst.high)
    )
    interval = f" ({low:.2f} to {high:.2f})" if math.isfinite(high) else ""
    return (
        f"[{level}] Weight decay is collapsing {count(layer_type, len(forecasts))}: {lower}. In "
        f"{worst.layer} decay {takes}; the norm is now at {now:.2f} times its initial value and would be at "
        f"{ahead:.2f}{interval} in {worst.horizon:g} steps."
    )


def afterwards(layer_type: str, alarms: Sequence[CollapseAlarm]) -> str:
    """Return a line about the alarms of one step that no longer hold."""
    worst = min(alarms, key=lambda a: a.forecast.repaired_decay)
    return (
        f"[LOW] At step {worst.step}, {count(layer_type, len(alarms))} ({worst.layer} for example) began to "
        f"collapse ({worst.forecast.confidence} then, at weight_decay {worst.forecast.weight_decay:g}); this "
        "is over."
    )
