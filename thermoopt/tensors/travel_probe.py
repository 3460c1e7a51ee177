"""How far a run has moved from its start: the sums that control laws ask for, on a sample of coordinates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thermoopt.kernels import Addresses, real_elements
from thermoopt.physics.travel import TRAVEL_SUMS, Travel, Weights
from thermoopt.tensors import precision, travel_bucket
from thermoopt.tensors.layout import follow_layers, holds_numbers
from thermoopt.tensors.sampling import (
    gathered,
    is_gatherable,
    own_part,
    real,
    sample,
    sample_scale,
    sample_size,
    share_of,
)
from thermoopt.tensors.sharding import Sharding, local
from thermoopt.tensors.transit import Arrival, Fetch
from thermoopt.tensors.travel_bucket import Bucket, wide

__all__ = ["PendingTravel", "TravelProbe"]

Array = NDArray[np.float64]


class PendingTravel:
    """Sums on their way to the host."""

    def __init__(self, layers: int, scale: Array) -> None:
        self._rows: dict[str, list[tuple[NDArray[np.int64], Fetch]]] = {
            "distance2": [],
            "work": [],
            "impulse": [],
        }
        self._layers = layers
        self._scale = scale
        self._settled: Travel | None = None
        self._coming: Arrival | None = None

    def add(self, name: str, index: NDArray[np.int64], values: Tensor) -> None:
        """Add one device's part."""
        self._rows[name].append((index, Fetch(values)))

    def replace(self, name: str, index: NDArray[np.int64], values: Tensor) -> None:
        """Put other values in the place of one device's part."""
        self._rows[name] = [row for row in self._rows[name] if row[0] is not index]
        self.add(name, index, values)

    def ready(self) -> bool:
        """Whether everything has arrived."""
        return all(fetch.ready() for rows in self._rows.values() for _, fetch in rows)

    def rows(self, device: torch.device) -> Tensor:
        """Return the scaled sums as ``[n_layers, 3]`` in float64 on a device, without waiting for it."""
        out = torch.zeros(self._layers, len(self._rows), dtype=torch.float64, device=device)
        for column, parts in enumerate(self._rows.values()):
            for index, fetch in parts:
                out[torch.from_numpy(index).to(device), column] = fetch.source.to(out)
        return out * torch.from_numpy(self._scale).to(device)[:, None]

    def add_up(self, sharding: Sharding) -> None:
        """Start summing over the ranks, all of which must do the same."""
        self._coming = sharding.start(self.rows(sharding.device))

    def settle(self, rows: Array) -> None:
        """Set the sums over all ranks, ``[n_layers, 3]``; :meth:`rows` returned this rank's."""
        self._settled = Travel(*(column.copy() for column in rows.T))

    def travel(self) -> Travel:
        """Return the sums, scaled from the sample to all elements, waiting for them if necessary."""
        if self._coming is not None:
            self.settle(self._coming.numpy())
            self._coming = None
        if self._settled is not None:
            return self._settled
        out = {}
        for name, rows in self._rows.items():
            values = np.zeros(self._layers)
            for index, fetch in rows:
                values[index] = fetch.numpy()
            out[name] = values * self._scale
        return Travel(**out)


