"""Averages of sums over steps, and the reading they give: plain floats per layer, per group, in total."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thermoopt.kernels.sums import Sum
from thermoopt.physics import (
    COLUMNS,
    Term,
    check_quantity,
    columns_of,
    layer_terms,
    linear_sums,
    quantities,
)
from thermoopt.travel import Travel

__all__ = ["BAND", "SKIP_CAUSES", "STATE_ROWS", "Meter", "Quantities", "Reading", "RunState", "dispersion"]

Array = NDArray[np.float64]

SKIP_CAUSES = ("nonfinite", "found_inf", "dry", "no_gradients")
"""Why a step that was to be measured left every average as it was: a sum was not finite; a GradScaler
found an infinity; lr was 0 and every gradient 0 (a checkpoint library's dry step); no tensor had one."""

BAND = 0.15
"""Distance of r from 1 up to which a layer counts as in equilibrium: thermoclaw's, so that the fraction means
the same. In pure noise r has a standard error of sqrt(2 / (10 d)) at beta1 = 0.9 and ema_steps = 50 (some ten
independent moments an average), half of this band at d = 35 elements: smaller layers leave it by chance."""

_COUNTERS = ("step", "readings", "recorded", "unseen")
_RUN_ROWS = ("weight", "weight2", "last", "lr", "wd", "beta2")
STATE_ROWS = COLUMNS + len(_RUN_ROWS)
"""Rows of the tensor ``[STATE_ROWS, n]`` that a meter keeps for the ``n`` layers of a group."""


@dataclass(frozen=True)
class Quantities:
    """What one layer, one group or the whole optimizer did in a step, averaged over ``ema_steps``.

    Formulas and units stand in :func:`thermoopt.physics.quantities`. NaN means undefined, never 0.
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
    """One account of the run. Layers that never had a gradient are absent from ``layers``.

    Attributes:
        step: the optimizer step it speaks of, counted from 1 by the optimizer itself.
        names: layer names, in the order of the columns of ``terms``.
        terms: ``[len(Term), n_layers]`` extensive terms (:func:`thermoopt.physics.layer_terms`).
        group_of: ``[n_layers]`` index of each layer's parameter group.
        group_names: a name for each group.
        seen: ``[n_layers]`` whether the layer was ever measured.
        skipped: measured steps that moved nothing, by cause (:data:`SKIP_CAUSES`).
        travel: the sums that a controller named, in the readings that it is handed.
        loss: the last loss reported before, in readings that an observer hands out or records.
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
        out = np.zeros((len(Term), len(self.group_names)))
        np.add.at(out.T, self.group_of, self.terms.T)
        return out

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
        """Quantities of everything the optimizer moves."""
        return Quantities.of(self.terms.sum(axis=1))

    def layer_array(self, name: str) -> Array:
        """One quantity of all layers, ``[n_layers]``, NaN for layers never measured."""
        check_quantity(name)
        return np.where(self.seen, quantities(self.terms)[name], np.nan)

    @cached_property
    def dispersion(self) -> float:
        """Variance of r over the layers (:func:`dispersion`): how far they are out of step."""
        return dispersion(self.layer_array("r"))

    def equilibrium_fraction(self, band: float = BAND) -> float:
        """Share of the layers in thermal equilibrium: those with abs(r - 1) <= ``band``.

        Args:
            band: largest distance from 1, from 0.

        Returns:
            0 to 1 of the layers whose r is finite; NaN where there are none.

        Raises:
            TypeError, ValueError: unless ``band`` is a number from 0.
        """
        if isinstance(band, bool) or not isinstance(band, (int, float)):
            raise TypeError(f"band is {band!r}; allowed is a number from 0")
        if not (math.isfinite(band) and band >= 0):
            raise ValueError(f"band is {band!r}; allowed is a number from 0")
        r = self.layer_array("r")
        r = r[np.isfinite(r)]
        return float(np.mean(np.abs(r - 1) <= band)) if r.size else math.nan


def dispersion(r: Array) -> float:
    r"""Variance of the layers' entropy ratio, :math:`D = \mathrm{Var}_l(r_l)`, no unit.

    thermoclaw's D. There r was sigma over 1.2 times its own running median; here it is the update's energy
    over that of pure noise (:func:`thermoopt.physics.quantities`), whose 1 is the same for every layer, so
    that D = 0 where all layers are equally far from equilibrium.

    Args:
        r: ``[n_layers]``; what is not finite is left out.

    Returns:
        The variance (of the layers there are, no sample of more); NaN of fewer than two.
    """
    r = r[np.isfinite(r)]
    return float(np.var(r)) if r.size >= 2 else math.nan


@dataclass
class RunState:
    """Counters of a run.

    Attributes:
        step: optimizer steps taken.
        readings: steps averaged in.
        recorded: step of the last reading that went to history, sinks and controller.
        unseen: 1 while the controller has not been shown that reading.
        skipped: measured steps that moved nothing, by cause.
    """

    step: int = 0
    readings: int = 0
    recorded: int = 0
    unseen: int = 0
    skipped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SKIP_CAUSES, 0))


