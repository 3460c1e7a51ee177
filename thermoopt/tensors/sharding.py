"""Sums over sharded parameters: each rank computes those of its shards, and one batch adds them up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thermoopt.tensors.transit import Arrival, Fetch

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["Sharding", "is_distributed", "local", "place"]


def is_distributed(x: Tensor) -> TypeGuard[DTensor]:
    """Whether a tensor is a DTensor: it has a mesh of ranks and a placement on each of its dimensions."""
    return getattr(x, "placements", None) is not None


def local(x: Tensor, like: Tensor | None = None) -> Tensor:
    """Return a DTensor's shard on this rank, the same object on every call; any other tensor unchanged.

    Under tensor parallelism a gradient's placement can differ from its parameter's: the gradient of a norm
    between sequence-parallel layers is a partial sum, that of an embedding sharded by rows is whole. Reducing
    it needs all ranks that share the parameter.

    Args:
        x: a parameter, its state or its gradient.
        like: the parameter whose placement the gradient ``x`` should get.
    """
    if not is_distributed(x):
        return x
    held: DTensor = x
    wanted = like.placements if like is not None and is_distributed(like) else held.placements
    if held.placements != wanted or any(placement.is_partial() for placement in held.placements):
        held = _laid_out(held, wanted)
    # to_local() makes a new view in each call, and kernels keep plans by identity
    shard: Any = held._local_tensor
    wait = getattr(shard, "wait", None)
    return shard if wait is None else wait()


def _laid_out(x: Any, placements: Any) -> Any:
    """Move a DTensor to other placements, reducing partial sums."""
    from torch.distributed.tensor import Replicate

    whole = [Replicate() if placement.is_partial() else placement for placement in placements]
    return x.detach().redistribute(x.device_mesh, whole)


def place(p: Tensor) -> list[int]:
    """Return which shard of a tensor this rank holds: an index per mesh dimension that shards it."""
    if not is_distributed(p):
        return []
    at = p.device_mesh.get_coordinate() or ()
    return [i for i, kind in zip(at, p.placements, strict=True) if not kind.is_replicate()]


class Sharding:
    """The ranks over which the sums of each layer are reduced.

    A layer's sums are reduced over the mesh dimensions that shard it and over no others: replicas (the outer
    dimension of HSDP, a norm under tensor parallelism) hold the same sums and would count twice. Plain
    tensors are not reduced: under DDP all ranks hold the same gradients. One all-reduce per mesh dimension
    covers all layers, and every rank takes part, whether or not it holds elements and gradients.

    Args:
        params: all layers, in the same order on all ranks.

    Attributes:
        shards: ``[n_layers]`` number of ranks that each layer's sums come from.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self.shards = np.ones(len(params), dtype=np.int64)
        self._device = torch.device("cpu")
        rows: dict[Any, list[int]] = {}
        for i, p in enumerate(params):
            if not is_distributed(p):
                continue
            mesh = p.device_mesh
            for dim, placement in enumerate(p.placements):
                if placement.is_replicate() or mesh.size(dim) == 1:
                    continue
                rows.setdefault(mesh.get_group(dim), []).append(i)
                self.shards[i] *= mesh.size(dim)
                if mesh.device_type != "cpu":
                    self._device = torch.device(mesh.device_type)
        self._groups = list(rows.items())
        self._stream: Any = None

    def __bool__(self) -> bool:
        """Whether anything has to be reduced."""
        return bool(self._groups)

    @property
    def device(self) -> torch.device:
        """The device on which the ranks' numbers must be for the reduction."""
        return self._device

    def start(self, rows: Tensor) -> Arrival:
        """Start summing ``[n_layers, k]`` numbers, float64, over the ranks that share each layer.

        All ranks must call this equally often. It does not wait, except on CPU for layers that are sharded on
        two mesh dimensions: there the first sum must be complete before the second.
        """
        if rows.device.type == "cuda":
            return self._start_on_stream(rows)
        *first, last = self._groups
        for group, index in first:
            _AddedUp(rows, group, index).finish()
        return _AddedUp(rows, *last)

    def add(self, rows: Tensor) -> Tensor:
        """Sum ``[n_layers, k]`` numbers, float64 on the host, over the ranks and wait for the result.

        Raises:
            RuntimeError: if the ranks' numbers could not be added up.
        """
        try:
            return torch.from_numpy(self.start(rows.to(self._device)).numpy())
        except RuntimeError as error:
            raise RuntimeError(
                "numbers of sharded layers could not be added up with those of the other ranks. Probably one "
                "of them has failed, or has not done what this one has: all ranks must create the optimizer, "
                f"Observer and ThermoScheduler, and call step() and state_dict(): {error}"
            ) from error

    def _start_on_stream(self, rows: Tensor) -> Arrival:
        """Reduce on a separate stream, so that neither the training stream nor the host waits."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(rows.device)
        self._stream.wait_stream(torch.cuda.current_stream(rows.device))
        with torch.cuda.stream(self._stream):
            for group, index in self._groups:
                _AddedUp(rows, group, index).finish()  # waits in the stream
            rows.record_stream(self._stream)
            return Fetch(rows)


class _AddedUp:
    """An all-reduce in progress, over some rows of a table."""

    def __init__(self, rows: Tensor, group: Any, index: Sequence[int]) -> None:
        import torch.distributed as dist

        self._rows = rows
        self._index = None if len(index) == len(rows) else list(index)
        self._part = rows if self._index is None else rows[self._index]
        self._work: Any = dist.all_reduce(self._part, group=group, async_op=True)

    def ready(self) -> bool:
        return self._work is None or self._work.is_completed()

    def finish(self) -> None:
        if self._work is not None:
            self._work.wait()
            self._work = None
            if self._index is not None:
                self._rows[self._index] = self._part

    def numpy(self) -> NDArray[np.float64]:
        self.finish()
        return self._rows.cpu().numpy()
