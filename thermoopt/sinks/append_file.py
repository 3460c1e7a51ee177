"""Append-only files, plain or gzip: each append is written completely or not at all."""

from __future__ import annotations

import os
import stat
import zlib
from pathlib import Path

__all__ = ["MAGIC", "AppendFile", "close_member", "gzip_member"]

MAGIC = b"\x1f\x8b\x08\x00\x00\x00\x00\x00"
"""First bytes of every gzip member written here (no name, no time), by which a reader finds the next."""

LEVEL = 6
"""zlib's own default. On readings level 3 is 15 % larger at a third of the time; either is off the training
thread and without the interpreter's lock."""

MEMBER_LINES = 2048
"""Lines after which a gzip member is closed: the most that could be lost with a damaged one."""

_MARK = b"\x00\x00\xff\xff"
"""The bytes that end a sync flush of zlib."""


class AppendFile:
    """An append-only file, gzip if its name ends in ``.gz``.

    Each append is one system call; an incomplete one is undone, so that the file stays as it was. gzip is
    flushed at every append and closed by :meth:`settle`: a reader can read everything at any time, and
    ``zcat`` accepts a settled file without complaint. If another process has appended, :attr:`alone` is False
    from then on and a separate member begins.

    Args:
        path: the file; folders are created.
        owner: name of the file's owner, for messages.

    Raises:
        OSError: if it cannot be written.
    """

    def __init__(self, path: str | Path, owner: str) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise OSError(
                f"{owner}: path must be a writable file, got {str(path)!r} ({error.strerror})"
            ) from error
        self._gzip = self.path.suffix == ".gz"
        self._member: zlib._Compress | None = None
        self._lines = 0
        self.alone = True
        found = os.fstat(self._fd)
        self.size, self._regular = found.st_size, stat.S_ISREG(found.st_mode)  # no pipe, no device
        if self.size:
            self._mend()

    def append(self, text: str) -> None:
        """Append lines; if not all can be written, restore the file and raise OSError."""
        self.look()
        data = text.encode()
        before = member = self._member
        if self._gzip:
            if before is None:
                member, self._lines = zlib.compressobj(LEVEL, zlib.DEFLATED, 31), 0
            else:
                member = before.copy()  # a write that fails must not leave its lines behind in here
            data = member.compress(data) + member.flush(zlib.Z_SYNC_FLUSH)
        self._put(data)
        self._member = member
        self._lines += text.count("\n")
        if self._lines >= MEMBER_LINES:
            self.settle()

    def append_bytes(self, data: bytes) -> int:
        """Append encoded bytes as :meth:`append` does; return their offset."""
        self.look()
        self._put(data)
        return self.size - len(data)

    def look(self) -> None:
        """Check whether another process has appended to the file or replaced it."""
        if not self._regular:
            return
        size = os.fstat(self._fd).st_size
        try:
            moved = os.stat(self.path).st_ino != os.fstat(self._fd).st_ino
        except FileNotFoundError:
            moved = True
        if moved:
            os.close(self._fd)
            self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            size = os.fstat(self._fd).st_size
        if moved or size != self.size:
            self.alone, self._member, self.size = False, None, size

    def settle(self) -> None:
        """Close the gzip member, if one is open."""
        if self._member is not None:
            self._put(self._member.copy().flush(zlib.Z_FINISH))
            self._member = None

    @property
    def fresh(self) -> bool:
        """Whether the next lines can be read without the previous ones: a new gzip member, or not alone."""
        return self._member is None if self._gzip else not self.alone

    def _put(self, data: bytes) -> None:
        done = 0
        try:
            while done < len(data):
                done += os.write(self._fd, data[done:])
        except OSError:
            if done and os.fstat(self._fd).st_size == self.size + done:
                os.ftruncate(self._fd, self.size)
            raise
        self.size += len(data)

    def _mend(self) -> None:
        """Repair what a crash left incomplete: a line without its end, a gzip member without its checksum."""
        if not self._gzip:
            if os.pread(self._fd, 1, self.size - 1) != b"\n":
                self._put(b"\n")
            return
        start, piece = _last_member(self._fd, self.size)
        keep, ending = close_member(piece)
        if keep < len(piece):
            os.ftruncate(self._fd, start + keep)
            self.size = start + keep
        self._put(ending)

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)


def gzip_member(text: str) -> bytes:
    """Return text as one gzip member that begins with :data:`MAGIC`."""
    member = zlib.compressobj(LEVEL, zlib.DEFLATED, 31)
    return member.compress(text.encode()) + member.flush()


def close_member(piece: bytes) -> tuple[int, bytes]:
    """Return how much of a torn gzip member holds, and the bytes that close it; of a whole one, nothing.

    Args:
        piece: from the member's beginning to the end of the file.
    """
    whole = zlib.decompressobj(31)
    try:
        whole.decompress(piece)
        if whole.eof:
            return len(piece) - len(whole.unused_data), b""
    except zlib.error:
        pass
    end = len(piece)
    while (end := piece.rfind(_MARK, 0, end)) >= 0:
        # after a sync flush an empty last block, the sum and the length make a member of what is there
        out = zlib.decompressobj(-15)
        try:
            data = out.decompress(piece[10 : end + len(_MARK)])
        except zlib.error:
            continue
        ending = b"\x03\x00" + zlib.crc32(data).to_bytes(4, "little")
        return end + len(_MARK), ending + (len(data) & 0xFFFFFFFF).to_bytes(4, "little")
    return 0, b""


def _last_member(fd: int, size: int) -> tuple[int, bytes]:
    """Return where the last gzip member begins, and its bytes; the whole file where none is found."""
    step = 1 << 20
    start, data = size, b""
    while start > 0:
        begin = max(0, start - step)
        data = os.pread(fd, start - begin, begin) + data
        start = begin
        found = data.rfind(MAGIC)
        if found >= 0:
            return start + found, data[found:]
    return 0, data
