"""Paragraphs of the standard library's docstrings and comments, labelled by the part that they come from."""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

__all__ = ["PARTS", "labelled_paragraphs"]

PARTS = {
    "asyncio": ("asyncio",),
    "mail": ("email", "imaplib.py", "mailbox.py", "poplib.py", "smtplib.py"),
    "import": ("importlib", "modulefinder.py", "pkgutil.py", "runpy.py", "zipimport.py"),
    "markup": ("html", "xml"),
    "testing": ("bdb.py", "doctest.py", "pdb.py", "unittest"),
    "web": ("http", "socketserver.py", "urllib", "webbrowser.py", "wsgiref", "xmlrpc"),
    "processes": ("concurrent", "multiprocessing", "queue.py", "subprocess.py", "threading.py"),
    "files": (
        "filecmp.py", "fileinput.py", "fnmatch.py", "genericpath.py", "glob.py", "gzip.py", "lzma.py",
        "ntpath.py", "os.py", "pathlib", "pathlib.py", "posixpath.py", "shutil.py", "tarfile.py",
        "tempfile.py", "zipfile", "zipfile.py",
    ),
}  # fmt: skip
"""The classes: names of modules and packages at the top of the library, those with most text of a subject."""

SHORTEST = 40  # characters; below, headings and remarks that could stand anywhere
VALID_SHARE = 0.25  # of the files, by a hash of their path; at a tenth some part has no file to judge by


def labelled_paragraphs(
    a_part: int, judged_a_part: int
) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Read the examples, split by file; a paragraph that stands in two files is in neither split.

    Args:
        a_part: at most so many training examples of each of :data:`PARTS`.
        judged_a_part: so many examples of each to judge by.

    Returns:
        Training and validation examples: text and the position of its part in :data:`PARTS`.

    Raises:
        FileNotFoundError: this Python carries too little of its standard library's sources.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    read: list[tuple[str, int, bool]] = []
    for label, names in enumerate(PARTS.values()):
        for path in (p for name in names for p in _files(root / name)):
            valid = _share(path.relative_to(root).as_posix()) < VALID_SHARE
            read += [(text, label, valid) for text in sorted(set(_paragraphs(path.read_bytes())))]
    files = Counter(text for text, _, _ in read)
    read = sorted((example for example in read if files[example[0]] == 1), key=lambda e: _share(e[0]))
    train, judged = [], []
    for label, name in enumerate(PARTS):
        for split, valid, most in ((train, False, a_part), (judged, True, judged_a_part)):
            split += [(text, k) for text, k, v in read if k == label and v == valid][:most]
        if sum(k == label for _, k in judged) < judged_a_part:
            raise FileNotFoundError(
                f"this Python carries too few sources of its standard library's part {name!r} ({PARTS[name]}) "
                f"to judge by {judged_a_part} paragraphs"
            )
    return train, judged


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(p for p in path.rglob("*.py") if not {"test", "tests"} & set(p.parts))
    elif path.exists():  # some are a file in one version of Python and a package in another
        yield path


def _paragraphs(source: bytes) -> Iterator[str]:
    blocks: list[str] = []
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, documented):
            blocks += re.split(r"\n\s*\n", ast.get_docstring(node) or "")
    comments = re.findall(r"(?:^[ \t]*#.*\n)+", source.decode(errors="replace"), re.MULTILINE)
    blocks += [re.sub(r"^[ \t]*#+", "", block, flags=re.MULTILINE) for block in comments]
    for block in blocks:
        text = " ".join(block.split())
        if len(text) >= SHORTEST:
            yield text


def _share(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode(errors="replace")).digest()[:4], "big") / 2**32
