"""Which tensors of a step go to a kernel, which are new, and which are left to torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from thermoopt.tensors import local, same_members, same_objects

__all__ = ["Columns", "Place", "Sorted", "Sorting"]

Place = tuple[int, int, int]
"""Where a tensor belongs: its layer, its group, its position in the group."""


@dataclass
class Columns:
    """The tensors that a kernel is to step together, column by column, and where they belong.

    For a sharded parameter these are this rank's shards; ``owners`` are the parameters themselves.
    """

    owners: list[Tensor]
    params: list[Tensor]
    grads: list[Any]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    maxima: list[Tensor | None]
    steps: list[Tensor]
    place: list[Place]

    def owned(self) -> tuple[Sequence[Tensor | None], ...]:
        """Everything a plan is made of."""
        return self.params, self.exp_avgs, self.exp_avg_sqs, self.maxima, self.steps

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """Tensor by tensor, in the order of a kernel's ``ineligible``."""
        return zip(self.params, self.grads, *self.owned()[1:], strict=True)

    def only(self, keep: Sequence[int]) -> Columns:
        """Return some of the rows."""
        names = (f.name for f in fields(self))
        return Columns(**{name: [getattr(self, name)[i] for i in keep] for name in names})


@dataclass
class Sorted:
    """Tensors with a gradient: for a kernel, by device; with no state yet; for torch."""

    columns: dict[torch.device, Columns] = field(default_factory=dict)
    fresh: list[Place] = field(default_factory=list)
    rest: list[Place] = field(default_factory=list)


@dataclass
class Sorting:
    """How tensors were sorted, and everything that depends on, compared by identity at each step.

    Sorting again costs microseconds per tensor, most of it hashing; checking that lists still hold the very
    same objects costs nanoseconds, and notices parameters and state that were exchanged in place.
    """

    params: list[list[Tensor]]
    flags: list[tuple[bool, bool]]
    missing: list[bool]
    states: list[dict[str, Any]]
    sharded: bool
    rows: dict[torch.device, list[tuple[Place, Tensor, dict[str, Any], bool]]] = field(default_factory=dict)
    fresh: list[Place] = field(default_factory=list)
    rest: list[Place] = field(default_factory=list)
    _fixed: dict[torch.device, list[list[Any]]] = field(default_factory=dict)

    def fits(self, optimizer: Optimizer, flags: list[tuple[bool, bool]], grads: list[Tensor | None]) -> bool:
        """Whether groups, flags, state and the presence of gradients are what they were."""
        groups = optimizer.param_groups
        return (
            not self.fresh
            and self.flags == flags
            and self.missing == [g is None for g in grads]
            and same_members([group["params"] for group in groups], self.params)
            and same_objects(optimizer.state.values(), self.states)
        )

    def now(self, grads: list[Tensor | None]) -> Sorted:
        """Return the tensors as they are now: gradients and state may be different tensors at each step."""
        out = Sorted(fresh=self.fresh, rest=list(self.rest))
        for device, rows in self.rows.items():
            if device not in self._fixed:
                self._fixed[device] = [list(column) for column in zip(*rows, strict=True)]
            place, owners, states, amsgrads = self._fixed[device]
            maxima: list[Tensor | None] = [None] * len(rows)
            if any(amsgrads):
                maxima = [s["max_exp_avg_sq"] if a else None for s, a in zip(states, amsgrads, strict=True)]
            c = Columns(
                owners=owners,
                params=owners,
                grads=grads if len(rows) == len(grads) else [grads[layer] for layer, _, _ in place],
                exp_avgs=[state["exp_avg"] for state in states],
                exp_avg_sqs=[state["exp_avg_sq"] for state in states],
                maxima=maxima,
                steps=[state["step"] for state in states],
                place=place,
            )
            if self.sharded:
                c.grads = [local(g, p) for g, p in zip(c.grads, owners, strict=True)]
                for name in ("params", "exp_avgs", "exp_avg_sqs", "maxima"):
                    setattr(c, name, [None if x is None else local(x) for x in getattr(c, name)])
            out.columns[device] = c
        return out
