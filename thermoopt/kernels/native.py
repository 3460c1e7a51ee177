"""One AdamW step and its sums in one pass over memory on CPU: the Python side of ``native.c``.

Arithmetic is float32 for every dtype (float32, bfloat16, float16); results are rounded to nearest even.

**Parameters and moments equal those of** ``torch.optim.AdamW(fused=True)`` bit for bit on x86, for every
dtype and including the last elements of a tensor (which torch's scalar loop rounds differently); checked with
torch 2.13 and its AVX2 and default kernels. Builds of torch that fuse other multiply-adds (another compiler,
another processor) differ in which products are rounded before they are added.
With u = 2**-24, one float32 step from the same state then differs by at most

* ``|dm| <= 4 u max(|m|, |g|)``: the product, at most 2 max(|m|, |g|), and the sum round once each way;
* ``|dv| <= 4 u v``: both terms are positive, so neither product exceeds v;
* ``|d th| <= 2 u |th| + lr / bias1 * (|dm| + 5 u |m|) / (sqrt(vh) + eps)``.

**Sums** differ from the float64 reference by less than 1e-6 of the sum of the absolute values of their terms
(of the sum itself, for all but the signed A, TU and GT): a term carries about eight roundings of 2**-24,
which share no sign over many elements, a float32 lane takes 32 additions before it is emptied into float64
(where all terms are equal and nothing cancels this is what remains, tested below 1e-6), and everything after
is float64. Squares below float32's 1e-38 count as zero, so gradients below 1e-19 do not show in GG, B, C, V.
Sums do not depend on the number of threads. AVX2 (on processors of different makes too), AVX-512 and the
portable code agree to the same 1e-6: they divide differently.
"""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thermoopt.kernels.look import Look
from thermoopt.kernels.native_checks import (
    CODES,
    PLAIN,
    GradientRefused,
    check_averages,
    ineligible,
    one_number,
    refuse_overlaps,
    same_layout,
    unlike,
    unreadable,
)
from thermoopt.kernels.native_chunks import CHUNK, Chunks
from thermoopt.kernels.native_library import (
    COEFFICIENTS,
    ISA,
    ISAS,
    LIBRARY,
    REASON,
    TORCH_WIDTH,
    Call,
    available,
    instruction_set,
    most_threads,
    openmp,
    threads_now,
    unavailable_reason,
)
from thermoopt.kernels.riders import Riders
from thermoopt.physics.sums import Sum

__all__ = [
    "GradientRefused",
    "Plan",
    "available",
    "ineligible",
    "instruction_set",
    "openmp",
    "unavailable_reason",
]

BATCH = 16
"""Chunks that a thread takes at once, fewer if that leaves less than eight batches per thread. Batches this
long gained 10 to 15 % over single chunks at 27 M elements, 5 to 9 % at 5 M (2 threads); 8 to 200 chunks did
not differ."""

SERIAL_BELOW = 16384
"""Elements below which one thread takes the whole step: a second thread saves 4 of 50 us at 8 K and 9 of 80
at 16 K (tensors of 1 K, 2 GHz Xeon) and occupies a core that may have other work."""

_AMSGRAD, _MAXIMIZE, _MEASURE, _DRY = 1, 2, 4, 8

_NUMBERS = frozenset((int, float, bool))

_REFUSED = (None, "found_inf", "nonfinite", "dry")
"""What the library returns, in words: causes of :data:`thermoopt.account.SKIP_CAUSES`."""

ON_DEVICE = False
"""Averages are kept on the host: the result of a step is known when it returns."""

Scalars = float | bool | NDArray
"""One number, or an array with one per tensor."""


def trial() -> None:
    """Return None: a kernel compiled with the package needs no trial."""


