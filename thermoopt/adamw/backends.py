"""Which backend an optimizer gets."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from torch import Tensor

from thermoopt.adamw.one_pass import OnePassBackend
from thermoopt.adamw.torch_backend import Backend, TorchBackend

__all__ = ["BACKENDS", "choose_backend", "dry_kernel"]

BACKENDS = ("auto", "torch", "native", "triton")
"""Names a user may ask for."""

_told: set[str] = set()


def choose_backend(name: object, groups: Iterable[Mapping[str, Any]]) -> Backend:
    """Return the backend of that name.

    ``"auto"`` takes the native kernel where it is available, the first parameter is on CPU, and some group
    leaves the choice open (neither ``fused`` nor ``foreach`` given, not ``differentiable``). It never takes
    the Triton kernel, which has not been run on a GPU yet: on CUDA the step is torch's.

    Args:
        name: one of :data:`BACKENDS`.
        groups: the optimizer's parameter groups.

    Raises:
        ValueError: for an unknown name, or a kernel asked for with ``foreach=True`` or ``fused=False``.
        RuntimeError: for a kernel that is not available; the message says why.
    """
    if not isinstance(name, str) or name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {name!r}")
    groups = list(groups)
    if name == "torch":
        return TorchBackend(name, dry_kernel(groups))
    if name != "auto":
        for group in groups:
            for flag, value in (("foreach", True), ("fused", False)):
                if group[flag] is value:
                    raise ValueError(
                        f"backend and {flag} exclude each other, got backend={name!r} and {flag}={value}"
                    )
        kernel = _kernel(name)
        if not kernel.available():
            raise RuntimeError(f"backend {name!r} is not available: {kernel.unavailable_reason()}")
        return OnePassBackend(name, name, kernel)
    free = any(g["fused"] is None and g["foreach"] is None and not g["differentiable"] for g in groups)
    if not (_on_cpu(groups) and free):
        return TorchBackend(name, dry_kernel(groups))
    kernel = _kernel("native")
    if kernel.available():
        return OnePassBackend("native", name, kernel)
    if not _told:
        _told.add("native")
        warnings.warn(
            f"the native backend is not available ({kernel.unavailable_reason()}); "
            "ThermoAdamW uses torch's own step and measures every 10th",
            UserWarning,
            stacklevel=4,
        )
    return TorchBackend(name)


def dry_kernel(groups: Iterable[Mapping[str, Any]]) -> ModuleType | None:
    """Return the native kernel, to measure with, where it is available and the first parameter on CPU."""
    kernel = _kernel("native") if _on_cpu(groups) else None
    return kernel if kernel is not None and kernel.available() else None


def _on_cpu(groups: Iterable[Mapping[str, Any]]) -> bool:
    first = next((p for group in groups for p in group["params"] if isinstance(p, Tensor)), None)
    return first is not None and first.device.type == "cpu"


def _kernel(name: str) -> ModuleType:
    # imported when first needed: loading a compiled library or Triton is nothing a plain import should do
    if name == "native":
        from thermoopt.kernels import native

        return native
    from thermoopt.kernels import triton

    return triton
