"""Where a controlled rate stands, as plain data: wanted, held, and what equilibrium says of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Standing", "by_rate", "in_words"]

SAME = 0.011
"""Relative difference up to which two rates count as the same: a thermostat leaves 1 % alone, and records
round."""

SIGNS = {"bound": "bound: ", "lowered": "rate lowered", "cooling": "the cooling has left", "waits": "waits: "}
"""States by the words that a thermostat gives as the reason."""


@dataclass(frozen=True)
class Standing:
    r"""Where one rate stands at one reading: whether the loop follows its set-point, and if not, why.

    Attributes:
        rate: name of the rate: ``"all"``, or a group's name; for layers that joined during the run followed
            by ``@`` and the step of joining.
        step: optimizer step of the reading.
        wanted: rate that the law asks for, in its own metric (:mod:`thermoopt.controllers.setpoints`); NaN
            if it asks for nothing.
        held: rate held during that step.
        given: rate that the parameters get: the rate held, times the factors of the other controllers of its
            chain (warm-up and cooling); NaN where those differ between groups.
        phi: entropy production of the updates, :math:`(\eta/4)\|U\|^2`.
        phi_star: its value in equilibrium, :math:`(\eta/4)\,d\,n_0(t)`. :math:`r = \phi/\phi^*` judges a rate
            independently of the law that set it.
        why: the law's reason, or why the rate held is not the rate wanted.
    """

    rate: str
    step: int
    wanted: float
    held: float
    given: float
    phi: float
    phi_star: float
    why: str

    @property
    def state(self) -> str:
        """``"follows"``, or why not.

        That is ``"no signal"``, ``"bound"``, ``"lowered"`` (reverse gear), ``"cooling"``, ``"waits"`` or
        ``"on its way"``.
        """
        if not math.isfinite(self.wanted):
            return "no signal"
        for word, sign in SIGNS.items():
            if sign in self.why:
                return word
        far = abs(self.wanted - self.held) > SAME * self.held
        return "on its way" if far or "on its way" in self.why else "follows"  # or restored by the gear

    def to_dict(self) -> dict[str, Any]:
        """Return the standing as plain data for JSON: what is not finite becomes None."""
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Standing:
        """Restore a standing from the result of :meth:`to_dict`."""
        numbers = {
            key: math.nan if saved[key] is None else float(saved[key])
            for key in ("wanted", "held", "given", "phi", "phi_star")
        }
        return cls(rate=str(saved["rate"]), step=int(saved["step"]), why=str(saved["why"]), **numbers)


def by_rate(standings: Iterable[Standing]) -> dict[str, list[Standing]]:
    """Sort standings by the name of their rate, each in the order given."""
    out: dict[str, list[Standing]] = {}
    for standing in standings:
        out.setdefault(standing.rate, []).append(standing)
    return out


def in_words(own: Sequence[Standing]) -> str:
    """Describe in one line whether a rate followed its set-point.

    Args:
        own: the standings of the rate, oldest first, at least one.
    """
    last, states = own[-1], Counter(standing.state for standing in own)
    follows = states.pop("follows", 0)
    others = "".join(f", {state} at {n}" for state, n in states.most_common())
    r = f"; r = φ/φ* = {last.phi / last.phi_star:.2f}" if last.phi_star > 0 else ""
    wanted = f"{last.wanted:.3g}" if math.isfinite(last.wanted) else "nothing"
    return (
        f"wanted {wanted}, held {last.held:.3g}{r}; followed at {follows} of {len(own)} readings{others}; "
        f"last: {last.why}"
    )