class Meter:
    r"""Exponential averages of the sums of each layer.

    A sum x measured :math:`\Delta` steps after the last one enters as
    :math:`X \leftarrow qX + (1-q)x` with :math:`q = (1-1/\mathrm{ema\_steps})^\Delta`; a weight
    started at 0 goes the same way and divides it (no bias at the start, nothing undefined in between).
    ``ema_steps=1`` gives the raw step. A layer without a gradient keeps its averages.

    Args:
        ema_steps: length of the average, in optimizer steps, at least 1.
        unavailable: sums that an optimizer without Adam's moments does not have. What is handed over for
            them does not count, and every quantity that needs one of them is NaN in the reading.
    """

    def __init__(self, ema_steps: float, unavailable: Collection[Sum] = ()) -> None:
        self.keep = 1 - 1 / ema_steps
        self._missing = columns_of(unavailable) if unavailable else None
        self.run = RunState()
        self.names: tuple[str, ...] = ()
        self.group_names: tuple[str, ...] = ()
        self.group_of = np.zeros(0, dtype=np.int64)
        self.numel = np.zeros(0)
        self._state = np.zeros((STATE_ROWS, 0))
        self._latest: Reading | None = None
        self._everything: NDArray[np.int64] | None = None

    def add_group(self, name: str, layers: Sequence[str], numel: Sequence[int]) -> None:
        """Take in the layers of one more parameter group.

        A name that is taken, or ``"total"``, gets the group's index behind it: records hold the total
        beside the groups.
        """
        while name == "total" or name in self.group_names:
            name = f"{name}.{len(self.group_names)}"
        self.group_of = np.append(self.group_of, np.full(len(layers), len(self.group_names)))
        self.group_names += (name,)
        self.names += tuple(layers)
        self.numel = np.append(self.numel, np.asarray(numel, dtype=np.float64))
        self._state = np.append(self._state, np.zeros((STATE_ROWS, len(layers))), axis=1)
        self._latest = self._everything = None

    def skip(self, cause: str) -> None:
        """Count a step that was to be measured and moves no average."""
        self.run.skipped[cause] += 1
        self._latest = None

    def update(
        self, step: int, index: NDArray[np.int64], sums: Array, t: Array, constants: Mapping[str, Array]
    ) -> str | None:
        """Average one step's sums in; refuse the step whole when one of them is not finite.

        Args:
            step: the optimizer step measured.
            index: ``[k]`` layers measured, in any order.
            sums: ``[len(Sum), k]``.
            t: ``[k]`` the layers' own step counts.
            constants: ``lr``, ``wd``, ``beta1``, ``beta2``, each ``[k]``, as applied in the step.

        Returns:
            None, or the cause for which no average moved (:data:`SKIP_CAUSES`); it is not counted here.
        """
        if not np.isfinite(sums).all():
            return "nonfinite"
        if not constants["lr"].any() and not sums[Sum.GG].any():
            return "dry"
        # a kernel hands over the same index array step by step
        everything = index is self._everything or np.array_equal(index, np.arange(len(self.names)))
        if everything:
            self._everything = index
        state = self._state if everything else self._state[:, index]
        weight, weight2, last, lr, wd, beta2 = state[COLUMNS:]
        q = self.keep ** (step - last)
        p = 1 - q
        state[:COLUMNS] *= q
        new = linear_sums(sums, constants["beta1"], t)
        if self._missing is not None:
            new[self._missing] = 0.0  # state stays free of NaN
        state[:COLUMNS] += p * new
        weight *= q
        weight += p
        weight2 *= q**2
        weight2 += p**2
        last[:] = step
        lr[:], wd[:], beta2[:] = constants["lr"], constants["wd"], constants["beta2"]
        if not everything:
            self._state[:, index] = state
        self.run.readings += 1
        self._latest = None
        return None

    @property
    def reading(self) -> Reading | None:
        """The account up to the last step measured; None before the first."""
        if self.run.readings == 0:
            return None
        if self._latest is None:
            weight, weight2, last, lr, wd, beta2 = self._state[COLUMNS:]
            seen = weight > 0
            safe = np.where(seen, weight, 1.0)
            mean, error2 = self._state[:COLUMNS] / safe, weight2 / safe**2
            if self._missing is not None:
                mean[self._missing] = np.nan
            terms = np.where(seen, layer_terms(mean, error2, lr, wd, beta2, self.numel), 0.0)
            self._latest = Reading(
                step=int(last.max()),
                names=self.names,
                terms=terms,
                group_of=self.group_of,
                group_names=self.group_names,
                seen=seen,
                skipped=dict(self.run.skipped),
            )
        return self._latest

    def export_group(self, group: int) -> dict[str, int | Tensor]:
        """Everything needed to go on, as plain ints and one float64 tensor ``[STATE_ROWS, n]``."""
        counts: dict[str, int | Tensor] = {f"skipped_{c}": n for c, n in self.run.skipped.items()}
        rows = torch.from_numpy(self._state[:, self.group_of == group].copy())
        run = {key: getattr(self.run, key) for key in _COUNTERS}
        return {**run, "meter": rows, **counts}

    def import_group(self, group: int, saved: Mapping[str, object]) -> None:
        """Take up what :meth:`export_group` gave.

        Averages may come as nested lists, too. Keys of an older checkpoint may be missing, and its averages
        may have another layout: they start afresh, the second with a warning. Counters belong to the run, so
        the largest of all groups counts (a group added in mid-run knows fewer steps).
        """
        self._latest = None
        rows = saved.get("meter")
        where = self.group_of == group
        if isinstance(rows, (Tensor, list)):
            rows = torch.as_tensor(rows, dtype=torch.float64)
            expected = (STATE_ROWS, int(where.sum()))
            if tuple(rows.shape) == expected:
                self._state[:, where] = rows.cpu().numpy()
            else:
                warnings.warn(
                    f"saved averages of group {group} have shape {tuple(rows.shape)}, not {expected}: "
                    "they start afresh",
                    RuntimeWarning,
                    stacklevel=2,
                )
        for key in _COUNTERS:
            setattr(self.run, key, max(getattr(self.run, key), _count(saved, key)))
        for cause in self.run.skipped:
            self.run.skipped[cause] = max(self.run.skipped[cause], _count(saved, f"skipped_{cause}"))


def _count(saved: Mapping[str, object], key: str) -> int:
    value = saved.get(key, 0)
    return int(value.item() if isinstance(value, Tensor) else value)  # type: ignore[call-overload]
