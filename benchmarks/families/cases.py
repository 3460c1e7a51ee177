"""The runs: workloads, horizons, seeds, learning rates."""

from __future__ import annotations

from dataclasses import dataclass

from thermoopt.benchmarks.workloads import FURTHER, HELD_OUT, WORKLOADS

__all__ = [
    "CHOSEN_ON",
    "DEVELOPMENT",
    "GRIDS",
    "LONG",
    "LRS",
    "REFERENCE",
    "SEEDS",
    "TUNED",
    "Case",
    "Cell",
    "cells",
    "family",
]

TOO_LARGE = ("bpe", "minilm", "wikitext", "wikitext-pythia")  # too long for a table of hundreds of runs

DEVELOPMENT = tuple(name for name in WORKLOADS if name not in (*HELD_OUT, *TOO_LARGE, *FURTHER))
"""Workloads on which constants may be chosen; a family is judged with constants chosen on the others."""

LONG = ("mlp", "ddpm", "skipgram")
"""Workloads that are also run at 8 times their horizon, because their steps are cheap."""

LRS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
"""The grid of learning rates, two per decade."""

TUNED = ("adamw linear", "adamw cosine")
"""Methods of the tables whose learning rate is the best of :data:`LRS`; all others run at their defaults."""

GRIDS = {
    **dict.fromkeys((*TUNED, "muon linear"), LRS),
    "sgd linear": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0),
    "lion linear": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
}
"""Seven learning rates, two per decade, of every tuned method, around its optimizer's best ones."""

REFERENCE = "adamw linear"
"""Reference of all ratios, at the learning rate chosen for each workload."""

SEEDS = (0, 1, 2)
"""Seeds that are reported; constants are chosen on the first."""

CHOSEN_ON = (100,)
"""Seeds for choosing learning rates, if the reported seeds have no grid of their own."""

Cell = tuple[str, int]
"""A workload and a number of steps."""


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        workload, steps: what is trained, how long.
        method: of the methods, or a law's label.
        lr: learning rate; None is the method's default.
        seed: of weights and batches.
        told: whether the training loss is reported before each step.
    """

    workload: str
    steps: int
    method: str
    lr: float | None
    seed: int
    told: bool

    @property
    def cell(self) -> Cell:
        """Workload and steps."""
        return self.workload, self.steps


def family(workload: str) -> str:
    """Return the family of a workload."""
    return WORKLOADS[workload].family


def cells(workloads: tuple[str, ...], factor: int = 1) -> list[Cell]:
    """Return workloads at a factor times their default horizon."""
    return [(name, factor * WORKLOADS[name].horizons[0]) for name in workloads]
