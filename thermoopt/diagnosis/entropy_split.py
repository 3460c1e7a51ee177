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
from thermoopt.observer import Observer
from thermoopt.param_groups import LAYER_TYPES
from thermoopt.physics import R_IE_CAP, quantities
from thermoopt.plots import check_display, show_figure
from thermoopt.traits import DECOUPLED, decay_entry, group_decay

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["EntropySplit", "LayerSplit", "SplitSnapshot", "r_ie_state"]

Array = NDArray[np.float64]


def r_ie_state(r_ie: float) -> str:
    """Return ``"undefined"`` (NaN), ``"capped"`` (:data:`~thermoopt.physics.R_IE_CAP`) or ``"finite"``."""
    if math.isnan(r_ie):
        return "undefined"
    return "capped" if r_ie >= R_IE_CAP else "finite"


@dataclass(frozen=True)
class LayerSplit:
    r"""Split of one layer, or of all layers of a type; all in [L per step] except ``R_ie`` and ``lr``.

    :func:`thermoopt.physics.quantities` has the formulas. NaN where the optimizer does not provide a part.

    Attributes:
        name, ltype: name of the layer and its type.
        sigma_total: d_eS + d_iS, which is :math:`\eta\langle g,U+\lambda\theta\rangle`.
        d_eS: work: the part that lowers the loss.
        d_iS: heat, signed: d_iS_wd + d_iS_momentum + d_iS_noise.
        R_ie: magnitude of the heat over work.
        state: state of R_ie: ``"finite"``, ``"capped"`` or ``"undefined"`` (work within its error of 0).
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
        """Build it from the i-th column of the quantities.

        Args:
            name, ltype: name and type of the layer.
            q: quantities by name, ``[n]`` (:func:`thermoopt.physics.quantities`).
            i: index of the column.
            decay_inside: whether decay is part of the update, so that d_iS_wd is unknown.
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
        step: step of the reading.
        layers: split of each measured layer, by name.
        types: split of all layers of each type together, by type.
        total: split of all layers together.
        total_d_eS, total_d_iS, R_ie, state: those of ``total``.
        R_ie_median, R_ie_max: over the layers where R_ie is defined; NaN if it is defined nowhere.
        worst_layer, worst_ltype: the layer with the largest R_ie and its type; None if there is none.
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
    r"""A view of an observer's readings as work and heat; it measures nothing itself and costs nothing.

    .. math:: \eta\langle g, U+\lambda\theta\rangle = d_eS + d_iS, \qquad
              d_iS = d_iS_{noise} + d_iS_{momentum} + d_iS_{wd}

    exactly, layer by layer and in total. Without Adam's moments only d_iS_wd of decoupled decay is known; all
    other parts are NaN, and :meth:`report` says so.

    Args:
        model: the observer's model, or None.
        optimizer: the observer's optimizer.
        observer: the observer whose readings are split.

    Raises:
        ValueError: if the observer observes another optimizer or model.

    References:
        derived for this project (:func:`thermoopt.physics.layer_terms`); the names: thermoclaw.
    """

    def __init__(self, model: torch.nn.Module | None, optimizer: Optimizer, observer: Observer) -> None:
        if observer.optimizer is not optimizer:
            raise ValueError(
                "observer must observe the optimizer given, got one that observes another "
                f"{type(observer.optimizer).__name__}"
            )
        if model is not None and observer.model is not None and observer.model is not model:
            raise ValueError(
                f"model must be None or the observer's model, got another {type(model).__name__}"
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
        """Return :attr:`snapshot`; calling it after ``optimizer.step()`` is optional."""
        return self.snapshot

    def report(self, top_k: int = 10) -> str:
        """Describe the newest split: the total, every layer type, and the layers with the largest R_ie.

        Args:
            top_k: number of those layers, at least 0.

        Raises:
            ValueError: for a negative ``top_k``.
        """
        if top_k < 0:
            raise ValueError(f"top_k must be an integer >= 0, got {top_k!r}")
        snapshot = self.snapshot
        if snapshot is None:
            return "No reading yet: train until the observer has measured a step."
        lines = [f"Entropy split at step {snapshot.step} [loss per step]"]
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
                f"unavailable: {kind} keeps no second moment like Adam's; only d_iS_wd of the split is known."
            )
        elif undefined:
            lines.append(
                f"R_ie undefined in {undefined} of {len(snapshot.layers)} layers: work within its error of 0."
            )
        if any(self._inside().values()):
            lines.append("d_iS_wd unavailable where weight decay is coupled: it is part of the update.")
        return "\n".join(lines)

    def get_recommendations(self) -> list[str]:
        """Return, by layer type, which source steadily exceeds the work, and what to change by how much.

        See :func:`thermoopt.diagnosis.entropy_advice.split_advice`.
        """
        history = self._observer.history
        columns = {name: history.layers(name) for name in ("d_eS", "R_ie", *HEAT)}
        names = history.layer_names
        types = self._observer.layer_types
        return split_advice(
            columns, [types.get(name, "other") for name in names], names, self._settings(names)
        )

    def export_csv(self, path: str | Path) -> None:
        """Write one line per reading and layer, as the history keeps them.

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
            save_path: file to write; the suffix chooses the format.
            show: also open it in a window.

        Raises:
            ValueError: for a history of fewer than 2 readings.
            ImportError: matplotlib is missing.
            RuntimeError: matplotlib's backend opens no window.
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
            group_decay(group) > 0 and decay_entry(self._optimizer, group) != DECOUPLED
            for group in self._optimizer.param_groups
        ]
        return {name: coupled[g] for name, g in zip(reading.names, reading.group_of.tolist(), strict=True)}

    def _settings(self, names: Iterable[str]) -> list[tuple[float, float]]:
        """Return the present weight decay and beta1 of each layer's group."""
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