class Plan:
    """Tables of pointers and scalars for one optimizer step, reused while the tensors stay where they are.

    A plan keeps its tensors alive. Two threads may step two plans at once, but not the same one.

    Args:
        params, exp_avgs, exp_avg_sqs: ``n`` tensors each.
        max_exp_avg_sqs: ``n`` tensors, or None where a tensor is without amsgrad.
        steps: ``n`` step counts, float32, incremented by the kernel.
        names: of the tensors, for error messages; by default their indices.
        dry: whether steps are dry by default.
        isa: "avx512", "avx2" or "portable" if the processor has it; the best available by default.

    Attributes:
        params_at: addresses of the parameters, ``[n]``.
        riders: what the coming step takes along.
        refused: why the last step entered no average ("found_inf", "nonfinite", "dry"), or None.

    Raises:
        ValueError: a tensor that :func:`ineligible` refuses, or two that overlap in memory, by name.
        RuntimeError: the native kernel is not available.
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
        isa: str | None = None,
    ) -> None:
        if LIBRARY is None:
            raise RuntimeError(REASON)
        n = len(params)
        columns = (exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps)
        if any(len(c) != n for c in columns) or (names is not None and len(names) != n):
            raise ValueError(
                f"lists of different lengths: {n} params, {[len(c) for c in columns]} state tensors"
            )
        self._dry = dry
        self._known: tuple[tuple[Any, ...], tuple[Any, ...]] = (), ()
        self.refused: str | None = None
        self._names = [f"tensor {i}" for i in range(n)] if names is None else list(names)
        for i, row in enumerate(zip(params, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps, strict=True)):
            if reason := ineligible(row[0], None, *row[1:]):
                raise ValueError(f"{self._names[i]}: {reason}")
        self._params = list(params)
        self._state = [list(exp_avgs), list(exp_avg_sqs), list(steps)]
        self._maxima = [(i, x) for i, x in enumerate(max_exp_avg_sqs) if x is not None]
        maxima = [x for x in max_exp_avg_sqs if x is not None]
        self._at = self._addresses(params, exp_avgs, exp_avg_sqs, maxima, steps)
        self._dtypes = [p.dtype for p in params]
        self._numels = [p.numel() for p in params]
        self._strided = [i for i, p in enumerate(params) if not p.is_contiguous()]
        refuse_overlaps(
            {"param": params, "exp_avg": exp_avgs, "exp_avg_sq": exp_avg_sqs, "step": steps}
            | {"max_exp_avg_sq": max_exp_avg_sqs},
            self._names,
        )
        self._fill(isa)

    def _fill(self, isa: str | None) -> None:
        """Build the tables that the kernel reads and the struct that points at them."""
        n = len(self._params)
        sizes = np.array(self._numels, np.int64)
        self._chunks = chunks = Chunks(sizes)
        kept = [i for i, _ in self._maxima]
        maxima, self._amsgrad = np.zeros(n, np.int64), np.zeros(n, np.int32)
        maxima[kept], self._amsgrad[kept] = self._at[3], _AMSGRAD
        self._tables: dict[str, NDArray] = {
            "param": np.array(self._at[0], np.int64),
            "grad": np.zeros(n, np.int64),
            "exp_avg": np.array(self._at[1], np.int64),
            "exp_avg_sq": np.array(self._at[2], np.int64),
            "max_exp_avg_sq": maxima,
            "step": np.array(self._at[-1], np.int64),
            "numel": sizes,
            "dtype": np.array([CODES[d] for d in self._dtypes], np.int32),
            "flags": np.zeros(n, np.int32),
            **{name: np.zeros(n) for name in ("lr", "weight_decay", "beta1", "beta2", "eps")},
            "chunk_tensor": chunks.tensor,
            "chunk_start": chunks.start,
            "partial": np.zeros((len(chunks), len(Sum))),
            "coef": np.zeros(n * COEFFICIENTS, np.uint8),
            "t": np.zeros(n),
        }
        self.params_at = self._tables["param"]
        self._params_bytes = self.params_at.tobytes()
        able = Look.available() and not self._strided
        self._look = Look(sizes, self._tables["dtype"]) if able else None
        self._averages: tuple[NDArray, NDArray] | None = None
        self._most_threads = most_threads(int(sizes.sum()), SERIAL_BELOW)
        self._call = Call(
            **{name: table.ctypes.data for name, table in self._tables.items()},
            n_tensors=n,
            n_chunks=len(chunks),
            chunk_size=CHUNK,
            isa=ISA if isa is None else min(ISA, ISAS.index(isa)),
            torch_width=TORCH_WIDTH,
        )
        self._pointer = ctypes.byref(self._call)
        self.riders = Riders(self._call, n, len(chunks))

    @property
    def t(self) -> NDArray[np.float64]:
        """Step counts of the last step, ``[n]``: what the next one overwrites."""
        return self._tables["t"]

    def average_into(self, table: NDArray[np.float64], layer: NDArray[np.int64], keep: float) -> None:
        """From now on average the sums of steps with a ``number`` into a table, which is kept alive.

        Args:
            table: ``[STATE_ROWS, n_layers]`` of a :class:`~thermoopt.account.Meter`, C-contiguous.
            layer: ``[n]`` column of each tensor, each at most once.
            keep: 1 - 1 / length of the average in steps.

        Raises:
            ValueError: if table or layer has another shape or type.
        """
        columns = check_averages(table, layer, len(self._params))
        self._averages, self._table_at, call = (table, columns), table.ctypes.data, self._call
        call.layer, call.n_layers, call.keep = columns.ctypes.data, table.shape[1], keep

    def matches(
        self,
        params: Sequence[Tensor],
        exp_avgs: Sequence[Tensor],
        exp_avg_sqs: Sequence[Tensor],
        max_exp_avg_sqs: Sequence[Tensor | None],
        steps: Sequence[Tensor],
    ) -> bool:
        """Whether these tensors still lie where the plan found them, with the same sizes and dtypes.

        False after ``p.data = ...``, after ``load_state_dict`` replaced state, or for other tensors.
        """
        if len(params) != len(self._params):
            return False
        at = None if self._look is None else self._look(params)
        if at is None:
            same = self._at[0] == list(map(_data_ptr, params)) and self._numels == list(map(_numel, params))
        else:  # of the same sizes
            same = at.tobytes() == self._params_bytes
        maxima = [x for x in max_exp_avg_sqs if x is not None]
        return same and self._at[1:] == self._addresses(exp_avgs, exp_avg_sqs, maxima, steps)

    @staticmethod
    def _addresses(*columns: Sequence[Tensor]) -> list[list[int]]:
        return [list(map(_data_ptr, column)) for column in columns]

    def step(
        self,
        grads: Sequence[Tensor],
        *,
        lr: Scalars,
        weight_decay: Scalars,
        beta1: Scalars,
        beta2: Scalars,
        eps: Scalars,
        maximize: Scalars = False,
        measure: bool = True,
        number: int | None = None,
        dry: bool | None = None,
        half: int | None = None,
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
        num_threads: int | None = None,
        before: Callable[[NDArray[np.int64]], None] | None = None,
    ) -> NDArray[np.float64] | None:
        """Take one AdamW step of all tensors and return its sums.

        Args:
            grads: ``n`` gradients, dtype, shape and strides as their parameters.
            lr, weight_decay, beta1, beta2, eps, maximize: one number, or a numpy array ``[n]``.
            measure: compute the sums.
            number: of this step in the run: its sums are averaged into the table of :meth:`average_into`,
                or :attr:`refused` says why not. Needs ``measure``; None averages nothing.
            dry: compute the sums that this step would give, and write nothing, not even step counts.
            half: 0 or 1, with ``dry``: read only the even or the odd chunks of tensors of :data:`HALVED`
                chunks and more, and scale their sums up to the whole. The mean of both halves is the sum of
                all, up to rounding and a shorter last chunk.
            grad_scale: float32 tensor of one element on CPU; gradients are divided by it in place.
            found_inf: likewise; if it is not 0, nothing moves.
            before: called with the gradients' addresses, ``[n]``, after all checks and before anything is
                written.
            num_threads: maximum number of threads; by default, and at most, ``torch.get_num_threads()``. A
                forked child uses one.

        Returns:
            A new array ``[n, 14]`` of float64, columns as in :class:`~thermoopt.physics.Sum`; None when
            ``measure`` is False or ``found_inf`` was set.

        Raises:
            GradientRefused: a gradient that the kernel cannot read, by name; nothing has moved.
            ValueError: ``grad_scale`` or ``found_inf`` is not one float32 number on CPU, or, with
                ``grad_scale``, two parameters share a gradient.
        """
        assert LIBRARY is not None
        if dry is None:
            dry = self._dry
        pointers = self._gradients(grads)
        call, tables = self._call, self._tables
        if grad_scale is not None and not dry:
            filled = [x for x, size in zip(pointers, self._numels, strict=True) if size]
            if len(set(filled)) != len(filled):
                raise ValueError("two parameters share a gradient, which grad_scale would divide twice")
        call.grad_scale = one_number("grad_scale", grad_scale)
        call.found_inf = one_number("found_inf", found_inf)
        tables["grad"][:] = pointers
        given = (lr, weight_decay, beta1, beta2, eps, maximize, measure, dry)
        if not _NUMBERS.issuperset(map(type, given)) or given != self._known[0]:
            self._set(tables, given)
        out = np.empty((len(pointers), len(Sum))) if measure else None
        call.table = None
        if number is not None:
            assert self._averages is not None
            call.table, call.number = self._table_at, number
        call.out = None if out is None else out.ctypes.data
        most = self._most_threads if num_threads is None else min(num_threads, self._most_threads)
        call.num_threads = threads = threads_now(most)
        self._chunks.put(call, half if dry else None)
        call.batch = max(1, min(BATCH, call.n_chunks // (8 * threads)))
        if before is not None:
            before(tables["grad"])
        self.refused = _REFUSED[LIBRARY.thermoopt_step(self._pointer)]
        call.out = None  # the array is the caller's
        self.riders.clear()
        return None if self.refused == "found_inf" else out

    def _set(self, tables: dict[str, NDArray], given: tuple[Any, ...]) -> None:
        """Write a step's arguments into the tables, unless they have not changed; arrays always."""
        rest, known = given[1:], self._known[1]
        self._known = (), ()
        weight_decay, beta1, beta2, eps, maximize, measure, dry = rest
        tables["lr"][:] = given[0]
        plain = _NUMBERS.issuperset(map(type, rest))
        if not plain or rest != known:  # a controller changes lr in every step, and other settings rarely
            tables["weight_decay"][:] = weight_decay
            tables["beta1"][:] = beta1
            tables["beta2"][:] = beta2
            tables["eps"][:] = eps
            flags = tables["flags"]
            np.multiply(maximize, _MAXIMIZE, out=flags, casting="unsafe")
            flags += self._amsgrad
            flags += (_MEASURE if measure else 0) + (_DRY if dry else 0)
        self._known = given if plain and type(given[0]) in _NUMBERS else (), rest if plain else ()

    def rejected(self, grads: Sequence[Tensor]) -> dict[int, str]:
        """Indices of gradients that the kernel cannot read, with reasons; they go to another backend."""
        reasons = {}
        for i, (g, p) in enumerate(zip(grads, self._params, strict=True)):
            if reason := unreadable("grad", g) or unlike("grad", g, p):
                reasons[i] = reason
        return reasons

    def _gradients(self, grads: Sequence[Tensor]) -> Sequence[int] | NDArray[np.int64]:
        """Check every gradient and return its address."""
        try:
            fine = len(grads) == len(self._params) and PLAIN.issuperset(map(type, grads))
            if fine and self._look is not None and not any(map(_is_neg, grads)):
                at = self._look(grads)
                if at is not None:
                    return at
            fine = (  # one C call per property and tensor, about 0.1 us each
                fine
                and all(map(_is_cpu, grads))
                and self._dtypes == list(map(_dtype, grads))
                and self._numels == list(map(_numel, grads))
                and not any(map(_is_neg, grads))
            )
            if fine and self._strided:
                # contiguous or not, they must lie as their parameters do
                fine = all(map(same_layout, grads, self._params))
            elif fine:
                fine = all(map(_is_contiguous, grads))
            if fine:
                return list(map(_data_ptr, grads))
        except (RuntimeError, NotImplementedError):  # a sparse or otherwise opaque gradient: named below
            pass
        if len(grads) != len(self._params):
            raise GradientRefused(f"{len(grads)} gradients for {len(self._params)} parameters")
        i, reason = next(iter(self.rejected(grads).items()))
        raise GradientRefused(f"{self._names[i]}: {reason}")


_data_ptr = torch._C.TensorBase.data_ptr
_is_contiguous = torch._C.TensorBase.is_contiguous
_is_neg = torch._C.TensorBase.is_neg
_numel = torch._C.TensorBase.numel
_dtype = operator.attrgetter("dtype")
_is_cpu = operator.attrgetter("is_cpu")
