"""The split of entropy production into work and heat, layer by layer."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim import Optimizer

from thermoopt.account.reading import Reading
from thermoopt.diagnosis.entropy_advice import HEAT, dominant, split_advice
from thermoopt.diagnosis.layer_rates import COUPLED, UNKNOWN, decay_entry, group_decay
from thermoopt.observer import Observer
from thermoopt.param_groups import LAYER_TYPES
from thermoopt.physics import R_IE_CAP, quantities
from thermoopt.plots import check_display, show_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["EntropySplit", "LayerSplit", "SplitSnapshot", "r_ie_state"]

Array = NDArray[np.float64]


def r_ie_state(r_ie: float) -> str:
    """Tell ``"undefined"`` (NaN) from ``"capped"`` (:data:`~thermoopt.physics.R_IE_CAP`) and ``"finite"``."""
    if math.isnan(r_ie):
        return "undefined"
    return "capped" if r_ie >= R_IE_CAP else "finite"


@dataclass(frozen=True)
class LayerSplit:
    r"""Split of one layer, or of all layers of a type; all in [L per step] but ``R_ie`` and ``lr``.

    Formulas stand in :func:`thermoopt.physics.quantities`. NaN is what the optimizer does not tell.

    Attributes:
        name, ltype: layer, and its type.
        sigma_total: d_eS + d_iS, which is :math:`\eta\langle g,U+\lambda\theta\rangle`.
        d_eS: work: what lowers the loss.
        d_iS: heat, signed: d_iS_wd + d_iS_momentum + d_iS_noise.
        R_ie: heat in magnitude over work.
        state: of R_ie: ``"finite"``, ``"capped"`` or ``"undefined"``, where work is within its error of 0.
        lr: effective learning rate.
    """

    name: str
    ltype: str
    sigma_total: float
    d_eS: float
    d_iS: float
    d_iS_wd: float
    d_iS_momentum: float
    d_iS_noise: float
    R_ie: float
    state: str
    lr: float

    @classmethod
    def of(cls, name: str, ltype: str, q: Mapping[str, Array], i: int, decay_inside: bool) -> LayerSplit:
        """Form it from the i-th of many quantities.

        Args:
            name, ltype: of the layer.
            q: quantities by name, ``[n]`` (:func:`thermoopt.physics.quantities`).
            i: which.
            decay_inside: whether decay is part of the update, and d_iS_wd not to be told.
        """
        r_ie = float(q["R_ie"][i])
        return cls(
            name=name,
            ltype=ltype,
            sigma_total=float(q["d_eS"][i] + q["d_iS"][i]),
            d_eS=float(q["d_eS"][i]),
            d_iS=float(q["d_iS"][i]),
            d_iS_wd=math.nan if decay_inside else float(q["d_iS_wd"][i]),
            d_iS_momentum=float(q["d_iS_momentum"][i]),
            d_iS_noise=float(q["d_iS_noise"][i]),
            R_ie=r_ie,
            state=r_ie_state(r_ie),
            lr=float(q["lr_eff"][i]),
        )


@dataclass(frozen=True)
class SplitSnapshot:
    """Split of one reading.

    Attributes:
        step: of the reading.
        layers: split of each layer measured, by name.
        types: of all layers of each type together, by type.
        total: of everything together.
        total_d_eS, total_d_iS, R_ie, state: the total's.
        R_ie_median, R_ie_max: over the layers where R_ie is defined; NaN where it nowhere is.
        worst_layer, worst_ltype: the layer of the largest R_ie and its type; None where there is none.
    """

    step: int
    layers: Mapping[str, LayerSplit]
    types: Mapping[str, LayerSplit]
    total: LayerSplit
    total_d_eS: float
    total_d_iS: float
    R_ie: float
    state: str
    R_ie_median: float
    R_ie_max: float
    worst_layer: str | None
    worst_ltype: str | None


class EntropySplit:
    r"""Work and heat in an observer's readings: a view that measures nothing and costs nothing.

    .. math:: \eta\langle g, U+\lambda\theta\rangle = d_eS + d_iS, \qquad
              d_iS = d_iS_{noise} + d_iS_{momentum} + d_iS_{wd}

    exactly, layer by layer and in total. Without Adam's moments only d_iS_wd is known, of decay that is
    decoupled; all else is NaN and :meth:`report` says so.

    Args:
        model: the observer's.
        optimizer: the observer's.
        observer: whose readings are split.

    Raises:
        ValueError: if the observer is of another optimizer or model.

    References:
        derived for this project (:func:`thermoopt.physics.layer_terms`); the names: thermoclaw.
    """

    def __init__(self, model: torch.nn.Module | None, optimizer: Optimizer, observer: Observer) -> None:
        if observer.optimizer is not optimizer:
            raise ValueError(
                f"observer is of another {type(observer.optimizer).__name__}; allowed is an observer of the "
                "optimizer given"
            )
        if model is not None and observer.model is not None and observer.model is not model:
            raise ValueError(
                f"model is another {type(model).__name__} than the observer's; allowed are None and that one"
            )
        self._observer = observer
        self._optimizer = optimizer
        self._snapshot: SplitSnapshot | None = None
        self._terms: Array | None = None
        self._types_of: tuple[tuple[str, ...], list[str]] = ((), [])

    @property
    def observer(self) -> Observer:
        """The observer whose readings are split."""
        return self._observer

    @property
    def snapshot(self) -> SplitSnapshot | None:
        """Split of the newest reading, or None before the first."""
        reading = self._observer.reading
        if reading is None:
            return None
        if self._snapshot is None or self._terms is not reading.terms:
            self._snapshot, self._terms = self._split(reading), reading.terms
        return self._snapshot

    def step(self) -> SplitSnapshot | None:
        """Return :attr:`snapshot`; to be called after ``optimizer.step()``, or not at all."""
        return self.snapshot

    def report(self, top_k: int = 10) -> str:
        """Describe the newest split: the total, every layer type, the layers of largest R_ie.

        Args:
            top_k: how many of these layers, from 0.

        Raises:
            ValueError: for a negative ``top_k``.
        """
        if top_k < 0:
            raise ValueError(f"top_k is {top_k!r}; allowed is a whole number from 0")
        snapshot = self.snapshot
        if snapshot is None:
            return "No reading yet: train until the observer has measured a step."
        lines = [f"Entropy split at step {snapshot.step} [loss a step]"]
        known = [layer for layer in snapshot.layers.values() if layer.state != "undefined"]
        worst = sorted(known, key=lambda layer: -layer.R_ie)[:top_k]
        rows = [_row("total", snapshot.total)]
        rows += [_row(f"type {kind}", split) for kind, split in snapshot.types.items()]
        rows += [_row(layer.name, layer) for layer in worst]
        lines += _aligned([("", "sigma", "work d_eS", *HEAT, "R_ie", "most heat"), *rows])
        undefined = len(snapshot.layers) - len(known)
        if math.isnan(snapshot.total.d_eS):
            kind = type(self._optimizer).__name__
            lines.append(
                f"unavailable: {kind} keeps no second moment as Adam's; of the split only d_iS_wd is known."
            )
        elif undefined:
            lines.append(
                f"R_ie undefined in {undefined} of {len(snapshot.layers)} layers: work within its error of 0."
            )
        if any(self._inside().values()):
            lines.append("d_iS_wd unavailable where weight decay is coupled: it is part of the update.")
        return "\n".join(lines)

    def get_recommendations(self) -> list[str]:
        """What makes more heat than there is work, steadily, by layer type, and what to change by how much.

        See :func:`thermoopt.diagnosis.split_advice`.
        """
        history = self._observer.history
        columns = {name: history.layers(name) for name in ("d_eS", "R_ie", *HEAT)}
        names = history.layer_names
        types = self._observer.layer_types
        return split_advice(
            columns, [types.get(name, "other") for name in names], names, self._settings(names)
        )

    def export_csv(self, path: str | Path) -> None:
        """Write one line a reading and layer, as the history keeps them.

        Raises:
            ValueError: before the first reading.
        """
        history = self._observer.history
        names, types = history.layer_names, self._observer.layer_types
        if not names:
            raise ValueError("the history is empty: train until the observer has measured a step")
        columns = {name: history.layers(name) for name in ("d_eS", "d_iS", *HEAT, "R_ie", "lr_eff")}
        inside = self._inside()
        with Path(path).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["step", "layer", "type", "sigma_total", *columns, "state"])
            for i, step in enumerate(history.layer_steps.tolist()):
                for j, name in enumerate(names):
                    values = {key: float(column[i, j]) for key, column in columns.items()}
                    if math.isnan(values["lr_eff"]):  # not measured then
                        continue
                    if inside.get(name, False):
                        values["d_iS_wd"] = math.nan
                    sigma, state = values["d_eS"] + values["d_iS"], r_ie_state(values["R_ie"])
                    writer.writerow([step, name, types.get(name, "other"), sigma, *values.values(), state])

    def plot_entropy_split(self, save_path: str | Path | None = None, show: bool = False) -> Figure:
        """Draw the split over the run (:func:`thermoopt.plots.plot_entropy_split`).

        Args:
            save_path: where to write it; the suffix chooses the format.
            show: open it in a window, too.

        Raises:
            ValueError: for a history of fewer than 2 readings.
            ImportError, RuntimeError: matplotlib is missing, or has no window to show it in.
        """
        from thermoopt.plots import plot_entropy_split

        if show:
            check_display()
        figure = plot_entropy_split(self._observer.history, path=save_path)
        if show:
            show_figure(figure)
        return figure

    # ---------------------------------------------------------------- forming

    def _split(self, reading: Reading) -> SplitSnapshot:
        if self._types_of[0] != reading.names:
            known = self._observer.layer_types
            self._types_of = reading.names, [known.get(name, "other") for name in reading.names]
        kinds = self._types_of[1]
        coupled = self._inside()
        inside = [coupled.get(name, False) for name in reading.names]
        q = quantities(reading.terms)
        seen = np.flatnonzero(reading.seen).tolist()
        layers = {reading.names[i]: LayerSplit.of(reading.names[i], kinds[i], q, i, inside[i]) for i in seen}
        columns = {kind: [i for i in seen if kinds[i] == kind] for kind in LAYER_TYPES}
        columns = {kind: own for kind, own in columns.items() if own}
        summed = np.stack([reading.terms[:, own].sum(axis=1) for own in (seen, *columns.values())], axis=1)
        q = quantities(summed)
        total = LayerSplit.of("total", "total", q, 0, any(inside))
        types = {
            kind: LayerSplit.of(kind, kind, q, k, any(inside[i] for i in own))
            for k, (kind, own) in enumerate(columns.items(), start=1)
        }
        r_ie = {name: layer.R_ie for name, layer in layers.items() if layer.state != "undefined"}
        worst = max(r_ie, key=r_ie.__getitem__, default=None)
        return SplitSnapshot(
            step=reading.step,
            layers=layers,
            types=types,
            total=total,
            total_d_eS=total.d_eS,
            total_d_iS=total.d_iS,
            R_ie=total.R_ie,
            state=total.state,
            R_ie_median=float(np.median(list(r_ie.values()))) if r_ie else math.nan,
            R_ie_max=max(r_ie.values(), default=math.nan),
            worst_layer=worst,
            worst_ltype=None if worst is None else layers[worst].ltype,
        )

    def _inside(self) -> dict[str, bool]:
        """Whether the decay of each layer is part of the update, by name."""
        reading = self._observer.reading
        if reading is None:
            return {}
        coupled = [
            group_decay(group) > 0 and decay_entry(self._optimizer, group) in (COUPLED, UNKNOWN)
            for group in self._optimizer.param_groups
        ]
        return {name: coupled[g] for name, g in zip(reading.names, reading.group_of.tolist(), strict=True)}

    def _settings(self, names: Iterable[str]) -> list[tuple[float, float]]:
        """Weight decay and beta1 of each layer's group, as they are now."""
        reading = self._observer.reading
        groups = self._optimizer.param_groups
        if reading is None:
            return []
        of = dict(zip(reading.names, reading.group_of.tolist(), strict=True))
        return [
            (group_decay(groups[of[name]]), float(groups[of[name]].get("betas", (math.nan,))[0]))
            for name in names
        ]


def _row(title: str, split: LayerSplit) -> tuple[str, ...]:
    parts = (split.sigma_total, split.d_eS, split.d_iS_noise, split.d_iS_momentum, split.d_iS_wd)
    states = {"undefined": "-" if math.isnan(split.d_eS) else "undefined", "capped": f">{R_IE_CAP:.3g}"}
    r_ie = states.get(split.state, f"{split.R_ie:.3g}")
    heat = {name: getattr(split, name) for name in HEAT}
    return (title, *("-" if math.isnan(x) else f"{x:.3g}" for x in parts), r_ie, dominant(heat) or "-")


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    last = len(widths) - 1
    return [
        "  ".join(
            cell.ljust(width) if i in (0, last) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
