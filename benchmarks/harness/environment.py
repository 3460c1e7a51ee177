"""The environment of a sweep: versions, processor, commit, date."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["environment", "read_environment", "record_environment"]

PACKAGES = (
    "thermoopt",
    "torch",
    "numpy",
    "scipy",
    "optuna",
    "SQLAlchemy",
    "scikit-learn",
    "mnist1d",
    "tokenizers",
    "transformers",
    "prodigyopt",
    "schedulefree",
    "thermoclaw",
)
"""Packages whose version may change a number in the tables."""


def environment(workers: int) -> dict[str, Any]:
    """Describe this machine and this source tree.

    Returns:
        ``date`` (UTC), ``commit`` and ``dirty`` (None outside a checkout), ``python``, ``system``, ``cpu``,
        ``cores`` that this process may use, ``memory_gb``, ``workers``, torch's ``threads`` per worker,
        ``versions``.
    """
    commit, dirty = _commit()
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "workers": workers,
        "threads": 1,
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }


def record_environment(path: Path, workers: int) -> None:
    """Record the environment; when a sweep resumes, add the differences under ``resumed``."""
    now = environment(workers)
    first = read_environment(path)
    if first is None:
        kept = now
    else:
        differs = {k: v for k, v in now.items() if v != first.get(k)}
        kept = {**first, "resumed": [*first.get("resumed", []), differs]}
    part = path.with_suffix(".part")
    part.write_text(json.dumps(kept, indent=2) + "\n")
    part.replace(path)


def read_environment(path: Path) -> dict[str, Any] | None:
    """Return the recorded environment, or None if there is none that can be read."""
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return kept if isinstance(kept, dict) else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> tuple[str | None, bool | None]:
    """Return the commit of the checkout that tracks this file, and whether the checkout has changes."""
    here = Path(__file__).resolve()

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here.parent), *words], capture_output=True, text=True, check=True, timeout=30
        )
        return done.stdout.strip()

    try:
        git(
            "ls-files", "--error-unmatch", here.name
        )  # an installed package may lie inside a checkout of something else
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        return None, None
