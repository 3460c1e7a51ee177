"""Launches of Triton kernels that repeat: what Triton finds out about the arguments is kept."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from thermoopt.kernels.triton_kernels import IMPORT_ERROR

__all__ = ["Launch"]

KEEPS = False
"""Whether a compiled kernel takes all arguments in order, constants included; not before Triton 3.3."""

if IMPORT_ERROR is None:
    import triton

    KEEPS = tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 3)


class Launch:
    """One place from which a kernel is launched, in most steps with the same arguments.

    Triton looks at every argument of a launch to find the kernel compiled for its type, alignment and value,
    which takes several times as long as the launch. A launch with the very same objects repeats the last.
    """

    def __init__(self) -> None:
        self._kernel: Any = None
        self._compiled: Any = None
        self._given: tuple[Any, ...] = ()
        self._constants: Mapping[str, Any] = {}
        self._rest: tuple[Any, ...] = ()

    def __call__(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        args: tuple[Any, ...],
        constants: Mapping[str, Any],
        *,
        owned: bool = True,
        **options: Any,
    ) -> None:
        """Launch a kernel.

        Args:
            kernel: a function made by ``triton.jit``; its constants are the last of its parameters.
            grid: number of programs along three axes.
            args: all arguments before the constants.
            constants: by name, in order.
            owned: whether no tensor among the arguments can come to lie elsewhere and stay the same object,
                as tensors given by a user can.
            options: of the compiler, the same in every launch from this place. Multiply-adds are never fused
                by it: a step must give the same bits whether it is measured or not.
        """
        if (
            self._compiled is not None
            and owned
            and self._kernel is kernel
            and len(args) == len(self._given)
            and all(map(operator.is_, args, self._given))
            and constants == self._constants
        ):
            self._compiled[grid](*args, *self._rest)
            return
        compiled = kernel[grid](*args, **constants, enable_fp_fusion=False, **options)
        self._compiled = compiled if KEEPS and owned else None  # None from the interpreter
        self._kernel, self._given = kernel, args
        self._constants, self._rest = dict(constants), tuple(constants.values())
