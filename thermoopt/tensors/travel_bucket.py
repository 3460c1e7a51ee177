"""The sampled coordinates of some layers of one device and precision, one after the other in flat buffers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from thermoopt.kernels import PLAIN, TravelPlan
from thermoopt.tensors.sampling import in_order_of, sample

__all__ = ["Bucket", "wide"]

_data_ptr = torch._C.TensorBase.data_ptr


class Bucket:
    """Start, scratch and, where forces are summed, impulse S and work N of some layers.

    Args:
        index: where the layers stand among all.
        params: the layers.
        share: as returned by :func:`~thermoopt.tensors.sampling.share_of`.
    """

    def __init__(self, index: Sequence[int], params: Sequence[Tensor], share: int) -> None:
        self.index = np.asarray(index, dtype=np.int64)
        self._share = share
        self._seen: list[int] | None = None
        samples = self._samples(params)
        sizes = [s.numel() for s in samples]
        self.cuts = np.cumsum(sizes)[:-1].tolist()
        self.shapes = [s.shape for s in samples]
        self.start = torch.empty(sum(sizes), dtype=samples[0].dtype, device=samples[0].device)
        self.sizes = torch.tensor(sizes, device=self.start.device)
        self.work = torch.empty_like(self.start, dtype=wide(samples[0].dtype))
        self.impulse: Tensor | None = None
        self.done: Tensor | None = None
        self._plan: TravelPlan | None = None
        self._into(self.start, samples)

    def views(self, flat: Tensor) -> list[Tensor]:
        """Cut a flat buffer into the shapes of the samples."""
        parts = torch.tensor_split(flat, self.cuts) if len(self.shapes) > 1 else (flat,)
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def _into(self, flat: Tensor, samples: Sequence[Tensor]) -> None:
        torch._foreach_copy_(self.views(flat), list(samples))

    def _samples(self, params: Sequence[Tensor]) -> list[Tensor]:
        """Return the layers' samples; views of plain tensors are kept while these lie where they lay."""
        plain = PLAIN.issuperset(map(type, params))
        addresses = list(map(_data_ptr, params)) if plain else None
        if addresses is None or addresses != self._seen:
            self._views = [sample(p, self._share) for p in params]
            kept = [_is_view(v, p) for v, p in zip(self._views, params, strict=True)] if plain else [False]
            self._seen = addresses if all(kept) else None
            # size, strides and offset of a sample of anything that lies as its layer does
            self._cut = [
                (v.size(), v.stride(), v.storage_offset() - p.storage_offset(), p.stride())
                for v, p in zip(self._views, params, strict=True)
                if self._seen is not None
            ]
        return self._views

    def displacement(self, params: Sequence[Tensor]) -> Tensor:
        """Return theta - x0 in the scratch buffer."""
        self._into(self.work, self._samples(params))
        return self.work.sub_(self.start)

    def forces(self, params: Sequence[Tensor]) -> Tensor:
        """Samples of the gradients in a new flat buffer, 0 where there is none."""
        out = torch.zeros_like(self.work)
        into, found = [], []
        for i, (view, p) in enumerate(zip(self.views(out), params, strict=True)):
            if p.grad is not None and not p.grad.is_sparse:
                into.append(view)
                found.append(self._sample_of_grad(i, p, p.grad))
        if into:
            torch._foreach_copy_(into, found)
        return out

    def _sample_of_grad(self, i: int, p: Tensor, grad: Tensor) -> Tensor:
        if self._seen is not None and type(grad) in PLAIN:
            size, stride, offset, layout = self._cut[i]
            if grad.stride() == layout:
                return torch.as_strided(grad, size, stride, grad.storage_offset() + offset)
        return sample(p, self._share, in_order_of(p, grad))

    def layer_sums(self, flat: Tensor) -> Tensor:
        """Sums of every layer's stretch of a flat buffer, ``[n]``."""
        if flat.is_cuda:  # one launch, whatever the number of layers
            return torch.segment_reduce(flat, "sum", lengths=self.sizes, unsafe=True)
        return torch.stack([x.sum() for x in torch.tensor_split(flat, self.cuts)])

    def plan(self, params: Sequence[Tensor]) -> TravelPlan | None:
        """Return the native body for the sums of the layers' forces, None where it cannot read them."""
        if self._plan is None or not self._plan.stands:
            self._plan = None
            assert self.impulse is not None
            assert self.done is not None
            if self.start.device.type == "cpu":
                samples = self._samples(params)
                if TravelPlan.takes(params, samples):
                    self._plan = TravelPlan(params, samples, self.start, self.impulse, self.done)
        return self._plan


def _is_view(view: Tensor, p: Tensor) -> bool:
    """Whether a sample is a view of its layer, of real numbers."""
    return (
        not p.is_complex()
        and not p.is_meta
        and view.untyped_storage().data_ptr() == p.untyped_storage().data_ptr()
    )


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the precision in which differences and sums of a precision are kept."""
    return torch.float64 if dtype == torch.float64 else torch.float32
