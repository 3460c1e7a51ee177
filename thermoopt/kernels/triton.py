r"""One AdamW step and its sums on CUDA: one Triton launch for every tensor of every group.

A table holds the address of each tensor, a map gives each program its tensor and chunk, and each program
updates its chunk and writes one float32 partial sum per column. A second kernel adds a column of a tensor's
partial sums in float64, always in the same order, so two runs give the same bits. Settings that belong to a
tensor (learning rate, bias corrections, ...) are first computed in float64 by a small kernel, which also
counts the steps. Nothing waits for the device; settings given as device tensors are read when the kernels
run, so a captured CUDA graph follows them.

The update is that of ``torch.optim.AdamW(fused=True)`` in float32, to a few units in the last place: torch
does part of its arithmetic in float64, and divides where this kernel multiplies by an inverse. For weights of
16 bits, root and inverse are approximate, to 2**-22. Multiply-adds are explicit and the compiler may fuse no
others, so a step gives the same bits whether it is measured or not. A sum differs from the float64 reference
by less than 1e-6 of the sum of the absolute values of its terms.

This module's speed has not been measured on a GPU. It is tested with Triton's interpreter only
(``TRITON_INTERPRET=1``), and compiled but not run by Triton 3.2 to 3.7 (docs/gpu.md);
``benchmarks/overhead/cuda.py`` measures it.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thermoopt.kernels import triton_launch
from thermoopt.kernels.look import Look
from thermoopt.kernels.triton_account import account_kernel
from thermoopt.kernels.triton_checks import (
    alike,
    check_averages,
    check_owned,
    ineligible,
    kinds,
    miscounts,
    readable,
    unavailable_reason,
)
from thermoopt.kernels.triton_chunks import BLOCK, ChunkMap, blocks_of_a_chunk
from thermoopt.kernels.triton_kernels import (
    IMPORT_ERROR,
    INTERPRETED,
    adamw_kernel,
    reduce_kernel,
    settings_kernel,
)
from thermoopt.kernels.triton_launch import Launch
from thermoopt.kernels.triton_tables import DeviceNumbers, Setting, SettingsTable
from thermoopt.kernels.triton_trial import two_steps
from thermoopt.physics.sums import Sum

if IMPORT_ERROR is None:
    import triton.language as tl

__all__ = ["INTERPRETED", "Plan", "Setting", "available", "ineligible", "unavailable_reason"]

NUM_WARPS = 4
"""Warps per program: with 80 registers a thread (ptxas) six programs fit a multiprocessor (unmeasured)."""

TENSORS_PER_PROGRAM = 32
"""Rows of settings that a program of one warp computes, in float64, of which consumer cards do two a clock
(any power of two works)."""

REDUCE_BLOCK = 1024
"""Partial sums of a column added at a time, eight a thread: 8 M elements take two rounds (unmeasured)."""

ACCOUNT_BLOCK = 32
"""Layers that a program of the last kernel averages."""

SETTINGS = 16
"""Numbers that the first kernel computes for each tensor; 15 are used."""

ON_DEVICE = True
"""Averages are kept on the device: the host knows nothing of a step when it returns."""


@functools.cache
def trial() -> str | None:
    """Take two steps of two small tensors; return why the kernels cannot be compiled or run here, or None.

    The first trial in a process compiles the kernels, or finds them in Triton's cache. Where a second step
    fails because it repeats the launches of the first, Triton looks at every launch from then on.
    """
    device = torch.device("cpu" if INTERPRETED else "cuda")
    reason = two_steps(Plan, device)
    if reason is not None and triton_launch.KEEPS:
        triton_launch.KEEPS = False
        if two_steps(Plan, device) is None:
            return None
        triton_launch.KEEPS = True
    return reason


def available() -> bool:
    """Whether these kernels can run in this process."""
    return unavailable_reason() is None


class Plan:
    """The tensors of one step of all groups on one device, with the tables that launch it.

    Build it once, and again when the set of tensors changes (a new parameter, other state after
    ``load_state_dict``). Moved storage of the same tensors is noticed at the next step.

    Args:
        params, exp_avgs, exp_avg_sqs, steps: ``n`` tensors each, see :func:`ineligible`.
        max_exp_avg_sqs: ``n`` entries, a tensor where amsgrad is on, ``None`` where it is off.
        names: of the tensors, for error messages; by default their indices.
        dry: for steps that write nothing. Step counts may then be on the host, and are read each time.
        block, blocks_per_chunk, num_warps: launch shape; powers of two. None is what suits the number of
            elements.

    Attributes:
        params_at: addresses of the parameters in the last step, ``[n]``.
        refused: always None: the device decides whether a step's sums enter the averages.

    Raises:
        RuntimeError: the kernels cannot run here, see :func:`unavailable_reason`.
        ValueError: no tensors, lists of unequal length, several devices, a tensor that is not eligible, or
            two tensors that share memory.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        exp_avgs: Sequence[Tensor],
        exp_avg_sqs: Sequence[Tensor],
        max_exp_avg_sqs: Sequence[Tensor | None],
        steps: Sequence[Tensor],
        *,
        names: Sequence[str] | None = None,
        dry: bool = False,
        block: int = BLOCK,
        blocks_per_chunk: int | None = None,
        num_warps: int = NUM_WARPS,
    ) -> None:
        reason = unavailable_reason()
        if reason is not None:
            raise RuntimeError(f"the Triton kernels cannot run here: {reason}")
        self._n = n = len(params)
        if n == 0 or {len(x) for x in (exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps)} != {n}:
            raise ValueError("a plan needs one or more parameters and as many entries in every other list")
        self._names = [f"tensor {i}" for i in range(n)] if names is None else list(names)
        self._params, self._exp_avgs, self._exp_avg_sqs = list(params), list(exp_avgs), list(exp_avg_sqs)
        self._maxima, self._given_steps = list(max_exp_avg_sqs), list(steps)
        self._device = params[0].device
        self._dry, self._counts, self._steps = dry, None, self._given_steps
        if dry and any(miscounts(step, self._device) for step in steps):
            self._counts = DeviceNumbers(n, torch.float32, self._device, baked=False)
            self._steps = list(self._counts.tensor.unbind())
        # the rows of the address table that the plan owns; a missing maximum is never read
        maxima = [p if x is None else x for p, x in zip(self._params, self._maxima, strict=True)]
        self._owned = [*self._params, *self._exp_avgs, *self._exp_avg_sqs, *maxima, *self._steps]
        self._numels, self._kinds = [p.numel() for p in self._params], kinds(self._params)
        self._check_owned()
        blocks = blocks_per_chunk or blocks_of_a_chunk(sum(self._numels))
        self._block, self._chunk, self._num_warps = block, block * blocks, num_warps
        self._addresses = DeviceNumbers(6 * n, torch.int64, self._device, baked=True)
        self._table = SettingsTable(n, self._device)
        self._contiguous = all(map(Tensor.is_contiguous, self._params))
        self._look = Look.like([*self._owned, *self._params])  # gradients are like their parameters
        self._packed = np.zeros(6 * n, dtype=np.int64)
        self._settings = torch.zeros(n, SETTINGS, dtype=torch.float64, device=self._device)
        self._sums = torch.zeros(n, len(Sum), dtype=torch.float64, device=self._device)
        self._flags = torch.zeros(2, dtype=torch.int32, device=self._device)
        self._averages: tuple[Tensor, Tensor, Tensor] | None = None
        self._layers = 0
        self._launch_settings, self._launch_reduce, self._launch_account = Launch(), Launch(), Launch()
        self.refused: str | None = None
        cut = [(p.dtype, x is not None) for p, x in zip(self._params, self._maxima, strict=True)]
        self._chunks = ChunkMap(cut, self._numels, self._chunk, self._device)
        self._launch_parts = [Launch() for _ in self._chunks.parts]
        # allocated here: memory allocated during a capture belongs to its graph
        self._partials = torch.empty(len(Sum), self._chunks.count, dtype=torch.float32, device=self._device)

    @property
    def t(self) -> Tensor:
        """Step counts of the last step, ``[n]``, float64 on the device: what the next one overwrites."""
        return self._settings[:, 14]

    def put(self, **settings: Setting) -> None:
        """Make graphs that captured a step replay it with these numbers, named as in :meth:`step`.

        Device tensors are read in place and need no call.
        """
        self._table.place(settings)

    def average_into(self, table: Tensor, run: Tensor, layer: NDArray[np.int64]) -> None:
        """Count steps that are given a ``number``, and average their sums into a table.

        Args:
            table: ``[STATE_ROWS, n_layers]`` as of a :class:`~thermoopt.account.Meter`, float64, contiguous.
            run: ``[8]``, float64: step, readings, last step averaged, the four counts of
                :data:`~thermoopt.account.SKIP_CAUSES`, and 1 - 1 / length of the average.
            layer: ``[n]`` column of each tensor, each at most once.

        Raises:
            ValueError: if they are of another shape, type or device.
        """
        check_averages(table, run, layer, len(self._params), self._device)
        self._averages = table, run, torch.tensor(layer, dtype=torch.int32, device=self._device)
        self._layers = table.shape[1]

    @torch.no_grad()
    def step(
        self,
        grads: Sequence[Tensor],
        *,
        lr: Setting,
        weight_decay: Setting,
        beta1: Setting,
        beta2: Setting,
        eps: Setting,
        maximize: bool | Sequence[bool] | NDArray[np.bool_],
        factor: Setting = 1.0,
        measure: bool = True,
        number: int | None = None,
        half: int | None = None,
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
        before: Callable[[NDArray[np.int64]], None] | None = None,
    ) -> Tensor | None:
        r"""Take one AdamW step in place, counting it in ``steps``.

        .. math::
            \theta \leftarrow (1-\eta\lambda)\,\theta - \eta\,\hat m / (\sqrt{\hat v} + \epsilon)

        Args:
            grads: ``n`` gradients; written only with ``grad_scale``, which unscales them.
            lr: learning rate, see :data:`Setting`; a tensor on the CPU counts as numbers.
            weight_decay: decoupled, as in :class:`torch.optim.AdamW`, see :data:`Setting`.
            beta1: decay of the first moment, see :data:`Setting`.
            beta2: decay of the second moment, see :data:`Setting`.
            eps: added to the root of the second moment, see :data:`Setting`.
            maximize: for all tensors, or one per tensor.
            factor: on the learning rate, see :data:`Setting`.
            measure: whether to compute the sums.
            number: unless None, the step is counted in the run and, if it is measured, averaged into the
                table of :meth:`average_into`. The device keeps the number itself, so that replays of a
                graph count as well.
            half: not used: all elements are read (:meth:`thermoopt.kernels.native.Plan.step`).
            grad_scale: one-element device tensor that the gradients are divided by.
            found_inf: one-element device tensor; if it is not 0, nothing moves and the sums are 0.
            before: called with the gradients' addresses after all checks and before anything is written.

        Returns:
            Tensor ``[n, len(Sum)]``, float64, on the device (units: :class:`~thermoopt.physics.Sum`), or
            ``None`` without ``measure``. It is a new one unless the step is averaged.

        Raises:
            ValueError: a wrong number of gradients or settings, or a tensor that is not eligible any more.
            RuntimeError: a second CUDA graph capture with no step outside of capture in between.
        """
        self._locate(grads)
        settings = self._table.place(
            {
                "lr": lr,
                "factor": factor,
                "weight_decay": weight_decay,
                "beta1": beta1,
                "beta2": beta2,
                "eps": eps,
                "maximize": maximize,
            }
        )
        into = self._averages if number is not None else None
        if before is not None:
            before(self._packed[5 * len(self._params) :])
        return self._launch(settings, self._near(grad_scale), self._near(found_inf), measure, into)

    def _launch(
        self,
        settings: Sequence[Any],
        scale: Tensor | None,
        stop: Tensor | None,
        measure: bool,
        into: tuple[Tensor, Tensor, Tensor] | None,
    ) -> Tensor | None:
        """Launch the kernels of a step, which is all that a graph captures of it."""
        n, addresses, chunks = self._n, self._addresses.tensor, self._chunks
        table, run, layer = into or (None, None, None)
        flags = None if run is None else self._flags
        owned = scale is None and stop is None and self._table.owned
        with self._current_device():
            self._launch_settings(
                settings_kernel,
                (-(-n // TENSORS_PER_PROGRAM), 1, 1),
                (addresses, self._settings, stop, *settings, run, self._flags, n),
                {"DRY": self._dry, "BLOCK": TENSORS_PER_PROGRAM},
                owned=owned,
                num_warps=1,
            )
            for part, launch in zip(chunks.parts, self._launch_parts, strict=True):
                if part.count == 0 or (self._dry and not measure):
                    continue
                partials = self._partials if measure else None
                launch(
                    adamw_kernel,
                    (part.count, 1, 1),
                    (addresses, *chunks.map, self._settings, scale, partials, n, part.first, chunks.count),
                    {
                        "DTYPE": getattr(tl, str(part.dtype).removeprefix("torch.")),
                        "AMSGRAD": part.amsgrad,
                        "MEASURE": measure,
                        "ALIGNED": part.aligned,
                        "DRY": self._dry,
                        "BLOCK": self._block,
                        "CHUNK": self._chunk,
                    },
                    owned=owned,
                    num_warps=self._num_warps,
                )
            if not measure:
                return None
            sums = self._sums if table is not None else torch.empty_like(self._sums)
            self._launch_reduce(
                reduce_kernel,
                (n, len(Sum), 1),
                (self._partials, *chunks.ends, sums, self._settings, flags, chunks.count),
                {"COLUMNS": len(Sum), "BLOCK": REDUCE_BLOCK},
            )
            if table is not None:
                self._launch_account(
                    account_kernel,
                    (-(-n // ACCOUNT_BLOCK), 1, 1),
                    (sums, self._settings, table, layer, run, self._flags, stop, n, self._layers),
                    {"BLOCK": ACCOUNT_BLOCK},
                    owned=owned,
                    num_warps=1,
                )
        return sums

    def _check_owned(self) -> None:
        columns = (self._params, self._exp_avgs, self._exp_avg_sqs, self._maxima, self._steps)
        check_owned(columns, self._numels, self._device, self._names)

    def rejected(self, grads: Sequence[Tensor]) -> dict[int, str]:
        """Indices of gradients that the kernels cannot read, with reasons; they go to another backend."""
        rows = enumerate(zip(self._params, grads, self._steps, strict=True))
        reasons = {i: ineligible(p, g, g, g, None, step) for i, (p, g, step) in rows}
        return {i: reason for i, reason in reasons.items() if reason is not None}

    def matches(
        self,
        params: Sequence[Tensor],
        exp_avgs: Sequence[Tensor],
        exp_avg_sqs: Sequence[Tensor],
        max_exp_avg_sqs: Sequence[Tensor | None],
        steps: Sequence[Tensor],
    ) -> bool:
        """Whether these are the tensor objects that the plan was made of (a step notices moved storage)."""
        now = [*params, *exp_avgs, *exp_avg_sqs, *max_exp_avg_sqs, *steps]
        then = [*self._params, *self._exp_avgs, *self._exp_avg_sqs, *self._maxima, *self._given_steps]
        return len(now) == len(then) and all(map(operator.is_, now, then))

    def _locate(self, grads: Sequence[Tensor]) -> None:
        """Send the addresses of all tensors, checking those that moved."""
        n = self._n
        if len(grads) != n:
            raise ValueError(f"{len(grads)} gradients for a plan of {n} parameters")
        tensors = [*self._owned, *grads]
        found = None if self._look is None else self._look(tensors)
        current = np.array(list(map(_data_ptr, tensors)), np.int64) if found is None else found
        # a tensor that lies where another one lay may lie there otherwise
        fine = found is not None or alike(grads, self._params, self._contiguous)
        fine = fine and not any(map(_is_neg, grads))
        if not fine or not np.array_equal(current, self._packed):
            if self._packed.any() and not np.array_equal(current[: 5 * n], self._packed[: 5 * n]):
                self._check_owned()
            if not fine or not readable(grads, self._kinds):
                for i, reason in self.rejected(grads).items():
                    raise ValueError(f"{self._names[i]}: {reason}")
            self._packed = current.copy()
            strange = np.asarray((self._packed.reshape(6, n)[[0, 1, 2, 3, 5]] % 16).any(axis=0))
            for part in self._chunks.parts:
                part.aligned = not strange[part.members].any()
            self.params_at = self._packed[:n]
        if self._counts is not None:
            self._counts.send(np.array([float(step) for step in self._given_steps], dtype=np.float32))
        self._addresses.send(self._packed)

    def _near(self, x: Tensor | None) -> Tensor | None:
        return x if x is None or x.device == self._device else x.to(self._device, non_blocking=True)

    def _current_device(self) -> AbstractContextManager[Any]:
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()


_data_ptr = torch._C.TensorBase.data_ptr
_is_neg = torch._C.TensorBase.is_neg
