"""Full disks, and the errors by which files and databases report them."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

__all__ = ["DiskFull", "disk_full", "is_full"]

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a full disk or an exhausted quota."""

LEAST = 256 * 1024
"""Free bytes that SQLite needs: the index of its journal takes 32 KiB, a row's pages somewhat more."""


class DiskFull(OSError):
    """No space is left to write a file; the message names it."""

    def __str__(self) -> str:
        """Return the message without the error number."""
        return self.strerror or super().__str__()


def disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, says that a disk is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if "disk is full" in str(error) or "No space left" in str(error):  # as SQLite and PostgreSQL say
            return True
        error = error.__cause__
    return False


def is_full(path: Path) -> bool:
    """Whether the disk that holds a file has too little space for a database."""
    return shutil.disk_usage(path.parent).free < LEAST
