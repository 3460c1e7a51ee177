"""Names and sizes of the layers of a parameter group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from thermoopt.account.meter import Meter
from thermoopt.kernels import real_elements

__all__ = [
    "add_to_meter",
    "layer_names",
    "names_by_position",
    "plain_name",
    "with_plain_names",
    "with_present_names",
]

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts that torch.compile, FSDP1 and activation checkpointing add anywhere in a name."""

_AT_THE_FRONT = {"module", "_module", "_forward_module"}
"""What DDP, Opacus and Fabric add in front; elsewhere it may be the model's own word."""


def plain_name(name: str) -> str:
    """Return the name of a parameter or module without the parts that wrappers add.

    ``"module._orig_mod.layers.0.weight"`` is ``"layers.0.weight"``.
    """
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    while len(parts) > 1 and parts[0] in _AT_THE_FRONT:
        del parts[0]
    return ".".join(parts) or name


def with_plain_names(saved: Any) -> Any:
    """Return saved plain data with :func:`plain_name` applied to strings, unless that name exists as well."""
    if isinstance(saved, str):
        return plain_name(saved)
    if isinstance(saved, Mapping):
        return {
            key if not isinstance(key, str) or plain_name(key) in saved else plain_name(key): (
                with_plain_names(value)
            )
            for key, value in saved.items()
        }
    if isinstance(saved, list):
        return [x if isinstance(x, str) and plain_name(x) in saved else with_plain_names(x) for x in saved]
    return saved


def with_present_names(saved: Any, before: Sequence[str], now: Sequence[str]) -> Any:
    """Return saved plain data with the layer names of today, where the run was saved under others.

    Layers correspond by position, as torch loads state: a run that was saved without names
    (``model.parameters()``) goes on with them, or the other way round.

    Args:
        saved: nested mappings, lists and numbers.
        before: the layers' names when it was saved, in the order of the parameters.
        now: their names today; nothing is renamed if these are the same names, or not as many.
    """
    saved = with_plain_names(saved)
    before = [plain_name(name) for name in before]
    if len(before) != len(now) or set(before) == set(now):
        return saved
    return _renamed(saved, dict(zip(before, now, strict=True)))


def _renamed(saved: Any, names: Mapping[str, str]) -> Any:
    """Return the data with names changed where a mapping's keys, or a list's items, are all such names."""
    if isinstance(saved, Mapping):
        of_layers = all(key in names for key in saved)
        return {names[k] if of_layers else k: _renamed(value, names) for k, value in saved.items()}
    if isinstance(saved, list):
        if all(isinstance(x, str) and x in names for x in saved):
            return [names[x] for x in saved]
        return [_renamed(x, names) for x in saved]
    return saved


def layer_names(index: int, group: Mapping[str, Any]) -> list[str]:
    """Return the names of a group's layers: one given per tensor, else ``group{i}.{j}``."""
    names, n = group.get("param_names"), len(group["params"])
    return list(names) if names and len(names) == n else names_by_position(index, n)


def names_by_position(index: int, n: int) -> list[str]:
    """Return the names of a group's ``n`` layers where none are given: ``group{i}.{j}``."""
    return [f"group{index}.{j}" for j in range(n)]


def add_to_meter(
    meter: Meter,
    group: Mapping[str, Any],
    names: Mapping[Tensor, str] | None = None,
    kept: Mapping[Tensor, str] | None = None,
) -> None:
    """Add a group's layers, named by the group, else by ``names``, else by position, without duplicates.

    A name that an earlier group has, as of another network, gets the group's name in front; one that is twice
    in a group is replaced by the position. ``kept``, the names of layers whose groups were edited by hand,
    takes precedence over all of them. Parts that wrappers add are removed, unless that would make two names
    the same.
    """
    index, params = len(meter.group_names), group["params"]
    title = plain_name(str(group.get("name", f"group{index}")))
    given = layer_names(index, group)
    if names and not group.get("param_names"):
        given = [names.get(p, name) for p, name in zip(params, given, strict=True)]
    if kept:
        given = [kept.get(p, name) for p, name in zip(params, given, strict=True)]
    taken = set(meter.names)
    layers: list[str] = []
    plain = [plain_name(name) for name in given]
    times = Counter([*plain, *(name for name, short in zip(given, plain, strict=True) if name != short)])
    for name, short, place in zip(given, plain, names_by_position(index, len(given)), strict=True):
        wanted = (short, name, f"{title}.{short}") if times[short] == 1 else (name,)
        layers.append(next((n for n in wanted if n not in taken), place))
        while layers[-1] in taken:
            layers[-1] += "'"
        taken.add(layers[-1])
    numel = [real_elements(p) for p in params]
    meter.add_group(title, layers, numel)
