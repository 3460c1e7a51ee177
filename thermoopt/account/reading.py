"""A reading: what the steps did, averaged, as plain floats per layer, per group and in total."""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from thermoopt.physics import Term, check_quantity, dispersion, quantities
from thermoopt.physics.travel import Travel

__all__ = ["BAND", "SKIP_CAUSES", "LastReadings", "Quantities", "Reading", "ReadingSink", "seen_by_all"]

Array = NDArray[np.float64]

SKIP_CAUSES = ("nonfinite", "found_inf", "dry", "no_gradients")
"""Why a measured step left every average as it was: a sum was not finite; a GradScaler found an infinity; lr
and all gradients were 0 (a checkpoint library's dry step); no tensor had a gradient."""


BAND = 0.15
"""Distance of r from 1 up to which a layer counts as in equilibrium: thermoclaw's, so that the fraction means
the same. In pure noise r has a standard error of sqrt(2 / (10 d)) at beta1 = 0.9 and ema_steps = 50 (some ten
independent moments an average), half of this band at d = 35 elements: smaller layers leave it by chance."""


@dataclass(frozen=True)
class Quantities:
    """Quantities of one layer, one group or the whole optimizer per step, averaged over ``ema_steps``.

    Formulas and units are in :func:`thermoopt.physics.quantities`. NaN means undefined, never 0.
    """

    sigma: float
    sigma_sgd: float
    d_eS: float
    d_iS: float
    d_iS_noise: float
    d_iS_momentum: float
    d_iS_wd: float
    R_ie: float
    phi: float
    phi_star: float
    r: float
    coherence: float
    energy_ratio: float
    gaussianity: float
    grad_norm: float
    param_norm: float
    update_norm: float
    grad_param_ratio: float
    angular_step: float
    wd_balance: float
    free_fall: float
    norm_forecast: float
    thermal_loss: float
    rho_momentum: float
    rho: float
    distance: float
    lr_eff: float
    wd_eff: float
    numel: int

    @classmethod
    def of(cls, terms: Array) -> Quantities:
        """Form the quantities of one set of extensive terms ``[len(Term)]``."""
        values: dict[str, Any] = {name: value.item() for name, value in quantities(terms).items()}
        return cls(**{**values, "numel": int(values["numel"])})


class _Layers(Mapping[str, Quantities]):
    """Quantities by layer name, formed when asked for."""

    def __init__(self, names: Sequence[str], terms: Array, seen: NDArray[np.bool_]) -> None:
        self._column = {name: i for i, name in enumerate(names) if seen[i]}
        self._terms = terms

    def __getitem__(self, name: str) -> Quantities:
        return Quantities.of(self._terms[:, self._column[name]])

    def __iter__(self) -> Iterator[str]:
        return iter(self._column)

    def __len__(self) -> int:
        return len(self._column)


@dataclass(frozen=True)
class Reading:
    """A reading: what the optimizer did, averaged up to one step.

    Layers that never had a gradient, or have had none for longer than ``ema_steps``, are absent from
    ``layers`` and from all totals.

    Attributes:
        step: the optimizer step, counted from 1 by the optimizer itself.
        names: layer names, in the order of the columns of ``terms``.
        terms: ``[len(Term), n_layers]`` extensive terms (:func:`thermoopt.physics.layer_terms`).
        group_of: ``[n_layers]`` index of each layer's parameter group.
        group_names: a name for each group.
        seen: ``[n_layers]`` whether the layer is one of ``layers``.
        skipped: measured steps that moved nothing, by cause (:data:`SKIP_CAUSES`).
        travel: the sums that a controller needs, in the readings handed to it; else None.
        loss: the last loss reported before it, in readings from an observer; else None.
    """

    step: int
    names: tuple[str, ...]
    terms: Array
    group_of: NDArray[np.int64]
    group_names: tuple[str, ...]
    seen: NDArray[np.bool_]
    skipped: Mapping[str, int]
    travel: Travel | None = None
    loss: float | None = None

    @cached_property
    def group_terms(self) -> Array:
        """Terms added over the layers of each group, ``[len(Term), n_groups]``."""
        n = len(self.group_names)
        place = np.arange(len(Term))[:, None] * n + self.group_of  # bins, filled in the order of the layers
        sums: Array = np.bincount(place.ravel(), self.terms.ravel(), len(Term) * n).astype(np.float64)
        return sums.reshape(len(Term), n)

    @cached_property
    def layers(self) -> Mapping[str, Quantities]:
        """Quantities of each layer, by name."""
        return _Layers(self.names, self.terms, self.seen)

    @cached_property
    def groups(self) -> tuple[Quantities, ...]:
        """Quantities of each parameter group."""
        return tuple(Quantities.of(self.group_terms[:, i]) for i in range(len(self.group_names)))

    @cached_property
    def total(self) -> Quantities:
        """Quantities of all parameters together."""
        return Quantities.of(self.terms.sum(axis=1))

    def layer_array(self, name: str) -> Array:
        """One quantity of all layers, ``[n_layers]``, NaN for layers never measured."""
        check_quantity(name)
        return np.where(self.seen, quantities(self.terms)[name], np.nan)

    @cached_property
    def dispersion(self) -> float:
        """Variance of r over the layers (:func:`dispersion`): how far they differ."""
        return dispersion(self.layer_array("r"))

    def equilibrium_fraction(self, band: float = BAND) -> float:
        """Share of the layers in thermal equilibrium: those with abs(r - 1) <= ``band``.

        Args:
            band: largest distance from 1, at least 0.

        Returns:
            Share of the layers whose r is finite, 0 to 1; NaN if there are none.

        Raises:
            TypeError, ValueError: unless ``band`` is a number >= 0.
        """
        if isinstance(band, bool) or not isinstance(band, (int, float)):
            raise TypeError(f"band must be a number >= 0, got {band!r}")
        if not (math.isfinite(band) and band >= 0):
            raise ValueError(f"band must be a number >= 0, got {band!r}")
        r = self.layer_array("r")
        r = r[np.isfinite(r)]
        return float(np.mean(np.abs(r - 1) <= band)) if r.size else math.nan


