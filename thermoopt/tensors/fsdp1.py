"""Parameters of FSDP1 (``FullyShardedDataParallel``): plain tensors that do not say of what they are part."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import Tensor

__all__ = ["check_whole", "is_cut", "see_parts"]

MARK = "_fsdp_flattened"
"""The attribute that FSDP1 sets on every parameter it manages."""

INSTEAD = (
    "Use fully_shard (FSDP2; fsdp_version=2 in Accelerate, ModelParallelStrategy in Lightning), DDP, or "
    "FSDP1 with sharding_strategy=NO_SHARD and use_orig_params=True"
)


def is_cut(params: Sequence[Tensor]) -> bool:
    """Whether FSDP1 has cut parameters into parts, of which this rank holds one each.

    A part of a parameter is a vector whatever the parameter was: where a matrix is left nothing was cut
    (``NO_SHARD``, or one rank). A flat parameter knows its size.

    Args:
        params: all layers of an optimizer.
    """
    own = [p for p in params if getattr(p, MARK, False)]
    flat = [p for p in own if hasattr(p, "_unpadded_unsharded_size")]
    if flat:
        return any(p.numel() < p._unpadded_unsharded_size.numel() for p in flat)
    return bool(own) and all(p.ndim < 2 for p in own)


def check_whole(params: Sequence[Tensor]) -> None:
    """Refuse to control parts of layers: every rank would decide for its own.

    Raises:
        ValueError: if FSDP1 has cut the parameters.
    """
    if is_cut(params):
        raise ValueError(
            "controller must be None with params that FullyShardedDataParallel (FSDP1) has cut: it would see "
            f"only this rank's parts, and ranks would decide differently. {INSTEAD}"
        )


def see_parts(params: Sequence[Tensor], controlled: bool) -> None:
    """Tell at the first step that readings are of parts; with a controller, refuse it.

    Raises:
        ValueError: as :func:`check_whole`, if ``controlled``.

    Warns:
        RuntimeWarning: if FSDP1 has cut the parameters.
    """
    if controlled:
        check_whole(params)
    elif is_cut(params):
        warnings.warn(
            "params are parts that FullyShardedDataParallel (FSDP1) has cut: readings are of this rank's "
            f"part only. {INSTEAD}",
            RuntimeWarning,
            stacklevel=3,
        )
