r"""One AdamW step and its sums on CUDA: one Triton launch for every tensor of every group.

A table holds the address of each tensor, a map gives each program its tensor and chunk, and each program
updates its chunk and leaves one float32 partial sum a column. A second kernel adds the partial sums of a
tensor in float64, always in the same order, so two runs give the same bits. Settings that belong to a tensor
(learning rate, bias corrections, ...) are worked out in float64 by a small kernel before, which also counts
the steps. Nothing waits for the device; settings given as device tensors are read when the kernels run, so a
captured CUDA graph follows them.

The update is that of ``torch.optim.AdamW(fused=True)`` in float32, to a few units in the last place: torch
does part of its arithmetic in float64, and divides where this kernel multiplies by an inverse. Multiply-adds
are written out and the compiler may fuse no others, so that a step gives the same bits measured or not. A sum
differs from the float64 reference by less than 1e-6 of the sum of the absolute values of its terms.

This module's speed has not been measured on a GPU. It is tested with Triton's interpreter only
(``TRITON_INTERPRET=1``), and compiled but not run for compute capability 8.0;
``benchmarks/overhead/cuda.py`` is the measurement that is to be made.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thermoopt.kernels.triton_kernels import (
    IMPORT_ERROR,
    INTERPRETED,
    account_kernel,
    adamw_kernel,
    reduce_kernel,
    settings_kernel,
)
from thermoopt.physics.sums import Sum

if IMPORT_ERROR is None:
    import triton
    import triton.language as tl

__all__ = ["Plan", "Setting", "available", "ineligible", "unavailable_reason"]

_SETTINGS = ("lr", "weight_decay", "beta1", "beta2", "eps", "maximize")

Setting = float | Sequence[float] | NDArray[Any] | Tensor
"""One number for all tensors, one a tensor, or a 0-d or ``[n]`` tensor that may change between steps."""

BLOCK = 512
"""Elements a program handles at a time: with 4 warps, a thread moves 16 bytes of float32 (unmeasured)."""

BLOCKS_PER_CHUNK = 8
"""Blocks a program walks through, its sums in registers: chunks of 4,096 elements cut 5 M elements into more
than 1,000 programs, so that no multiprocessor of a large GPU idles (unmeasured)."""

NUM_WARPS = 4
"""Warps a program: ptxas gives a thread 120 registers, so four programs fit a multiprocessor (unmeasured)."""

TENSORS_PER_PROGRAM = 128
"""Rows of settings a program of the first kernel works out (any power of two would do)."""

REDUCE_BLOCK = 256
"""Partial sums added at a time: a tensor of 1 M elements in one go (unmeasured)."""

ACCOUNT_BLOCK = 32
"""Layers a program of the last kernel averages, one a thread of one warp."""

SETTINGS = 16
"""Numbers that the first kernel works out for each tensor; 15 are used."""

RUN = 8
"""Counters of a run, see :func:`~thermoopt.kernels.triton_kernels.account_kernel`."""

LEAST_CAPABILITY = (8, 0)
"""Compute capability the kernels need: bfloat16 arithmetic came with 8.0, and nothing older was tried."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def unavailable_reason() -> str | None:
    """Say why these kernels cannot run in this process, or ``None`` if they can."""
    if IMPORT_ERROR is not None:
        return f"triton cannot be imported ({IMPORT_ERROR})"
    if INTERPRETED:
        return None
    if not torch.cuda.is_available():
        return "torch sees no CUDA device (and TRITON_INTERPRET=1 was not set when triton was imported)"
    if torch.version.hip is not None:
        return "torch is built for ROCm, on which these kernels were not tried"
    capability = torch.cuda.get_device_capability()
    if capability < LEAST_CAPABILITY:
        have, need = (".".join(map(str, pair)) for pair in (capability, LEAST_CAPABILITY))
        return f"{torch.cuda.get_device_name()} has compute capability {have}, below {need}"
    return None


def available() -> bool:
    """Whether these kernels can run in this process."""
    return unavailable_reason() is None


