"""``thermoopt doctor``: what a bug report needs, and a test of every kernel that this machine can run."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
import sysconfig
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import torch

from thermoopt import __version__
from thermoopt.doctor.self_test import BACKENDS, Verdict, devices, self_test
from thermoopt.kernels import report as kernels

__all__ = ["report"]

PACKAGES = (
    *("numpy", "triton", "matplotlib", "rich", "scipy", "transformers", "accelerate", "lightning"),
    *("optuna", "tensorboard", "wandb", "mlflow", "trackio", "deepspeed", "bitsandbytes", "thermoclaw"),
)
"""What thermoopt uses or stands beside, where it is installed."""

VARIABLES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_PROC_BIND", "KMP_AFFINITY", "ATEN_CPU_CAPABILITY"),
    *("CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING", "PYTORCH_CUDA_ALLOC_CONF", "TRITON_INTERPRET"),
    *("TORCHDYNAMO_DISABLE", "PYTORCH_ENABLE_MPS_FALLBACK", "LD_PRELOAD", "WORLD_SIZE"),
)
"""Settings in the environment that change how a step runs."""


def report(seconds: float = 2.0, say: Callable[[str], None] = print) -> bool:
    """Print what a bug report needs, line by line.

    That is versions, machine, devices, threads, packages and settings; for every kernel, whether it runs here
    or why not, how far it is from the float64 reference, and how long a step takes compared with torch's
    fused AdamW.

    Args:
        seconds: time to spend on the test of each kernel.
        say: called with every line.

    Returns:
        Whether every kernel that runs here agrees with the reference.
    """
    for name, value in (*_versions(), *_machine(), *_devices(), *_surroundings()):
        say(f"{name:<12}{value}")
    say("")
    for line in kernels().splitlines():
        say(line)
    say("")
    say(f"self-test   a step that measures, against float64 and torch's fused AdamW ({seconds:g} s each)")
    well = True
    for device in devices():
        for backend in BACKENDS:
            verdict = self_test(backend, device, seconds)
            well &= verdict.refusal is not None or verdict.agrees
            say(f"  {device.type:<5} {backend:<7} {_words(verdict)}")
    return well


def _words(verdict: Verdict) -> str:
    if verdict.refusal is not None:
        return f"does not run: {verdict.refusal}"
    fine = "ok" if verdict.agrees else "WRONG"
    return (
        f"{fine}: update within {verdict.update_error:.1e} lr, sums within {verdict.sum_error:.1e}; "
        f"{verdict.milliseconds:.2f} ms, {verdict.ratio:.2f} x torch fused"
        + (f" ({verdict.note})" if verdict.note else "")
    )


def _versions() -> Iterator[tuple[str, str]]:
    yield "thermoopt", f"{__version__}, {_installed_as()}"
    build = "debug, " if getattr(torch.version, "debug", False) else ""
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    hip = f", HIP {torch.version.hip}" if getattr(torch.version, "hip", None) else ""
    yield "torch", f"{torch.__version__}, {build}{cuda}{hip}, git {str(torch.version.git_version)[:10]}"
    free = "" if getattr(sys, "_is_gil_enabled", lambda: True)() else ", free-threaded"
    yield "Python", f"{platform.python_version()} ({platform.python_implementation()}{free})"


def _installed_as() -> str:
    """Say whether from a wheel or an editable checkout, and for which platform the wheel was made."""
    try:
        distribution = metadata.distribution("thermoopt")
    except metadata.PackageNotFoundError:
        return "not installed: run from its source tree"
    wheel = distribution.read_text("WHEEL") or ""
    tags = [line.split(":", 1)[1].strip() for line in wheel.splitlines() if line.startswith("Tag:")]
    editable = '"editable": true' in (distribution.read_text("direct_url.json") or "")
    return "editable install" if editable else f"wheel {' '.join(tags)}"


def _machine() -> Iterator[tuple[str, str]]:
    libc = " ".join(part for part in platform.libc_ver() if part)
    yield (
        "system",
        f"{platform.system()} {platform.release()}, {sysconfig.get_platform()}, {libc or 'no glibc'}",
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "processor", f"{_processor()}, {cores} of {os.cpu_count()} cores usable"
    yield (
        "threads",
        f"{torch.get_num_threads()} within and {torch.get_num_interop_threads()} between operations of "
        f"torch, whose kernels are for {torch.backends.cpu.get_cpu_capability()}",
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _devices() -> Iterator[tuple[str, str]]:
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        card = torch.cuda.get_device_properties(i)
        yield (
            f"cuda:{i}",
            f"{card.name}, capability {card.major}.{card.minor}, {card.total_memory / 2**30:.0f} GiB, "
            f"{card.multi_processor_count} multiprocessors",
        )
    if not torch.cuda.is_available():
        yield "cuda", "torch sees no device" if torch.version.cuda else "torch was built without it"
    if torch.backends.mps.is_available():
        yield "mps", "available"
    distributed = torch.distributed
    if distributed.is_available():
        kinds = [k for k in ("gloo", "nccl", "mpi") if getattr(distributed, f"is_{k}_available")()]
        yield "ranks", f"torch.distributed with {', '.join(kinds) or 'no backend'}"
    else:
        yield "ranks", "torch was built without torch.distributed"


def _surroundings() -> Iterator[tuple[str, str]]:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            if importlib.util.find_spec(name) is not None:
                found.append(f"{name} of unknown version")
    yield "packages", ", ".join(found) or "none that thermoopt looks for"
    settings = [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
    yield "settings", ", ".join(settings) or "none that thermoopt looks for"
