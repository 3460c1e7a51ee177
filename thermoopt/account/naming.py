"""The layers of a parameter group: what they are called and how large they are."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from thermoopt.account.meter import Meter
from thermoopt.kernels import real_elements

__all__ = ["add_to_meter", "layer_names"]

_FSDP1 = ("_fsdp_wrapped_module.", "_flat_param")
"""What FSDP1 puts into the names of parameters that are this rank's parts."""


def layer_names(index: int, group: Mapping[str, Any]) -> list[str]:
    """Names of a group's layers: those given, one a tensor, else ``group{i}.{j}``."""
    names, n = group.get("param_names"), len(group["params"])
    return list(names) if names and len(names) == n else [f"group{index}.{j}" for j in range(n)]


def add_to_meter(
    meter: Meter,
    group: Mapping[str, Any],
    names: Mapping[Tensor, str] | None = None,
    kept: Mapping[Tensor, str] | None = None,
) -> None:
    """Take in a group's layers: named by the group, else by ``names``, else by position, each name once.

    ``kept`` comes before all of them: names of layers of groups that were edited by hand.

    Warns:
        RuntimeWarning: if names are those of FSDP1, whose parameters do not tell that they are parts.
    """
    index, params = len(meter.group_names), group["params"]
    given = layer_names(index, group)
    if names and not group.get("param_names"):
        given = [names.get(p, name) for p, name in zip(params, given, strict=True)]
    if kept:
        given = [kept.get(p, name) for p, name in zip(params, given, strict=True)]
    if fsdp1 := [name for name in given if any(mark in name for mark in _FSDP1)]:
        warnings.warn(
            f"params holds {fsdp1[0]!r}, a local part that FullyShardedDataParallel (FSDP1) hands out: "
            "readings are of this rank's part only, and ranks may decide differently; of layers sharded by "
            "fully_shard (FSDP2) they are of the whole",
            RuntimeWarning,
            stacklevel=4,
        )
    taken = set(meter.names)
    layers: list[str] = []
    for j, name in enumerate(given):
        layers.append(f"group{index}.{j}" if name in taken else name)
        while layers[-1] in taken:
            layers[-1] += "'"
        taken.add(layers[-1])
    numel = [real_elements(p) for p in params]
    meter.add_group(str(group.get("name", f"group{index}")), layers, numel)
