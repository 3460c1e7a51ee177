"""The sampled coordinates of some layers of one device and precision, one after the other in flat buffers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thermoopt.kernels import PLAIN, Addresses, DeviceNumbers, TravelKernel, TravelPlan, travel_plan
from thermoopt.physics.travel import Weights
from thermoopt.tensors import precision
from thermoopt.tensors.sampling import in_order_of, sample
from thermoopt.tensors.sharding import is_distributed, local
from thermoopt.tensors.transit import WARM_UP, capturing, send

__all__ = ["Bucket", "wide"]

Array = NDArray[np.float64]

_data_ptr = torch._C.TensorBase.data_ptr

BATCHED = frozenset(("cuda",))
"""Kinds of devices on which a launch for each layer would take longer than the work: there samples are put
together by ``torch.cat``, which takes many tensors a launch, strided ones too (``_foreach_copy_`` takes those
one by one), and summed by segments."""


class Bucket:
    """Start, scratch and, where forces are summed, impulse S and work N of some layers.

    Args:
        index: where the layers stand among all.
        params: the layers.
        share: as returned by :func:`~thermoopt.tensors.sampling.share_of`.
    """

    def __init__(self, index: Sequence[int], params: Sequence[Tensor], share: int) -> None:
        self.params, self.index = list(params), np.asarray(index, dtype=np.int64)
        self._sharded = any(map(is_distributed, self.params))
        self.in_order = bool((np.diff(self.index) > 0).all())
        self._index_there: Tensor | None = None
        self._met: tuple[NDArray[np.int64], TravelKernel, NDArray[np.int64] | None] | None = None
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
        self._plan: TravelKernel | None = None
        self._numbers: DeviceNumbers | None = None
        self._looked = False
        self._batched = self.start.device.type in BATCHED
        ends = np.cumsum(sizes).tolist()
        self._runs: list[tuple[int, int, int, int]] = []
        for i, (shape, size, end) in enumerate(zip(self.shapes, sizes, ends, strict=True)):
            if i and shape[1:] == self.shapes[i - 1][1:]:
                first, _, begin, _ = self._runs.pop()
            else:
                first, begin = i, end - size
            self._runs.append((first, i + 1, begin, end))
        self._into(self.start, samples)

    def index_on(self, device: torch.device) -> Tensor:
        """Return where the layers stand on a device, sent once."""
        if self._index_there is None or self._index_there.device != device:
            self._index_there = send(self.index, device)
        return self._index_there

    def views(self, flat: Tensor) -> list[Tensor]:
        """Cut a flat buffer into the shapes of the samples."""
        parts = torch.tensor_split(flat, self.cuts) if len(self.shapes) > 1 else (flat,)
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def _into(self, flat: Tensor, samples: Sequence[Tensor]) -> None:
        if not self._batched:
            torch._foreach_copy_(self.views(flat), list(samples))
            return
        for first, last, begin, end in self._runs:
            flat[begin:end].copy_(torch.cat(tuple(samples[first:last])).view(-1))

    def _samples(self, params: Sequence[Tensor]) -> list[Tensor]:
        """Return the layers' samples; views of plain tensors are kept while these lie where they lay."""
        held = self._held(params)
        plain = PLAIN.issuperset(map(type, held))
        addresses = list(map(_data_ptr, held)) if plain else None
        if addresses is None or addresses != self._seen:
            self._views = [sample(p, self._share) for p in params]
            kept = [_is_view(v, p) for v, p in zip(self._views, held, strict=True)] if plain else [False]
            self._seen = addresses if all(kept) else None
            # size, strides and offset of a sample of anything that lies as its layer does
            self._cut = [
                (v.size(), v.stride(), v.storage_offset() - p.storage_offset(), p.stride())
                for v, p in zip(self._views, held, strict=True)
                if self._seen is not None
            ]
        return self._views

    def _held(self, params: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return what this rank holds of the layers: tensors that are not sharded as they are."""
        return list(map(local, params)) if self._sharded else params

    def displacement(self, params: Sequence[Tensor]) -> Tensor:
        """Return theta - x0 in the scratch buffer."""
        self._into(self.work, self._samples(params))
        return self.work.sub_(self.start)

    def own_grads(self) -> list[Tensor | None]:
        """Return what this rank holds of the gradients; once a step, as it may wait for the other ranks."""
        grads = [p.grad for p in self.params]
        if not self._sharded:
            return grads
        return [None if g is None else local(g, p) for g, p in zip(grads, self.params, strict=True)]

    def forces(self, params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> Tensor:
        """Samples of the gradients, :meth:`own_grads`, in a new flat buffer, 0 where there is none."""
        out = torch.empty_like(self.work)
        nothing = self.start.new_zeros(())
        found = [
            nothing.expand(shape)
            if grad is None or grad.is_sparse
            else self._sample_of_grad(i, p, grad).view(shape)
            for i, (p, grad, shape) in enumerate(zip(params, grads, self.shapes, strict=True))
        ]
        self._into(out, found)
        return out

    def _sample_of_grad(self, i: int, p: Tensor, grad: Tensor) -> Tensor:
        if self._seen is not None and type(grad) in PLAIN:
            size, stride, offset, layout = self._cut[i]
            if grad.stride() == layout:
                return torch.as_strided(grad, size, stride, grad.storage_offset() + offset)
        return sample(p, self._share, in_order_of(local(p), grad))

    def layer_sums(self, flat: Tensor) -> Tensor:
        """Sums of every layer's stretch of a flat buffer, ``[n]``."""
        if self._batched:  # one launch, whatever the number of layers
            return torch.segment_reduce(flat, "sum", lengths=self.sizes, unsafe=True)
        return torch.stack([x.sum() for x in torch.tensor_split(flat, self.cuts)])

    # ---------------------------------------------------------------- sums

    def sum_forces(self) -> None:
        """Let forces be summed, from nothing on."""
        self.impulse = torch.zeros_like(self.work)
        device = self.work.device
        self.done = torch.zeros(len(self.index), dtype=precision.widest(device), device=device)
        self._lost = torch.zeros_like(self.done)

    def put(self, rates: Array, weights: Weights) -> None:
        """Let captured graphs add their next step's forces at these rates, ``[n]``, and weights."""
        if self._plan is not None:
            self._plan.put(rates, weights.keep, weights.work, weights.impulse)
        if self._numbers is not None:
            self._send(rates, weights)

    def push(
        self,
        rates: Array,
        weights: Weights,
        base: Tensor | None,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
        at: Addresses | None,
    ) -> None:
        """Add the forces of the layers' gradients to N and S.

        Args:
            rates: ``[n]`` effective learning rates, or what ``base`` is multiplied by.
            weights: the weights of the step.
            base: learning rates on the device, of no dimension or ``[n]``.
            grad_scale, found_inf: the values of a fused GradScaler.
            at: where layers and gradients lie, if a kernel has checked them.
        """
        grads = self._grads(at) if at is not None and self._meet(at) else None
        plan, params, found = self._plan, self.params, None
        if grads is None:
            plan, found = self.plan(), self.own_grads()
            grads = None if plan is None else plan.grads_at(found)
        if plan is not None and grads is not None:
            own = None if base is None else base.to(self.start.device)
            numbers = (weights.keep, weights.work, weights.impulse)
            if plan.push(rates, *numbers, grad_scale, found_inf, own, grads):
                return
        if self._numbers is None:  # read when the operations run: a captured graph follows them
            if capturing():
                raise RuntimeError(WARM_UP)
            wide, there = precision.widest(self.start.device), self.start.device
            self._numbers = DeviceNumbers(len(rates) + 3, wide, there, baked=False)
        self._send(rates, weights)
        *_, forget, work_weight, weight = self._numbers.tensor.unbind()
        away, force = self.displacement(params), self.forces(params, found or self.own_grads())
        if grad_scale is not None:
            force.div_(grad_scale.to(force.device))
        force.nan_to_num_(0.0, 0.0, 0.0)
        own = self._numbers.tensor[:-3]
        if base is not None:
            own = own * base.to(own)
        # a skipped step keeps all and adds nothing; the flag stays on its device
        real = torch.ones_like(forget) if found_inf is None else (found_inf == 0).to(forget)
        rate = (own * real).to(force.dtype)
        force.mul_(torch.repeat_interleave(rate, self.sizes, output_size=force.numel()))
        forget = forget * real
        assert self.impulse is not None
        assert self.done is not None
        self.impulse.mul_((1 - forget).to(force.dtype)).add_(force * weight.to(force.dtype))
        work = self.layer_sums(away.mul_(force))
        done, self._lost = precision.forgetful_sum(self.done, self._lost, forget, -work * work_weight)
        self.done.copy_(done)

    def is_carried(self, at: Addresses) -> bool:
        """Whether the kernel that is about to step can add the forces on its way."""
        return at.step is not None and isinstance(self._plan, TravelPlan) and self._meet(at)

    def carry(self, weights: Weights, at: Addresses, due: bool) -> Tensor | None:
        """Have it add them; return squared displacement, absolute impulse and N, ``[n, 3]``, if due."""
        assert isinstance(self._plan, TravelPlan)
        assert self._met is not None
        assert at.step is not None
        grads = None if self._met[2] is None else self._grads(at)
        numbers = (weights.keep, weights.work, weights.impulse)
        return self._plan.carry(at.step, self._met[2], grads, *numbers, due)

    def _send(self, rates: Array, weights: Weights) -> None:
        assert self._numbers is not None
        numbers = np.append(rates, [1 - weights.keep, weights.work, weights.impulse])
        wide = self._numbers.tensor.dtype == torch.float64
        self._numbers.send(numbers if wide else numbers.astype(np.float32))

    def _meet(self, at: Addresses) -> bool:
        """Find the layers among those that a kernel has checked; return whether they lie where they lay."""
        if self._plan is None:
            return False
        if self._met is None or self._met[0] is not at.layer or self._met[1] is not self._plan:
            row = {int(layer): k for k, layer in enumerate(at.layer)}
            rows = np.array([row.get(layer, -1) for layer in self.index.tolist()])
            there = rows >= 0
            if not np.array_equal(at.params[rows[there]], self._plan.params_at[there]):
                return False
            whole = np.array_equal(rows, np.arange(len(at.layer)))
            self._met = at.layer, self._plan, None if whole else rows
        return True

    def _grads(self, at: Addresses) -> NDArray[np.int64]:
        """Return the addresses of the layers' gradients, 0 where there is none, of layers met."""
        assert self._met is not None
        kept = self._met[2]
        return at.grads if kept is None else np.where(kept >= 0, at.grads[kept], 0)

    def measure(self) -> tuple[Tensor, Tensor | None]:
        """Return squared displacement and, where forces are summed, absolute impulse, ``[n]`` each."""
        plan = self.plan()
        if plan is not None:
            distance2, impulse = plan.measure().unbind(dim=1)
            return distance2, None if self.impulse is None else impulse
        distance2 = self.layer_sums(self.displacement(self.params).square_())
        return distance2, None if self.impulse is None else self.layer_sums(self.impulse.abs())

    def plan(self) -> TravelKernel | None:
        """Return the kernel for the layers' sums, None where there is none that can read them."""
        if self._plan is None or not self._stands(self._plan):
            if capturing():
                if self._plan is None and self._looked:
                    return None
                raise RuntimeError(WARM_UP)
            samples, held = self._samples(self.params), self._held(self.params)
            self._plan = travel_plan(held, samples, self.start, self.impulse, self.done)
            self._looked = True
        return self._plan

    def _stands(self, plan: TravelKernel) -> bool:
        """Whether the layers are where the plan found them; a shard may be another tensor by now."""
        if self._sharded:
            return plan.params_at.tolist() == list(map(_data_ptr, self._held(self.params)))
        return plan.stands


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
