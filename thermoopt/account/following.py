"""Follows parameter groups that were edited by hand: name and averages stay with the tensor."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from thermoopt.account.ledger import Ledger
from thermoopt.account.naming import layer_names
from thermoopt.tensors import WARM_UP, capturing, follow_layers

__all__ = ["follow_edit", "is_exchange"]

SHOWN = 5
"""Number of names that a warning lists of each kind."""


def follow_edit(
    ledger: Ledger,
    before: Sequence[Sequence[Tensor]],
    groups: Sequence[Mapping[str, Any]],
    names: Mapping[Tensor, str] | None = None,
) -> list[int | None]:
    """Update a ledger after an optimizer's groups were edited by hand.

    A layer whose tensor is still there, or was replaced by one of the same shape
    (:func:`thermoopt.tensors.follow_layers`), keeps its name and averages. Others start afresh.

    Args:
        ledger: of the former layers.
        before: the former tensors of each group.
        groups: the parameter groups now.
        names: layer names by tensor, for groups that carry none.

    Returns:
        The former index of each layer, None for a new one.

    Raises:
        RuntimeError: while a CUDA graph is being captured.

    Warns:
        RuntimeWarning: naming the layers that have other tensors now, are gone, or are new.
    """
    if capturing():
        raise RuntimeError(WARM_UP)
    old = ledger.meter.names
    place = follow_layers(before, [group["params"] for group in groups])
    params = [p for group in groups for p in group["params"]]
    ledger.kept_names = dict(zip(params, _names(groups, place, old, names or {}), strict=True))
    if not is_exchange(before, groups, place):
        ledger.to_host()
        averages = ledger.meter.state
        ledger.forget_layers()
        for group in groups:
            ledger.add_group(group, names)
        ledger.meter.put_layers(averages, place)
    ledger.follow(params)
    _tell(before, params, place, old, ledger.meter.names)
    return place


def is_exchange(
    before: Sequence[Sequence[Tensor]], groups: Sequence[Mapping[str, Any]], place: Sequence[int | None]
) -> bool:
    """Whether edited groups hold the same layers in the same places, only some with other tensors."""
    same_sizes = [len(params) for params in before] == [len(group["params"]) for group in groups]
    return same_sizes and list(place) == list(range(len(place)))


def _names(
    groups: Sequence[Mapping[str, Any]],
    place: Sequence[int | None],
    old: Sequence[str],
    names: Mapping[Tensor, str],
) -> list[str]:
    """Name every layer: as before, else as its group or ``names`` says, without duplicates."""
    out = [None if i is None else old[i] for i in place]
    taken, k = {name for name in out if name is not None}, 0
    for index, group in enumerate(groups):
        own = layer_names(index, group)
        for p, given in zip(group["params"], own, strict=True):
            if out[k] is None:
                name = given if group.get("param_names") else names.get(p, given)
                while name in taken:
                    name += "'"
                out[k] = name
                taken.add(name)
            k += 1
    return [str(name) for name in out]


def _tell(
    before: Sequence[Sequence[Tensor]],
    params: Sequence[Tensor],
    place: Sequence[int | None],
    old: Sequence[str],
    now: Sequence[str],
) -> None:
    tensors = [p for group in before for p in group]
    kept = {i for i in place if i is not None}
    gone = [name for i, name in enumerate(old) if i not in kept]
    new = [now[j] for j, i in enumerate(place) if i is None]
    kinds = {
        "whose tensors were replaced, followed on the new ones": [
            now[j] for j, i in enumerate(place) if i is not None and tensors[i] is not params[j]
        ],
        "whose shape changed, measured afresh": [name for name in new if name in gone],
        "removed": [name for name in gone if name not in new],
        "added, measured from now on": [name for name in new if name not in gone],
    }
    said = [f"{what}: {_listed(layers)}" for what, layers in kinds.items() if layers]
    if said:
        warnings.warn(
            f"the optimizer's param_groups were edited by hand. Layers {'; '.join(said)}",
            RuntimeWarning,
            stacklevel=4,
        )


def _listed(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