def ineligible(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    step: Tensor,
    *,
    dry: bool = False,
) -> str | None:
    """Say why one parameter must go to another backend, or ``None`` if it can be handled here.

    Needed: plain contiguous tensors of one shape, one CUDA device and one dtype out of float32, bfloat16 and
    float16, and a zero-dimensional float32 step on that device (as torch holds it under ``fused`` or
    ``capturable``); in a dry step a count of any kind will do. Under Triton's interpreter the device is the
    CPU.
    """
    place = "cpu" if INTERPRETED else "cuda"
    if param.device.type != place:
        return f"the parameter is on {param.device}, not on a {place} device"
    if param.dtype not in DTYPES:
        return f"the parameter is {param.dtype}, not float32, bfloat16 or float16"
    others = {"gradient": grad, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    if max_exp_avg_sq is not None:
        others["max_exp_avg_sq"] = max_exp_avg_sq
    for name, x in {"parameter": param, **others}.items():
        if type(x) not in (Tensor, torch.nn.Parameter):
            return f"the {name} is a {type(x).__name__}, a subclass of Tensor"
        if x.layout != torch.strided or not x.is_contiguous():
            return f"the {name} is sparse or not contiguous"
    for name, x in others.items():
        if (x.device, x.dtype, x.shape) != (param.device, param.dtype, param.shape):
            return f"the {name} differs from the parameter in device, dtype or shape"
    if not dry and _miscounts(step, param.device):
        return f"the step is not a 0-d float32 tensor on {param.device}"
    return None


def _miscounts(step: Tensor, device: torch.device) -> bool:
    """Whether the kernels cannot read a step count where it is."""
    return step.device != device or step.dtype != torch.float32 or step.ndim != 0


@dataclass
class _Part:
    """Tensors of one dtype, with or without amsgrad: one launch."""

    dtype: torch.dtype
    amsgrad: bool
    members: list[int]
    first: int = 0
    count: int = 0
    aligned: bool = False


class _Table:
    """Numbers on the device, sent without waiting and only when they changed.

    Inside a CUDA graph capture a copy that is needed is recorded, from pinned host memory that is then kept
    for the graph's replays; one such block is set aside before, since capture may not allocate any.

    Args:
        size: numbers it holds.
        dtype: of the numbers.
        device: where they are wanted.
        baked: each graph keeps the numbers of its capture, as addresses must. Otherwise replays follow what
            was sent last.
    """

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device, *, baked: bool) -> None:
        self.tensor = torch.zeros(size, dtype=dtype, device=device)
        self._cuda = device.type == "cuda"
        self._baked = baked
        self._sent: list[Any] | None = None
        self._spare: Tensor | None = None
        self._kept: list[Tensor] = []
        self._set_aside()

    def send(self, numbers: list[Any]) -> None:
        """Make the first ``len(numbers)`` entries hold ``numbers``.

        Raises:
            RuntimeError: in a second capture with no step outside of capture since the first.
        """
        capturing = self._cuda and torch.cuda.is_current_stream_capturing()
        # a replay puts baked numbers back, so that after a capture what was sent last may not be there
        if numbers == self._sent and not (self._baked and (capturing or self._kept)):
            return
        host = torch.tensor(numbers, dtype=self.tensor.dtype, device="cpu")
        if capturing:
            if self._spare is None:
                raise RuntimeError("take a step outside of capture between two captures of one plan")
            self._kept.append(self._spare)
            host, self._spare = self._spare[: len(numbers)].copy_(host), None
        elif self._cuda:
            if self._kept and not self._baked:  # replays still to run on the device may read these blocks
                torch.cuda.synchronize(self.tensor.device)
                for block in self._kept:
                    block[: len(numbers)].copy_(host)
            host = host.pin_memory()
            self._set_aside()
        self.tensor[: len(numbers)].copy_(host, non_blocking=True)
        self._sent = numbers

    def _set_aside(self) -> None:
        if self._cuda and self._spare is None:
            self._spare = torch.empty(
                self.tensor.shape, dtype=self.tensor.dtype, device="cpu", pin_memory=True
            )