class TravelProbe:
    """Measures how far sampled coordinates have moved from their start, and which forces moved them.

    Memory: the start of one coordinate in 17 (of all, for up to 16,384 in total), the same again as scratch,
    and, for laws that need ``"impulse"``, the same again for S and, during a step, for the gradients' sample.
    Samples are blocks of 16 contiguous elements.

    Args:
        needs: names from :data:`TRAVEL_SUMS`.

    Raises:
        ValueError: for any other name.
    """

    def __init__(self, needs: Iterable[str]) -> None:
        self.needs = frozenset(needs)
        unknown = self.needs - set(TRAVEL_SUMS)
        if unknown:
            raise ValueError(f"needs must hold only {', '.join(TRAVEL_SUMS)}, got {sorted(unknown)}")
        self.forget()

    def forget(self) -> None:
        """Forget everything: the next measured step becomes the start."""
        self._buckets: list[Bucket] = []
        self._params: list[Tensor] = []
        self._scale = np.zeros(0)
        self._saved: dict[int, tuple[Tensor, Tensor | None, Tensor | None]] = {}
        self._saved_of: dict[int, int] = {}  # by the tensor's identity

    @torch.no_grad()
    def start(self, params: Sequence[Tensor]) -> None:
        """Take the present parameters as the start of layers that are not known yet.

        Args:
            params: all layers in order; known ones keep their start, wherever their tensor stands now, and
                so does one that was put into the place of another of its shape.
        """
        if len(params) == len(self._params) and all(
            a is b for a, b in zip(params, self._params, strict=True)
        ):
            return
        if self._params:
            old, before = self._export(), follow_layers([self._params], [params])
        else:
            old, before = self._saved, [self._saved_of.get(id(p)) for p in params]
        kept = {i: old[j] for i, j in enumerate(before) if j is not None and j in old}
        loaded, self._params = bool(self._saved), list(params)
        share = share_of(sum(real_elements(p) for p in params))
        groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        widths: dict[int, torch.Size] = {}
        self._scale = np.ones(len(params))
        self._share = share
        here = np.zeros(len(params))
        for i, p in enumerate(params):
            if not holds_numbers(local(p)):
                continue
            own = sample(p, share)
            if own.numel():
                here[i] = 1.0
                groups.setdefault((own.device, own.dtype), []).append(i)
                widths[i] = own.shape[1:]
            self._scale[i] = sample_scale(p, share)
        for (device, _), index in groups.items():
            if device.type in travel_bucket.BATCHED:
                index.sort(key=widths.__getitem__)  # what can be put together in one launch
        self._buckets = [Bucket(index, [params[i] for i in index], share) for index in groups.values()]
        if loaded and (sharding := Sharding(params)):
            kept = _divided(kept, here, sharding)
        for bucket in self._buckets:
            if "impulse" in self.needs:
                bucket.sum_forces()
            self._restore(bucket, kept)
        self._saved, self._saved_of = {}, {}

    @torch.no_grad()
    def push(
        self,
        lrs: Sequence[float | Tensor] | Array,
        weights: Weights,
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
        *,
        base: Tensor | None = None,
        at: Addresses | None = None,
    ) -> None:
        """Add the forces of the next step to N and S; needs ``"impulse"``.

        Non-finite elements of a gradient are left out, and so is a step that a GradScaler skips. Rates and
        weights are read from the device when the sums are formed: replays of a captured graph take those that
        were :meth:`put` last.

        Args:
            lrs: effective learning rate of each layer, negative under ``maximize``.
            weights: the weights of the step in the sums.
            grad_scale, found_inf: the values of a fused GradScaler.
            base: a learning rate on a device, of no dimension or ``[n_layers]``, that ``lrs`` are factors on.
            at: where layers and gradients lie, if a kernel is about to read them.
        """
        rates, base = _host_and_device(lrs, base)
        for bucket in self._buckets:
            own = base if base is None or base.ndim == 0 else base[bucket.index_on(base.device)]
            mine = rates if bucket.in_order and len(bucket.index) == len(rates) else rates[bucket.index]
            bucket.push(mine, weights, own, grad_scale, found_inf, at)

    def is_carried(self, at: Addresses) -> bool:
        """Whether the kernel that is about to step can add its forces on its way.

        Args:
            at: where layers and gradients lie.
        """
        return "impulse" in self.needs and all(bucket.is_carried(at) for bucket in self._buckets)

    def carry(self, weights: Weights, at: Addresses, due: bool) -> PendingTravel | None:
        """Have the kernel that is about to step add its forces, as :meth:`push` would; it :meth:`is_carried`.

        Args:
            weights: the weights of the step in the sums.
            at: where layers and gradients lie.
            due: whether to return the sums that :meth:`measure` would start computing then.
        """
        pending = PendingTravel(len(self._params), self._scale) if due else None
        for bucket in self._buckets:
            sums = bucket.carry(weights, at, due)
            if pending is not None and sums is not None:  # they are written during the step
                for name, column in zip(("distance2", "impulse", "work"), sums.unbind(dim=1), strict=True):
                    pending.add(name, bucket.index, column)
        return pending

    def put(self, lrs: Array, weights: Weights) -> None:
        """Let replays of a captured :meth:`push` take these rates and weights."""
        for bucket in self._buckets:
            bucket.put(lrs[bucket.index], weights)

    @torch.no_grad()
    def measure(self) -> PendingTravel:
        """Start computing the sums at the present parameters."""
        pending = PendingTravel(len(self._params), self._scale)
        for bucket in self._buckets:
            distance2, impulse = bucket.measure()
            pending.add("distance2", bucket.index, distance2)
            if impulse is not None and bucket.done is not None:
                pending.add("work", bucket.index, bucket.done.clone())
                pending.add("impulse", bucket.index, impulse)
        return pending

    @torch.no_grad()
    def measure_forces(self, pending: PendingTravel) -> None:
        """Put the forces summed since :meth:`measure` in the place of those before: a graph was replayed."""
        for bucket in self._buckets:
            if bucket.impulse is not None and bucket.done is not None:
                _, impulse = bucket.measure()
                assert impulse is not None
                pending.replace("work", bucket.index, bucket.done.clone())
                pending.replace("impulse", bucket.index, impulse)

    def _export(self) -> dict[int, tuple[Tensor, Tensor | None, Tensor | None]]:
        """Return start, impulse and work by layer."""
        out = {}
        for bucket in self._buckets:
            impulses = [None] * len(bucket.index) if bucket.impulse is None else bucket.views(bucket.impulse)
            for column, (i, start, impulse) in enumerate(
                zip(bucket.index.tolist(), bucket.views(bucket.start), impulses, strict=True)
            ):
                done = None if bucket.done is None else bucket.done[column]
                out[i] = (start, impulse, done)
        return out

    def _restore(
        self, bucket: Bucket, kept: Mapping[int, tuple[Tensor, Tensor | None, Tensor | None]]
    ) -> None:
        starts = bucket.views(bucket.start)
        impulses = [None] * len(starts) if bucket.impulse is None else bucket.views(bucket.impulse)
        for column, (i, start, impulse) in enumerate(
            zip(bucket.index.tolist(), starts, impulses, strict=True)
        ):
            old = kept.get(i)
            if old is not None and old[0].numel() != start.numel():
                old = self._thinned(i, *old)
            if old is None:
                continue
            start.copy_(old[0].view_as(start))
            if impulse is not None and old[1] is not None:
                impulse.copy_(old[1].view_as(impulse))
            if bucket.done is not None and old[2] is not None:
                bucket.done[column] = old[2]

    def _thinned(
        self, layer: int, start: Tensor, impulse: Tensor | None, work: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
        """Sample the state of a layer that was kept whole, once added layers have made the model large."""
        p = self._params[layer]
        if start.numel() != real(p).numel():
            return None  # another layout: the layer starts over
        return (
            sample(p, self._share, start.reshape(-1)),
            None if impulse is None else sample(p, self._share, impulse.reshape(-1)),
            None if work is None else work / float(self._scale[layer]),
        )

    @torch.no_grad()
    def export_layers(self, layers: Sequence[int], params: Sequence[Tensor], total: int) -> dict[str, Tensor]:
        """Return all that is needed to resume some layers: flat CPU tensors, the same on all ranks.

        Parts of layers that are sharded by rows are gathered from the ranks, all of which must call this; the
        state then fits any number of ranks. Layers sharded in other ways are left out. Before the first step
        the present parameters are the start.

        Args:
            layers: indices of the layers.
            params: their tensors.
            total: number of real elements of all layers.
        """
        begun = bool(self._params or self._saved)
        state, share = self._export() if self._params else self._saved, share_of(total)
        parts: dict[str, list[Tensor]] = {}
        for i, p in zip(layers, params, strict=True):
            start, impulse, work = state.get(i, (None if begun else sample(p, share), None, None))
            sharding = Sharding([p])
            if not sample_size(p, share) or not is_gatherable(p) or not (sharding or start is not None):
                continue
            if start is None:
                start = real(p).new_zeros(0)  # all sampled elements are other ranks'
            parts.setdefault("travel_start", []).append(gathered(p, share, start, sharding, edge=p))
            if "impulse" in self.needs:
                own = impulse
                if own is None:
                    own = torch.zeros(start.numel(), dtype=wide(start.dtype), device="cpu")
                done = torch.zeros(1, 1, dtype=torch.float64, device="cpu")
                if work is not None:
                    done += work.cpu()
                parts.setdefault("travel_impulse", []).append(gathered(p, share, own, sharding))
                parts.setdefault("travel_work", []).append((sharding.add(done) if sharding else done)[0])
        return {name: torch.cat(rows) for name, rows in parts.items()}

    def import_layers(
        self, layers: Sequence[int], params: Sequence[Tensor], total: int, saved: Mapping[str, Any]
    ) -> bool:
        """Load the result of :meth:`export_layers`; it takes effect when the probe starts.

        Args:
            layers: indices of the layers that the state belongs to.
            params: their tensors.
            total: number of real elements of all layers, which decides how samples are taken.
            saved: mapping that may hold the keys; state in another layout is ignored, and those layers start
                over.

        Returns:
            Whether it held the start of every layer that has elements.
        """
        start = saved.get("travel_start")
        share = share_of(total)
        sizes = [sample_size(p, share) for p in params]
        kept = [(i, p, n) for i, p, n in zip(layers, params, sizes, strict=True) if n and is_gatherable(p)]
        whole = len(kept) == sum(n > 0 for n in sizes)
        if not kept:
            return whole
        cuts = [n for _, _, n in kept]
        if not isinstance(start, Tensor) or sum(cuts) != start.numel():
            return False
        impulse, work = saved.get("travel_impulse"), saved.get("travel_work")
        impulses = impulse.split(cuts) if isinstance(impulse, Tensor) else [None] * len(cuts)
        works = list(work) if isinstance(work, Tensor) else [None] * len(cuts)
        for (i, p, _), a, b, c in zip(kept, start.split(cuts), impulses, works, strict=True):
            own = None if b is None else own_part(p, share, b)
            # of the work each rank has the same part until it is known which of them hold elements
            part = None if c is None else c / int(Sharding([p]).shards[0])
            self._saved_of[id(p)] = i
            self._saved[i] = (own_part(p, share, a), own, part)
        return whole


def _divided(
    kept: Mapping[int, tuple[Tensor, Tensor | None, Tensor | None]], here: Array, sharding: Sharding
) -> dict[int, tuple[Tensor, Tensor | None, Tensor | None]]:
    """Divide loaded work, so far in equal parts for all, among the ranks that sample elements of its layer.

    A rank without any has no place for its part. All ranks must call it.

    Args:
        kept: start, impulse and work by layer.
        here: ``[n_layers]`` 1 where this rank samples elements, else 0.
        sharding: of all layers.
    """
    ranks = sharding.add(torch.from_numpy(here)[:, None].clone()).numpy()[:, 0]
    part = here * sharding.shards / np.maximum(ranks, 1.0)
    return {i: (x0, s, None if work is None else work * float(part[i])) for i, (x0, s, work) in kept.items()}


def _host_and_device(
    lrs: Sequence[float | Tensor] | Array, base: Tensor | None
) -> tuple[Array, Tensor | None]:
    """Tell rates apart: numbers, and what is on a device and is not waited for."""
    if isinstance(lrs, np.ndarray):
        return lrs, base
    device = next((lr.device for lr in lrs if isinstance(lr, Tensor) and lr.device.type != "cpu"), None)
    if device is None:
        return np.array([float(lr) for lr in lrs]), base
    dtype = precision.widest(device)
    rates = [
        lr.detach().to(device, dtype).reshape(())
        if isinstance(lr, Tensor)
        else torch.full((), lr, dtype=dtype, device=device)
        for lr in lrs
    ]
    return np.ones(len(lrs)), torch.stack(rates)
