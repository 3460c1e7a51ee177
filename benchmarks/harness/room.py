"""Disks that are full: how files and databases say so."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

__all__ = ["DiskFull", "disk_full", "is_full"]

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a disk, or one's share of it, that is full."""

LEAST = 256 * 1024
"""Bytes without which SQLite cannot go on: the index of its journal takes 32 KiB, a row's pages some more."""


class DiskFull(OSError):
    """There is no room for what has to be written; the message names the file."""

    def __str__(self) -> str:
        """Leave out the number."""
        return self.strerror or super().__str__()


def disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one it comes from, says that a disk is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if "disk is full" in str(error) or "No space left" in str(error):  # as SQLite and PostgreSQL put it
            return True
        error = error.__cause__
    return False


def is_full(path: Path) -> bool:
    """Whether the disk that a file lies on has no room for a database to go on."""
    return shutil.disk_usage(path.parent).free < LEAST
