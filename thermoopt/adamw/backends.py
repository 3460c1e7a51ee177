"""Chooses an optimizer's backend."""

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

_KINDS = {"cpu": "native", "cuda": "triton"}
"""The kernel for each type of device."""

_told: set[str] = set()


def choose_backend(name: object, groups: Iterable[Mapping[str, Any]]) -> Backend:
    """Return the backend of that name.

    ``"auto"`` takes the native kernel for parameters on CPU and the Triton kernel for parameters on CUDA,
    where it is available (the first parameter decides) and some group leaves the choice open (neither
    ``fused`` nor ``foreach`` given, not ``differentiable``); otherwise the step is torch's.

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
                        f"backend and {flag} cannot be combined, got backend={name!r} and {flag}={value}"
                    )
        kernel = _kernel(name)
        if reason := _reason(kernel):
            raise RuntimeError(f"backend {name!r} is not available: {reason}")
        return OnePassBackend(name, name, kernel)
    free = any(g["fused"] is None and g["foreach"] is None and not g["differentiable"] for g in groups)
    kind = _kind(groups)
    if kind is None or not free:
        return TorchBackend(name, dry_kernel(groups))
    kernel = _kernel(kind)
    reason = _reason(kernel)
    if reason is None:
        return OnePassBackend(kind, name, kernel)
    _tell(kind, f"the {kind} backend is not available ({reason}); ThermoAdamW uses torch's own step")
    return TorchBackend(name)


def dry_kernel(groups: Iterable[Mapping[str, Any]]) -> ModuleType | None:
    """Return the kernel that measures on the first parameter's device, or None if there is none."""
    kind = _kind(groups)
    kernel = None if kind is None else _kernel(kind)
    return kernel if kernel is not None and _reason(kernel) is None else None


def _kind(groups: Iterable[Mapping[str, Any]]) -> str | None:
    """Name of the kernel for the device of the first parameter."""
    first = next((p for group in groups for p in group["params"] if isinstance(p, Tensor)), None)
    return None if first is None else _KINDS.get(first.device.type)


def _reason(kernel: ModuleType) -> str | None:
    """Return why a kernel cannot be used, or None; a kernel that compiles on first use is tried out."""
    return kernel.trial() if kernel.available() else kernel.unavailable_reason() or "it cannot run here"


def _tell(kind: str, message: str) -> None:
    """Warn once per process."""
    if kind not in _told:
        _told.add(kind)
        warnings.warn(f"{message} and measures every tenth one", UserWarning, stacklevel=5)


def _kernel(name: str) -> ModuleType:
    # imported when first needed: a plain import should not load a compiled library or Triton
    if name == "native":
        from thermoopt.kernels import native

        return native
    from thermoopt.kernels import triton

    return triton
