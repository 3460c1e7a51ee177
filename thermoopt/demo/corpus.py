"""Real text that is always available: Python's own sources and documentation, as bytes."""

from __future__ import annotations

import hashlib
import importlib
import math
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["Corpus", "batches", "load_corpus", "unigram_entropy", "windows"]

# Bytes kept. The default demo reads about 3 M training bytes, so nothing is seen much more than once.
MAX_BYTES = 4_000_000
# A file is validation when its path's hash falls into this share of the range of the hash.
VALID_SHARE = 0.1
# Below this no batch of the default demo (16 windows of 65 bytes) fits into 10 % of the text.
MIN_VALID_BYTES = 16 * 65

# Not every installation has these (tests, GUI, build files), or they are tables and copies of text
# that is read elsewhere; leaving them out keeps the corpus alike from machine to machine. Names up to
# the first "-": site-packages, dist-packages, config-3.11-x86_64-linux-gnu.
_LEFT_OUT = {
    "__phello__",
    "__pycache__",
    "_pyrepl",
    "config",
    "dist",
    "distutils",
    "encodings",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "site",
    "test",
    "tests",
    "tkinter",
    "turtledemo",
}


@dataclass(frozen=True)
class Corpus:
    """Bytes to train on and bytes to judge by.

    Attributes:
        train, valid: one-dimensional ``uint8`` tensors.
        sha256: hash of all bytes used and of the assignment of files to the two parts.
        description: what the text is, in words.
        train_files, valid_files: number of files in each part; 1 and 1 for a single file that is split.
    """

    train: Tensor
    valid: Tensor
    sha256: str
    description: str
    train_files: int
    valid_files: int


def load_corpus(text: Path | None = None) -> Corpus:
    """Read the demo's text.

    Without ``text`` it is the standard library's Python sources and the documentation topics of
    ``help()``, at most 4 MB of them, split by file: a hash of a file's path says whether it trains or
    validates, so the split depends on nothing else. A single file is split by position: its last
    tenth validates.

    Args:
        text: a file to read in place of Python's own text, in any encoding.

    Returns:
        The :class:`Corpus`.

    Raises:
        FileNotFoundError: ``text`` is missing or no regular file, or this Python carries no sources.
        ValueError: ``text`` is empty or too short for one validation batch.
    """
    return _python_text() if text is None else _one_file(Path(text))


def batches(data: Tensor, batch: int, context: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw random windows forever.

    Args:
        data: ``uint8`` bytes.
        batch: windows per draw.
        context: bytes per window.
        seed: seed of a separate generator; torch's global one is not touched.

    Yields:
        Inputs and targets, each ``[batch, context]`` int64; a target is its input's next byte.

    Raises:
        ValueError: ``data`` is shorter than one window and its last target.
    """
    _check_length(data, context)
    rng = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(data) - context, (batch,), generator=rng, device="cpu")
        yield _cut(data, starts, context)


def windows(data: Tensor, count: int, context: int) -> tuple[Tensor, Tensor]:
    """Cut a fixed set of equally spaced windows, the same at every call.

    Args:
        data: ``uint8`` bytes.
        count: number of windows.
        context: bytes per window.

    Returns:
        Inputs and targets, each ``[count, context]`` int64.

    Raises:
        ValueError: ``data`` is shorter than one window and its last target.
    """
    _check_length(data, context)
    starts = torch.linspace(0, len(data) - context - 1, count, dtype=torch.float64, device="cpu").long()
    return _cut(data, starts, context)


def unigram_entropy(data: Tensor) -> float:
    """Return the unigram entropy of the bytes: no model without context has a lower loss on ``data``.

    Args:
        data: ``uint8`` bytes, at least one.

    Returns:
        Entropy in nats per byte.
    """
    counts = torch.bincount(data.long(), minlength=256).double()
    p = counts[counts > 0] / counts.sum()
    return -(p * p.log()).sum().item()


def _cut(data: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    block = data[starts[:, None] + torch.arange(context + 1, device="cpu")].long()
    return block[:, :-1], block[:, 1:]


def _check_length(data: Tensor, context: int) -> None:
    if len(data) <= context:
        raise ValueError(f"{len(data)} bytes are too few for a window of {context} bytes and the next one")


def _python_text() -> Corpus:
    files = _sources() | _topics()
    if not files:
        raise FileNotFoundError("this Python has no sources of its standard library; pass a text file")
    # under the cap: the files whose paths hash lowest, a sample of everything, then back in order
    kept: list[str] = []
    size = 0
    for name in sorted(files, key=_rank):
        if size + len(files[name]) <= MAX_BYTES:
            kept.append(name)
            size += len(files[name])
    kept.sort()
    train = [name for name in kept if not _validates(name)]
    valid = [name for name in kept if _validates(name)]
    digest = hashlib.sha256()
    for part, names in (("train", train), ("valid", valid)):
        for name in names:
            digest.update(f"{part}\0{name}\0{len(files[name])}\0".encode())
            digest.update(files[name])
    return Corpus(
        train=_bytes(b"".join(files[name] for name in train)),
        valid=_bytes(b"".join(files[name] for name in valid)),
        sha256=digest.hexdigest(),
        description="Python's own sources and documentation",
        train_files=len(train),
        valid_files=len(valid),
    )


def _one_file(path: Path) -> Corpus:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file" if not path.exists() else f"{path}: not a regular file"
        )
    raw = path.read_bytes()
    if not raw:
        raise ValueError(f"{path}: the file is empty")
    cut = len(raw) - math.floor(len(raw) * VALID_SHARE)
    if len(raw) - cut < MIN_VALID_BYTES:
        raise ValueError(
            f"{path}: {len(raw)} bytes are too few; the last tenth is for validation and needs at least "
            f"{MIN_VALID_BYTES} bytes, so pass a file of {round(MIN_VALID_BYTES / VALID_SHARE)} bytes or more"
        )
    return Corpus(
        train=_bytes(raw[:cut]),
        valid=_bytes(raw[cut:]),
        sha256=hashlib.sha256(raw).hexdigest(),
        description=str(path),
        train_files=1,
        valid_files=1,
    )


def _sources() -> dict[str, bytes]:
    root = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, bytes] = {}
    for folder, inner, files in os.walk(root):
        inner[:] = [name for name in inner if name.split("-")[0] not in _LEFT_OUT]
        for name in files:
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                path = Path(folder, name)
                found[path.relative_to(root).as_posix()] = path.read_bytes()
    return found


def _topics() -> dict[str, bytes]:
    try:
        module = importlib.import_module("pydoc_data.topics")
    except ImportError:  # some distributions package it apart; the hash then says that the text differs
        return {}
    return {f"topics/{name}.txt": text.encode() for name, text in module.topics.items()}


def _rank(name: str) -> bytes:
    return hashlib.sha256(b"cap\0" + name.encode()).digest()


def _validates(name: str) -> bool:
    first = hashlib.sha256(b"split\0" + name.encode()).digest()[:4]
    return int.from_bytes(first, "big") < VALID_SHARE * 2**32


def _bytes(raw: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(raw, dtype=np.uint8).copy())
