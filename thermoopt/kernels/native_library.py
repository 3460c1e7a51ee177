"""Loading the compiled kernel: its library, the OpenMP runtime that it shares with torch, its tables."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import warnings
from pathlib import Path

import torch

__all__ = [
    "COEFFICIENTS",
    "ELEMENTS_A_STARTED_THREAD",
    "ISA",
    "ISAS",
    "LIBRARY",
    "REASON",
    "TORCH_WIDTH",
    "Call",
    "available",
    "instruction_set",
    "most_threads",
    "openmp",
    "threads_now",
    "unavailable_reason",
]

_POINTERS = (
    "param grad exp_avg exp_avg_sq max_exp_avg_sq step numel dtype flags lr weight_decay beta1 beta2 eps "
    "chunk_tensor chunk_start partial coef out grad_scale found_inf t scale table layer "
    "travel travel_layer forces standing"
).split()
COEFFICIENTS = 72
"""Bytes of ``struct coefficients``."""

ELEMENTS_A_STARTED_THREAD = 1 << 18
"""Of a step: 150 us or more of work, where starting and joining a thread takes 10 to 30."""

_PORTABLE = 0
_PID = os.getpid()


class Call(ctypes.Structure):
    """Mirror of ``struct call`` in ``native.c``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_double) for name in ("keep", "number")),
        *((name, ctypes.c_int64) for name in ("n_tensors", "n_chunks", "chunk_size", "n_layers")),
        *((name, ctypes.c_int32) for name in ("num_threads", "isa", "batch", "torch_width")),
    )


def _torch_openmp() -> Path | None:
    """Return the OpenMP runtime that torch has loaded or ships with; None if none is found."""
    name = re.compile(r"lib(gomp|iomp5|omp)\b[-.\w]*\.(so|dylib)")
    home = Path(torch.__file__).parent
    candidates: list[Path] = []
    maps = Path("/proc/self/maps")
    if maps.exists():
        mapped = (line.split(maxsplit=5)[-1].strip() for line in maps.read_text().splitlines())
        candidates += [Path(m) for m in dict.fromkeys(mapped) if m.startswith("/")]
    candidates += sorted((home / "lib").iterdir())
    found = [c for c in candidates if name.match(c.name)]
    own = [c for c in found if home in c.parents or home.parent / "torch.libs" in c.parents]
    return next(iter(own or found), None)


def _stale(library: ctypes.CDLL, home: Path) -> bool:
    """Whether the sources lie beside the library, as in a checkout, and it was built from others."""
    sources = sorted(home.glob("*.[ch]"))
    if not sources:
        return False
    if not hasattr(library, "thermoopt_sources"):  # of a version that did not say
        return True
    library.thermoopt_sources.restype = ctypes.c_char_p
    now = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    return bool(library.thermoopt_sources() != now.encode())


def _load(here: Path) -> tuple[ctypes.CDLL | None, str | None]:
    """Load the library in a folder and share torch's OpenMP pool with it; warn if it is of other sources."""
    built = [p for end in ("so", "dll") if (p := here / f"_native.{end}").exists()]
    if not built:
        return None, (
            f"the native kernel is not built (no _native library in {here}): "
            "install gcc or clang and reinstall thermoopt with pip"
        )
    runtime = _torch_openmp()
    try:
        if runtime is not None:
            ctypes.CDLL(str(runtime), mode=ctypes.RTLD_GLOBAL)
        library = ctypes.CDLL(str(built[0]))
        library.thermoopt_step.argtypes = [ctypes.c_void_p]
        library.thermoopt_sizes.restype = ctypes.c_int64
        sizes = library.thermoopt_sizes(0), library.thermoopt_sizes(1)
        stale = _stale(library, here)
    except (OSError, AttributeError) as error:
        return None, f"the native kernel does not load ({error}): reinstall thermoopt with the torch in use"
    if stale or sizes != (ctypes.sizeof(Call), COEFFICIENTS):
        reason = (
            f"{built[0]} was built from other sources than those of this version: "
            "reinstall thermoopt (pip install -e . in a checkout), or remove the file"
        )
        warnings.warn(f"{reason}. Until then torch's own step is used", RuntimeWarning, stacklevel=2)
        return None, reason
    return library, None


LIBRARY, REASON = _load(Path(__file__).parent)
ISAS = ("portable", "avx2", "avx512")
_VECTORISED = torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "NO AVX")
# torch's portable kernels round a * b + c twice; if torch runs those (ATEN_CPU_CAPABILITY=default), so do we
ISA = LIBRARY.thermoopt_isa() if LIBRARY is not None and _VECTORISED else _PORTABLE
# floats in the vectors of torch's fused kernel, built for AVX2 at most (x86), or NEON
TORCH_WIDTH = 8 if platform.machine().lower() in ("x86_64", "amd64") else 4


def available() -> bool:
    """Whether the native kernel is built, loads and may run in this process."""
    return LIBRARY is not None


def unavailable_reason() -> str | None:
    """One sentence on why the native kernel cannot be used and what to do; None where it can."""
    return REASON


def openmp() -> bool:
    """Whether the native kernel was built with OpenMP; if not, it starts threads of its own (``team.h``)."""
    return LIBRARY is not None and bool(LIBRARY.thermoopt_openmp())


def most_threads(elements: int, serial_below: int) -> int:
    """Return how many threads a number of elements is worth at most.

    With OpenMP, whose threads wait for work, that is one below ``serial_below`` elements, and above it one
    for each element, which bounds nothing. Without it threads are started anew in each call, so each is to
    have :data:`ELEMENTS_A_STARTED_THREAD`.
    """
    if not openmp():
        return max(1, elements // ELEMENTS_A_STARTED_THREAD)
    return 1 if elements < serial_below else elements


def threads_now(most: int) -> int:
    """Return as many threads as torch uses, at most ``most``; one in a forked child.

    OpenMP's threads do not survive a fork.
    """
    return 1 if os.getpid() != _PID else min(torch.get_num_threads(), most)


def instruction_set() -> str:
    """What the kernel runs on here: ``"avx512"``, ``"avx2"`` or ``"portable"``."""
    return ISAS[ISA]
