"""What a diagnosis is made of: one thing that is wrong with a run, how certain that is, and what to do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["CONFIDENCES", "Finding", "in_few", "two_digits"]

CONFIDENCES = ("HIGH", "MEDIUM", "LOW")
"""From certain to uncertain, as error rates on healthy runs: at most 1 in 100 has any HIGH finding, at most
1 in 20 a MEDIUM one (measured by ``benchmarks/validation``). LOW is information and has no error rate."""


@dataclass(frozen=True)
class Finding:
    """One thing that a diagnosis found in a run.

    Attributes:
        kind: a key of :data:`thermoopt.diagnosis.kinds.KINDS`.
        confidence: one of :data:`CONFIDENCES`.
        message: what was measured and what it is compared with.
        advice: what to change, and by how much.
        layers: names of the layers that show it; empty if it concerns the whole run.
        layer_type: the type of those layers if they share one, else None.
        measure: name of the quantity that decided.
        effect: value of that quantity.
        null: its value in a run with nothing wrong.
        interval: ``effect`` plus and minus two standard errors; NaN for a count or a setting.
        readings: number of readings behind the finding.
        follows_from: kind of the finding that explains this one and made it LOW, else None.
    """

    kind: str
    confidence: str
    message: str
    advice: str
    measure: str
    effect: float
    null: float
    interval: tuple[float, float] = (math.nan, math.nan)
    readings: int = 0
    layers: tuple[str, ...] = ()
    layer_type: str | None = None
    follows_from: str | None = None

    def __str__(self) -> str:
        return f"[{self.confidence}] {self.kind.replace('_', ' ')}: {self.message} {self.advice}"

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as plain data for strict JSON: NaN and infinity become None."""
        data = {**asdict(self), "layers": list(self.layers), "interval": list(self.interval)}
        for key in ("effect", "null"):
            data[key] = _plain(data[key])
        data["interval"] = [_plain(x) for x in data["interval"]]
        return data


def two_digits(x: float) -> str:
    """Round to two digits, without an exponent up to a million."""
    return f"{float(f'{x:.2g}'):g}"


def in_few(layers: Sequence[str]) -> str:
    """Name up to three layers and count the others."""
    return ", ".join(layers[:3]) + (f" and {len(layers) - 3} more" if len(layers) > 3 else "")


def _plain(x: float) -> float | None:
    return float(x) if math.isfinite(x) else None