class ReadingSink(Protocol):
    """What a ledger hands recorded readings to."""

    def write(self, reading: Reading) -> None:
        """Take one."""


class LastReadings:
    """The readings that were recorded last, handed over at steps that do not depend on when they arrived.

    Args:
        limit: how many are kept.
    """

    def __init__(self, limit: int) -> None:
        self._recorded: deque[tuple[int, Callable[[], Reading | None]]] = deque(maxlen=limit)
        self._unseen: deque[tuple[int, Callable[[], Reading | None]]] = deque(maxlen=limit)

    @property
    def unseen(self) -> bool:
        """Whether there is one that :meth:`fresh` did not return yet."""
        return bool(self._unseen)

    def add(self, step: int, form: Callable[[], Reading | None]) -> None:
        """Keep one more, which ``form`` returns when it is asked for."""
        self._recorded.append((step, form))
        self._unseen.append((step, form))

    def resume(self, reading: Reading) -> None:
        """Keep the reading of a checkpoint that the controller had not seen."""
        self._unseen.append((reading.step, lambda: reading))

    def clear(self) -> None:
        """Forget them."""
        self._recorded.clear()
        self._unseen.clear()

    def late(self, steps: int, lag: int) -> Reading | None:
        """Return the last one that is ``lag`` steps old or older after so many steps."""
        return next((form() for step, form in reversed(self._recorded) if step + lag <= steps), None)

    def fresh(self, steps: int, lag: int) -> Reading | None:
        """Return the last unseen one that is as old; it and those before count as seen."""
        form = None
        while self._unseen and self._unseen[0][0] + lag <= steps:
            _, form = self._unseen.popleft()
        return None if form is None else form()


def seen_by_all(reading: Reading, group: Any = None) -> Reading:
    """Return a reading on which all ranks decide alike.

    Args:
        reading: the same on all ranks but for rounding and for its loss, which is of each rank's own data.
        group: a ``torch.distributed`` group: all of its ranks get the first one's reading, and all must call
            this; None leaves the loss out where there are several ranks.
    """
    if group is not None:
        return _of_first_rank(reading, group)
    if reading.loss is None:
        return reading
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return reading
    _tell_of_own_loss()
    return replace(reading, loss=None)


@cache
def _tell_of_own_loss() -> None:
    """Warn that a controller is not told the loss.

    Warns:
        RuntimeWarning: once in a process.
    """
    warnings.warn(
        "the reported loss is taken to be of this rank's own data, so the controller does not get it: ranks "
        "could decide differently. With ThermoAdamW(process_group=torch.distributed.group.WORLD) all ranks "
        "use the loss of the first",
        RuntimeWarning,
        stacklevel=2,
    )


def _of_first_rank(reading: Reading, group: Any) -> Reading:
    """Return the reading of the first rank: all ranks then decide alike, whatever their own rounding."""
    import torch
    import torch.distributed as dist

    travel = reading.travel
    rows = [reading.terms]
    if travel is not None:
        rows.append(np.stack([travel.distance2, travel.work, travel.impulse]))
    loss = np.full((1, reading.terms.shape[1]), math.nan if reading.loss is None else reading.loss)
    packed = torch.from_numpy(np.concatenate([*rows, loss]).copy())
    device = torch.device("cpu") if dist.get_backend(group) == "gloo" else torch.device("cuda")
    sent = packed.to(device)
    dist.broadcast(sent, src=dist.get_global_rank(group, 0), group=group)
    got = sent.cpu().numpy()
    n = reading.terms.shape[0]
    value = float(got[-1, 0])
    return replace(
        reading,
        terms=got[:n],
        travel=None if travel is None else Travel(got[n], got[n + 1], got[n + 2]),
        loss=value if math.isfinite(value) else None,
    )