class Plan:
    """The tensors of one step of all groups on one device, with the tables that launch it.

    Build it once, and again when the set of tensors changes (a new parameter, other state after
    ``load_state_dict``). Moved storage of the same tensors is noticed at the next step.

    Args:
        params, exp_avgs, exp_avg_sqs, steps: ``n`` tensors each, see :func:`ineligible`.
        max_exp_avg_sqs: ``n`` entries, a tensor where amsgrad is on, ``None`` where it is off.
        names: what to call the tensors in errors; their index by default.
        dry: for steps that write nothing. Step counts may then lie on the host, and are read each time.
        block, blocks_per_chunk, num_warps: launch shape; powers of two.

    Attributes:
        refused: always None: whether a step's sums enter the averages is found on the device.

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
        blocks_per_chunk: int = BLOCKS_PER_CHUNK,
        num_warps: int = NUM_WARPS,
    ) -> None:
        reason = unavailable_reason()
        if reason is not None:
            raise RuntimeError(f"the Triton kernels cannot run here: {reason}")
        n = len(params)
        if n == 0 or {len(x) for x in (exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps)} != {n}:
            raise ValueError("a plan needs one or more parameters and as many entries in every other list")
        self._names = [f"tensor {i}" for i in range(n)] if names is None else list(names)
        self._params, self._exp_avgs, self._exp_avg_sqs = list(params), list(exp_avgs), list(exp_avg_sqs)
        self._maxima, self._given_steps = list(max_exp_avg_sqs), list(steps)
        self._device = params[0].device
        self._dry, self._counts, self._steps = dry, None, self._given_steps
        if dry and any(_miscounts(step, self._device) for step in steps):
            self._counts = _Table(n, torch.float32, self._device, baked=False)
            self._steps = list(self._counts.tensor.unbind())
        # the rows of the address table that the plan owns; a maximum that is not there is never read
        maxima = [p if x is None else x for p, x in zip(self._params, self._maxima, strict=True)]
        self._owned = [*self._params, *self._exp_avgs, *self._exp_avg_sqs, *maxima, *self._steps]
        self._numels = [p.numel() for p in self._params]
        self._check_owned()
        self._block, self._chunk, self._num_warps = block, block * blocks_per_chunk, num_warps
        self._addresses = _Table(6 * n, torch.int64, self._device, baked=True)
        width = n + n % 2  # pointers on 16 bytes spare compilations
        self._numbers = _Table(len(_SETTINGS) * width, torch.float64, self._device, baked=False)
        self._given: list[Any] = [None] * len(_SETTINGS)
        self._rows = [[0.0] * width for _ in _SETTINGS]
        self._views = list(self._numbers.tensor.view(len(_SETTINGS), width).unbind())
        self._current: list[int] = []
        self._settings = torch.zeros(n, SETTINGS, dtype=torch.float64, device=self._device)
        self._sums = torch.zeros(n, len(Sum), dtype=torch.float64, device=self._device)
        self._flags = torch.zeros(2, dtype=torch.int32, device=self._device)
        self._averages: tuple[Tensor, Tensor, Tensor] | None = None
        self.refused: str | None = None
        self._map_chunks()
        # made here: what is allocated in a capture belongs to its graph
        self._partials = torch.empty(len(Sum), self._n_chunks, device=self._device)

    def average_into(self, table: Tensor, run: Tensor, layer: NDArray[np.int64]) -> None:
        """Let the steps that are given a ``number`` be counted, and average their sums into a table.

        Args:
            table: ``[STATE_ROWS, n_layers]`` as of a :class:`~thermoopt.account.Meter`, float64, contiguous.
            run: ``[8]``, float64: step, readings, last step taken in, the four counts of
                :data:`~thermoopt.account.SKIP_CAUSES`, and 1 - 1 / length of the average.
            layer: ``[n]`` column of each tensor, each at most once.

        Raises:
            ValueError: if they are of another shape, type or device.
        """
        for name, x in (("table", table), ("run", run)):
            if x.device != self._device or x.dtype != torch.float64 or not x.is_contiguous():
                raise ValueError(f"{name} must be contiguous float64 on {self._device}, not {x.dtype}")
        if run.shape != (RUN,) or len(layer) != len(self._params):
            raise ValueError(f"run must hold {RUN} numbers and layer {len(self._params)}")
        self._averages = table, run, torch.tensor(layer, dtype=torch.int32).to(self._device)

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
        measure: bool = True,
        number: int | None = None,
        half: int | None = None,
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> Tensor | None:
        r"""Take one AdamW step in place, counting it in ``steps``.

        .. math::
            \theta \leftarrow (1-\eta\lambda)\,\theta - \eta\,\hat m / (\sqrt{\hat v} + \epsilon)

        Args:
            grads: ``n`` gradients; only written under ``grad_scale``, and then unscaled.
            lr: learning rate, see :data:`Setting`; a tensor on the CPU counts as numbers.
            weight_decay: decoupled, as in :class:`torch.optim.AdamW`, see :data:`Setting`.
            beta1: decay of the first moment, see :data:`Setting`.
            beta2: decay of the second moment, see :data:`Setting`.
            eps: added to the root of the second moment, see :data:`Setting`.
            maximize: for all tensors, or one a tensor.
            measure: whether to form the sums.
            number: where it is not None the step is counted in the run and, if it is measured, averaged into
                the table of :meth:`average_into`. The number itself is the device's: replays of a graph
                count on.
            half: not used: the whole is read (:meth:`thermoopt.kernels.native.Plan.step`).
            grad_scale: one-element device tensor that the gradients are divided by.
            found_inf: one-element device tensor; where it is not 0 nothing moves and the sums are 0.

        Returns:
            Tensor ``[n, len(Sum)]``, float64, on the device (units: :class:`~thermoopt.physics.Sum`), or
            ``None`` without ``measure``. It is a new one unless the step is averaged.

        Raises:
            ValueError: a wrong number of gradients or settings, or a tensor that is not eligible any more.
            RuntimeError: a second CUDA graph capture with no step outside of capture in between.
        """
        n = len(self._params)
        self._locate(grads)
        settings = self._place(
            {"lr": lr, "weight_decay": weight_decay, "beta1": beta1, "beta2": beta2, "eps": eps}, maximize
        )
        scale, stop = self._near(grad_scale), self._near(found_inf)
        addresses = self._addresses.tensor
        table, run, layer = self._averages if number is not None and self._averages else (None, None, None)
        with self._current_device():
            settings_kernel[(triton.cdiv(n, TENSORS_PER_PROGRAM),)](
                addresses,
                self._settings,
                stop,
                *settings,
                run,
                self._flags,
                n,
                DRY=self._dry,
                BLOCK=TENSORS_PER_PROGRAM,
                enable_fp_fusion=False,
            )
            for part in self._parts:
                if part.count == 0 or (self._dry and not measure):
                    continue
                adamw_kernel[(part.count,)](
                    addresses,
                    self._sizes,
                    self._chunk_tensor,
                    self._chunk_index,
                    self._settings,
                    scale,
                    self._partials if measure else None,
                    n,
                    part.first,
                    self._n_chunks,
                    DTYPE=getattr(tl, str(part.dtype).removeprefix("torch.")),
                    AMSGRAD=part.amsgrad,
                    MEASURE=measure,
                    ALIGNED=part.aligned,
                    DRY=self._dry,
                    BLOCK=self._block,
                    CHUNK=self._chunk,
                    num_warps=self._num_warps,
                    enable_fp_fusion=False,
                )
            if not measure:
                return None
            sums = self._sums if table is not None else torch.empty_like(self._sums)
            reduce_kernel[(n,)](
                self._partials,
                self._first_chunk,
                self._last_chunk,
                sums,
                self._settings,
                None if run is None else self._flags,
                self._n_chunks,
                COLUMNS=len(Sum),
                LANES=triton.next_power_of_2(len(Sum)),
                BLOCK=REDUCE_BLOCK,
                enable_fp_fusion=False,
            )
            if table is not None:
                account_kernel[(triton.cdiv(n, ACCOUNT_BLOCK),)](
                    sums,
                    self._settings,
                    table,
                    layer,
                    run,
                    self._flags,
                    stop,
                    n,
                    table.shape[1],
                    BLOCK=ACCOUNT_BLOCK,
                    num_warps=1,
                    enable_fp_fusion=False,
                )
        return sums

    def _check_owned(self) -> None:
        """Raise unless every tensor is eligible, on one device and shares no memory with another."""
        rows = zip(self._params, self._exp_avgs, self._exp_avg_sqs, self._maxima, self._steps, strict=True)
        for i, (p, m, v, x, step) in enumerate(rows):
            reason = ineligible(p, m, m, v, x, step)
            if reason is None and p.device != self._device:
                reason = f"it is on {p.device}, the first on {self._device}"
            if reason is None and p.numel() != self._numels[i]:
                reason = f"it has {p.numel()} elements, and had {self._numels[i]}"
            if reason is not None:
                raise ValueError(f"{self._names[i]}: {reason}")
        owned = (x for x in (*self._params, *self._exp_avgs, *self._exp_avg_sqs, *self._maxima, *self._steps))
        spans = sorted(
            (x.data_ptr(), x.data_ptr() + x.numel() * x.element_size(), k % len(self._params))
            for k, x in enumerate(owned)
            if x is not None and x.numel()
        )
        for (_, end, i), (start, _, j) in pairwise(spans):
            if start < end:
                one, other = self._names[min(i, j)], self._names[max(i, j)]
                raise ValueError(f"{one} and {other} share memory: a step in one pass would write it twice")

    def matches(
        self,
        params: Sequence[Tensor],
        exp_avgs: Sequence[Tensor],
        exp_avg_sqs: Sequence[Tensor],
        max_exp_avg_sqs: Sequence[Tensor | None],
        steps: Sequence[Tensor],
    ) -> bool:
        """Whether these are the very tensors the plan was made of (moved storage is noticed in a step)."""
        now = [*params, *exp_avgs, *exp_avg_sqs, *max_exp_avg_sqs, *steps]
        then = [*self._params, *self._exp_avgs, *self._exp_avg_sqs, *self._maxima, *self._given_steps]
        return len(now) == len(then) and all(map(operator.is_, now, then))

    def _map_chunks(self) -> None:
        """Give every program its tensor and chunk; those of a tensor, and of a part, are consecutive."""
        keys = [(p.dtype, x is not None) for p, x in zip(self._params, self._maxima, strict=True)]
        self._parts = [
            _Part(*key, [i for i, other in enumerate(keys) if other == key]) for key in dict.fromkeys(keys)
        ]
        counts = [-(-numel // self._chunk) for numel in self._numels]
        first = [0] * len(counts)
        total = 0
        for part in self._parts:
            part.first = total
            for i in part.members:
                first[i] = total
                total += counts[i]
            part.count = total - part.first
        order = torch.tensor([i for part in self._parts for i in part.members], device="cpu")
        begin, count = torch.tensor(first, device="cpu"), torch.tensor(counts, device="cpu")
        owner = torch.repeat_interleave(order, count[order])
        self._n_chunks = total
        self._sizes = torch.tensor(self._numels, dtype=torch.int64, device=self._device)
        self._chunk_tensor = owner.to(self._device, torch.int32)
        self._chunk_index = (torch.arange(total, device="cpu") - begin[owner]).to(self._device, torch.int32)
        self._first_chunk = begin.to(self._device)
        self._last_chunk = (begin + count).to(self._device)

    def _locate(self, grads: Sequence[Tensor]) -> None:
        """Send the addresses of all tensors, checking those that moved."""
        n = len(self._params)
        if len(grads) != n:
            raise ValueError(f"{len(grads)} gradients for a plan of {n} parameters")
        current = [*map(Tensor.data_ptr, self._owned), *map(Tensor.data_ptr, grads)]
        if current != self._current:
            if self._current and current[: 5 * n] != self._current[: 5 * n]:
                self._check_owned()
            for i, g in enumerate(grads):
                reason = ineligible(self._params[i], g, g, g, None, self._steps[i])
                if reason is not None:
                    raise ValueError(f"{self._names[i]}: {reason}")
            for part in self._parts:
                rows = (current[k * n + i] for k in (0, 1, 2, 3, 5) for i in part.members)
                part.aligned = all(address % 16 == 0 for address in rows)
        if self._counts is not None:
            self._counts.send([float(step) for step in self._given_steps])
        self._addresses.send(current)
        self._current = current

    def _place(
        self, settings: dict[str, Setting], maximize: bool | Sequence[bool] | NDArray[np.bool_]
    ) -> list[Any]:
        """Turn the settings and the gradient's sign into six device tensors, each followed by its stride.

        Numbers lie in one table, each setting at a place of its own, so that a captured graph finds those
        that were sent last.
        """
        n = len(self._params)
        placed: list[Any] = []
        given, rows = list(self._given), list(self._rows)
        for k, (name, x) in enumerate({**settings, "maximize": maximize}.items()):
            if isinstance(x, Tensor):
                if x.shape not in ((), (n,)):
                    raise ValueError(f"{name} must have no dimension or {n} entries, not {tuple(x.shape)}")
                if x.device == self._device:
                    placed += [x, x.stride(0) if x.ndim else 0]
                    continue
                if x.device.type != "cpu":
                    raise ValueError(f"{name} is on {x.device}, the parameters on {self._device}")
                x = x.tolist()
            elif isinstance(x, np.ndarray):
                x = x.tolist()
            elif isinstance(x, Sequence):
                x = list(x)
            placed += [self._views[k], 1]
            if given[k] == x and type(given[k]) is type(x):
                continue
            if isinstance(x, list) and len(x) != n:
                raise ValueError(f"{name} has {len(x)} entries for {n} parameters")
            row = x if isinstance(x, list) else [x] * n
            row = [1.0 - 2.0 * y for y in row] if name == "maximize" else row
            given[k], rows[k] = x, row + [0.0] * (n % 2)
        if any(a is not b for a, b in zip(rows, self._rows, strict=True)):
            self._numbers.send([y for row in rows for y in row])
        self._given, self._rows = given, rows
        return placed

    def _near(self, x: Tensor | None) -> Tensor | None:
        return x if x is None or x.device == self._device else x.to(self._device, non_blocking=True)

    def _current_device(self) -> AbstractContextManager[Any]:
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()
