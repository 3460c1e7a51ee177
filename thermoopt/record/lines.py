"""Lines of a record: plain or gzip, complete, growing or cut off."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["Line", "is_gzip", "is_parquet", "lines", "pieces"]

_GZIP = b"\x1f\x8b"
_MAGIC = b"\x1f\x8b\x08\x00\x00\x00\x00\x00"
_CHUNK = 1 << 20


class Line(NamedTuple):
    """A line of a file.

    Attributes:
        number: from 1, blank ones counted.
        text: without the line ending.
        at: bytes of the file read so far, for progress.
        whole: False for an incomplete line, cut off by a crash or damaged.
    """

    number: int
    text: bytes
    at: int
    whole: bool = True


def is_gzip(path: Path) -> bool:
    """Whether a file begins as gzip does."""
    with path.open("rb") as file:
        return file.read(2) == _GZIP


def is_parquet(path: Path) -> bool:
    """Whether a file is Parquet, or will be once its first row group is closed."""
    if path.suffix == ".parquet" and not path.exists():
        return True
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def lines(path: Path) -> Iterator[Line]:
    """Yield the lines that are not blank; of a damaged gzip member, those before the damage."""
    if is_gzip(path):
        yield from _gzip_lines(path)
        return
    with path.open("rb") as file:
        at = 0
        for number, text in enumerate(file, 1):
            at += len(text)
            if text.strip():
                yield Line(number, text.rstrip(b"\n"), at)


def _gzip_lines(path: Path) -> Iterator[Line]:
    number = 0
    for start, piece in _members(path):
        data, whole = inflate(piece)
        body, _, rest = data.rpartition(b"\n")
        for text in body.split(b"\n"):
            number += 1
            if text.strip():
                yield Line(number, text, start + len(piece))
        if rest or not whole:
            number += 1
            yield Line(number, rest, start + len(piece), whole=False)


def pieces(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield offset, length and text of each line, or of each gzip member with one line."""
    if is_gzip(path):
        for start, piece in _members(path):
            data, _ = inflate(piece)
            yield start, len(piece), data
        return
    at = 0
    with path.open("rb") as file:
        for text in file:
            yield at, len(text), text
            at += len(text)


def inflate(piece: bytes) -> tuple[bytes, bool]:
    """Return the contents of a gzip member and whether it is sound; an unfinished one is."""
    inflater = zlib.decompressobj(31)
    try:
        return inflater.decompress(piece), True
    except zlib.error:
        pass
    # up to the damage, in ever smaller parts
    inflater, out, part = zlib.decompressobj(31), [], 1 << 16
    at = 0
    while at < len(piece):
        kept = inflater.copy()
        try:
            out.append(inflater.decompress(piece[at : at + part]))
            at += part
        except zlib.error:
            if part == 1:
                break
            inflater, part = kept, max(1, part // 16)
    return b"".join(out), False


def _members(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield gzip members with their places: a member ends where the next one begins, whatever it holds."""
    with path.open("rb") as file:
        start, data, searched = 0, b"", 1
        while True:
            more = file.read(_CHUNK)
            data += more
            while (end := data.find(_MAGIC, searched)) >= 0:
                yield start, data[:end]
                start, data, searched = start + end, data[end:], 1
            searched = max(1, len(data) - len(_MAGIC))
            if not more:
                break
        if data:
            yield start, data
