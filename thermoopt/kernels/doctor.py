"""Which kernels can run here, and why the others cannot."""

from __future__ import annotations

import importlib.util

import torch

from thermoopt.kernels import native

__all__ = ["report"]


def report() -> str:
    """One line per backend: its name, whether it is available, and what it runs on or what it lacks."""
    lines = [
        f"torch  available: {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()} on CPU; any device and dtype that torch supports",
        f"native {_native()}",
        f"triton {_triton()}",
    ]
    return "\n".join(lines)


def _native() -> str:
    if not native.available():
        return f"not available: {native.unavailable_reason()}"
    threads = (
        "torch's OpenMP threads"
        if native.openmp()
        else "threads of its own in large steps (built without OpenMP)"
    )
    return f"available: {native.instruction_set()} on CPU, {threads}"


def _triton() -> str:
    if importlib.util.find_spec("triton") is None:
        return "not available: triton is not installed (it comes with torch's CUDA builds)"
    if not torch.cuda.is_available():
        return "not available: torch sees no CUDA device"
    return f"available: {torch.cuda.get_device_name()}"
