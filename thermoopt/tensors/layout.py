"""Which tensors an optimizer's groups hold now, against those they held before."""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

__all__ = ["follow_groups", "follow_layers", "holds_numbers", "same_members", "same_objects"]

Groups = Sequence[Sequence[Tensor]]


def holds_numbers(x: Tensor) -> bool:
    """Whether a local tensor holds numbers to reckon with: no codes of frozen, quantised weights, not meta.

    Codes are integers, float8 (for which torch has few operations) and tensor subclasses that wrap others.
    """
    wide = x.is_complex() or (x.is_floating_point() and x.element_size() > 1)
    return wide and not x.is_meta and not is_traceable_wrapper_subclass(x)


def same_objects(now: Collection[Any], before: Collection[Any]) -> bool:
    """Whether two collections hold the very same objects in the same order."""
    return len(now) == len(before) and all(map(operator.is_, now, before))


def same_members(now: Groups, before: Groups) -> bool:
    """Whether groups hold the very same tensors in the same order."""
    return len(now) == len(before) and all(map(same_objects, now, before))


def follow_groups(before: Groups, now: Groups) -> list[int | None]:
    """Tell which group of before each group is: the one it shares most tensors with.

    Where no group was added or removed, groups that share none are those of the same place (all of their
    tensors were exchanged).

    Returns:
        The index of each group before, None for a new one.
    """
    home = {id(p): g for g, params in enumerate(before) for p in params}
    out: list[int | None] = []
    for params in now:
        shared = [home[id(p)] for p in params if id(p) in home]
        shared = [g for g in shared if g not in out]
        out.append(max(set(shared), key=shared.count) if shared else None)
    if len(now) == len(before):
        out = [g if old is None and g not in out else old for g, old in enumerate(out)]
    return out


def follow_layers(before: Groups, now: Groups) -> list[int | None]:
    """Tell which layer of before each layer is: the same tensor, or one put into its place.

    A tensor that was not there before stands in for the one that was at its place in its group
    (:func:`follow_groups`), if that is gone, the group is as long as it was, and both have the same shape.

    Returns:
        The index of each layer before, counted through all groups, None for a new one.
    """
    starts = [0]
    for params in before:
        starts.append(starts[-1] + len(params))
    place = {id(p): starts[g] + j for g, params in enumerate(before) for j, p in enumerate(params)}
    held = {id(p) for params in now for p in params}
    out: list[int | None] = []
    for params, old in zip(now, follow_groups(before, now), strict=True):
        for j, p in enumerate(params):
            layer = place.get(id(p))
            if layer is None and old is not None and len(params) == len(before[old]):
                gone = before[old][j]
                if id(gone) not in held and gone.shape == p.shape:
                    layer = starts[old] + j
            out.append(layer)
    return out
