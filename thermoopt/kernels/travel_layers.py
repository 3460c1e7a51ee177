"""Memory layout of sampled layers and their gradients, as both kernels that sum a law's forces need it."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thermoopt.kernels.native_checks import PLAIN, same_layout

__all__ = ["TravelLayers", "are_views"]


def are_views(samples: Sequence[Tensor], params: Sequence[Tensor]) -> bool:
    """Whether samples are views of their layers' own memory."""
    return all(
        s.stride(-1) == 1 and s.untyped_storage().data_ptr() == p.untyped_storage().data_ptr()
        for s, p in zip(samples, params, strict=True)
    )


class TravelLayers:
    """Some layers of one dtype on one device, and their samples.

    Args:
        params: ``n`` layers.
        samples: views of them, ``[width]`` or ``[rows, width]`` each.

    Attributes:
        params_at: addresses of the layers, ``[n]``.
        offset: bytes from a layer's address to its sample's, ``[n]``.
    """

    def __init__(self, params: Sequence[Tensor], samples: Sequence[Tensor]) -> None:
        self._params = list(params)
        self._device, self._dtype = params[0].device, params[0].dtype
        self._addresses = list(map(_data_ptr, self._params))
        self._strided = not all(map(_is_contiguous, self._params))
        self.params_at = np.array(self._addresses, np.int64)
        self.offset = np.array(list(map(_data_ptr, samples)), np.int64) - self.params_at

    @property
    def stands(self) -> bool:
        """Whether the layers are still at the same addresses."""
        return self._addresses == list(map(_data_ptr, self._params))

    def grads_at(self, grads: Sequence[Tensor | None] | None = None) -> NDArray[np.int64] | None:
        """Return the gradients' addresses, ``[n]``, 0 for none, or None if one cannot be read.

        Args:
            grads: of the layers; None takes each layer's own, which shards have not.
        """
        grads = [p.grad for p in self._params] if grads is None else grads
        found, params = [g for g in grads if g is not None], self._params
        if len(found) < len(grads):
            params = [p for g, p in zip(grads, self._params, strict=True) if g is not None]
        if not self._can_read(found, params):
            return None
        return np.array([0 if g is None else _data_ptr(g) for g in grads], np.int64)

    def _can_read(self, grads: Sequence[Tensor], params: Sequence[Tensor]) -> bool:
        """Whether gradients are plain numbers with the memory layout of their parameters."""
        fine = (
            PLAIN.issuperset(map(type, grads))
            and {self._device}.issuperset(map(_device, grads))
            and {self._dtype}.issuperset(map(_dtype, grads))
            and {torch.strided}.issuperset(map(_layout, grads))
            and not any(map(_is_neg, grads))
        )
        if fine and self._strided:
            return all(map(same_layout, grads, params))
        return (
            fine and all(map(_is_contiguous, grads)) and list(map(_numel, grads)) == list(map(_numel, params))
        )


_data_ptr = torch._C.TensorBase.data_ptr
_is_neg = torch._C.TensorBase.is_neg
_is_contiguous = torch._C.TensorBase.is_contiguous
_numel = torch._C.TensorBase.numel
_device, _dtype, _layout = (operator.attrgetter(name) for name in ("device", "dtype", "layout"))
