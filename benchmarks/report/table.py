"""The results table: rows in the storage, and a second record of them in a file that needs none."""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from thermoopt.benchmarks.harness.room import DiskFull, disk_full
from thermoopt.benchmarks.sweeps.storage import opened
from thermoopt.benchmarks.sweeps.trial import Row

__all__ = ["append_row", "read_rows", "read_table", "row_key", "rows_file"]

FIELDS: dict[str, tuple[type, ...]] = {
    "protocol": (str,),
    "tier": (str,),
    "workload": (str,),
    "metric": (str,),
    "steps": (int,),
    "method": (str,),
    "tunables": (list,),
    "seed": (int,),
    "k": (int,),
    "lr": (float, int, type(None)),
    "decay": (float, int, type(None)),
    "valid": (float, int),
    "initial": (float, int),
    "diverged": (bool,),
    "curve": (list,),
}
"""Fields that a line must hold to count as a row."""

Say = Callable[[str], None]


def rows_file(out: Path) -> Path:
    """Return the path of a sweep's rows."""
    return out / "rows.jsonl"


def row_key(row: Row) -> tuple[Any, ...]:
    """Return what distinguishes a row from the others of its protocol."""
    return row["workload"], row["steps"], row["method"], row["seed"], row["k"]


def append_row(path: Path, row: Row) -> None:
    """Append a row as one line, completely or not at all, even while other processes write.

    Raises:
        DiskFull: if there is no room; the file is as before.
        OSError: if it cannot be written for another reason.
    """
    line = (json.dumps(row, allow_nan=False) + "\n").encode()
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            line = b"\n" + line  # a line torn by a crash stays alone
        try:
            _write_all(file, line)
        except OSError as error:
            os.ftruncate(file, size)
            if disk_full(error):
                raise DiskFull(error.errno, f"no room for {path}") from error
            raise
    finally:
        os.close(file)


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


def read_rows(path: Path, say: Say) -> list[Row]:
    """Read a file of rows.

    Args:
        path: of the file; a missing one holds no rows.
        say: called about every line that is not a row, with its number; such lines are skipped.

    Returns:
        The rows; of several rows of one trial the first.
    """
    if not path.exists():
        return []
    rows: dict[tuple[Any, ...], Row] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=_no_constant)
            _check(row)
        except (ValueError, UnicodeDecodeError) as error:
            say(f"{path}, line {number} is passed over: {error}")
            continue
        rows.setdefault((row["protocol"], *row_key(row)), row)
    return list(rows.values())


def _no_constant(word: str) -> float:
    raise ValueError(f"{word} is not a number a row can hold")


def _check(row: Any) -> None:
    if not isinstance(row, dict):
        raise ValueError("it is not an object")
    for field, kinds in FIELDS.items():
        if field not in row:
            raise ValueError(f"{field} is missing")
        value = row[field]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ValueError(f"{field} is {value!r}")
    if not (math.isfinite(row["valid"]) and math.isfinite(row["initial"])):
        raise ValueError("valid or initial is not finite")


def read_table(
    storage_url: str | None, out: Path | None, protocol: str | None = None, say: Say = print
) -> list[Row]:
    """Read all rows of a sweep.

    Args:
        storage_url: of the storage; None reads the file alone.
        out: folder with ``rows.jsonl``; None reads the storage alone.
        protocol: hash of the rows that are wanted; None is any.
        say: called about lines of the file that are not rows.

    Returns:
        The rows of both, those of the storage where both have one, in a fixed order.

    Raises:
        StorageError: if the storage cannot be used.
    """
    found = [] if out is None else read_rows(rows_file(out), say)
    if storage_url is not None:
        with opened(storage_url) as storage:
            for kept in storage.get_all_studies():
                if "protocol" in kept.user_attrs and protocol in (None, kept.user_attrs["protocol"]):
                    study = optuna.load_study(study_name=kept.study_name, storage=storage)
                    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
                    found.extend(t.user_attrs["row"] for t in done)
    rows = {(r["protocol"], *row_key(r)): r for r in found if protocol in (None, r["protocol"])}
    return [rows[key] for key in sorted(rows)]
