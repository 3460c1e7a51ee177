"""From rows to ratios: against the tuned reference, by workload and family, choosing on other families."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, geometric_mean
from typing import Any

from thermoopt.benchmarks.families.cases import GRIDS, REFERENCE, SEEDS, Cell, family

__all__ = [
    "Ratios",
    "chosen_lrs",
    "leave_family_out",
    "ratios",
    "reference_rows",
    "reported",
    "summary",
    "whole_grids",
]

FLOOR = 0.01
"""Share of the initial score that is added to both sides of a ratio: smaller differences mean nothing."""

Rows = Sequence[Mapping[str, Any]]
Runs = dict[Cell, dict[int, Mapping[str, Any]]]
"""Rows by workload and steps, and seed."""

Ratios = dict[Cell, float]
"""Score over the reference's, by workload and steps."""


@dataclass(frozen=True)
class Summary:
    """A summary of ratios.

    Attributes:
        mean: geometric mean over workloads.
        worst: the largest.
        of: the workload with that ratio.
        families: geometric mean of each family's workloads.
    """

    mean: float
    worst: float
    of: Cell
    families: dict[str, float]


def whole_grids(rows: Rows, method: str) -> dict[Cell, dict[int, dict[float, float]]]:
    """Return the scores of a tuned method by cell, seed and learning rate, of seeds that have every rate."""
    scores: dict[Cell, dict[int, dict[float, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if row["method"] == method:
            scores[row["workload"], row["steps"]][row["seed"]][row["lr"]] = row["score"]
    return {
        cell: {seed: by_lr for seed, by_lr in by_seed.items() if set(GRIDS[method]) <= set(by_lr)}
        for cell, by_seed in scores.items()
    }


def chosen_lrs(rows: Rows, method: str, seed: int) -> dict[Cell, float]:
    """Return the learning rate of a tuned method for a seed, by cell: the best on all other seeds together.

    Only seeds with every learning rate of the grid count; a cell without another such seed is left out.
    """
    best: dict[Cell, float] = {}
    for cell, by_seed in whole_grids(rows, method).items():
        others = [by_lr for other, by_lr in by_seed.items() if other != seed]
        if others:
            best[cell] = min(GRIDS[method], key=lambda lr: fmean(by_lr[lr] for by_lr in others))
    return best


def reported(rows: Rows, method: str, told: bool, seeds: Collection[int] = SEEDS) -> Runs:
    """Return a method's rows by cell and seed: a tuned one's at its chosen learning rates only."""
    lrs = {seed: chosen_lrs(rows, method, seed) for seed in seeds} if method in GRIDS else None
    found: Runs = defaultdict(dict)
    for row in rows:
        cell, seed = (row["workload"], row["steps"]), row["seed"]
        mine = row["method"] == method and row["told"] == told and seed in seeds
        if mine and (lrs is None or lrs[seed].get(cell) == row["lr"]):
            found[cell][seed] = row
    return dict(found)


def ratios(own: Runs, reference: Runs) -> Ratios:
    r"""Divide scores by the reference's, over the seeds that both have.

    .. math:: \frac{\bar s + f}{\bar s_{ref} + f},\quad f = 0.01\,\bar s_0

    :math:`s_0` is the score of the untrained model, means are over seeds.
    """
    out: Ratios = {}
    for cell, by_seed in own.items():
        seeds = [seed for seed in by_seed if seed in reference.get(cell, {})]
        if seeds:
            floor = FLOOR * fmean(by_seed[seed]["initial"] for seed in seeds)
            above, below = (
                fmean(side[seed]["score"] for seed in seeds) for side in (by_seed, reference[cell])
            )
            out[cell] = (above + floor) / (below + floor)
    return out


def summary(values: Ratios) -> Summary:
    """Summarise ratios.

    Raises:
        ValueError: there are none.
    """
    if not values:
        raise ValueError("values must have at least one ratio, got none")
    of = max(values, key=lambda cell: values[cell])
    return Summary(geometric_mean(values.values()), values[of], of, by_family(values))


def by_family(values: Ratios) -> dict[str, float]:
    """Return the geometric mean of each family's workloads."""
    groups: dict[str, list[float]] = defaultdict(list)
    for (workload, _), value in values.items():
        groups[family(workload)].append(value)
    return {name: geometric_mean(group) for name, group in groups.items()}


def leave_family_out(
    variants: Mapping[str, Ratios], judged_by: Mapping[str, Ratios] | None = None
) -> tuple[dict[str, str], Ratios]:
    """Choose a variant for each family by its geometric mean over all other families' workloads.

    Args:
        variants: ratios of each variant to choose by; cells that not all of them have are left out.
        judged_by: ratios that are reported, of more seeds than those used for choosing; None is ``variants``.

    Returns:
        The variant chosen for each family, and the ratios that the families left out have with it.

    Raises:
        ValueError: there is no variant, or fewer than two families are in all of them.
    """
    shared = set.intersection(*map(set, variants.values())) if variants else set()
    families = list(dict.fromkeys(family(cell[0]) for cell in _in_order(shared, variants)))
    if len(families) < 2:
        raise ValueError(f"variants must share workloads of at least 2 families, got {len(families)}")
    chosen: dict[str, str] = {}
    judged: Ratios = {}
    for name in families:
        others = [cell for cell in shared if family(cell[0]) != name]
        chosen[name] = min(variants, key=lambda v: geometric_mean(variants[v][cell] for cell in others))
        for cell in _in_order(shared, variants):
            if family(cell[0]) == name:
                judged[cell] = (judged_by or variants)[chosen[name]][cell]
    return chosen, judged


def _in_order(cells: Collection[Cell], variants: Mapping[str, Ratios]) -> Iterable[Cell]:
    """Yield the cells in the order of the first variant, so that the order does not depend on hashes."""
    return (cell for cell in next(iter(variants.values()), ()) if cell in cells)


def reference_rows(rows: Rows, seeds: Collection[int] = SEEDS) -> Runs:
    """Return the rows of the reference at its chosen learning rates."""
    return reported(rows, REFERENCE, True, seeds)
