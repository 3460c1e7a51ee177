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
VALID_SHARE = 0.25  # of a part's paragraphs; whole files, those whose paths hash lowest

Example = tuple[str, int]
"""A paragraph and the position of its part in :data:`PARTS`."""


def labelled_paragraphs(trained: int, judged: int) -> tuple[list[Example], list[Example]]:
    """Read the examples, split by file; a paragraph that occurs in two files is in neither split.

    Args:
        trained: maximum number of training examples of each of :data:`PARTS`.
        judged: number of validation examples of each.

    Returns:
        Training and validation examples.

    Raises:
        FileNotFoundError: if this Python has too little of its standard library's sources: fewer than
            ``judged`` examples of a part, or than half of ``trained``.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    parts = [
        {
            p.relative_to(root).as_posix(): set(_paragraphs(p.read_bytes()))
            for n in names
            for p in _files(root / n)
        }
        for names in PARTS.values()
    ]
    files = Counter(text for part in parts for texts in part.values() for text in texts)
    train: list[Example] = []
    valid: list[Example] = []
    for label, (name, part) in enumerate(zip(PARTS, parts, strict=True)):
        own = {path: [t for t in texts if files[t] == 1] for path, texts in part.items()}
        wanted = max(judged, round(VALID_SHARE * sum(map(len, own.values()))))
        splits: tuple[list[str], list[str]] = ([], [])
        for path in sorted(own, key=_rank):
            splits[len(splits[1]) < wanted].extend(own[path])
        if len(splits[0]) < trained / 2 or len(splits[1]) < judged:
            raise FileNotFoundError(
                f"this Python's standard library has too few sources of {name} ({', '.join(PARTS[name])}): "
                f"{len(splits[0])} paragraphs to train on and {len(splits[1])} to judge by"
            )
        train += [(text, label) for text in sorted(splits[0], key=_rank)[:trained]]
        valid += [(text, label) for text in sorted(splits[1], key=_rank)[:judged]]
    return train, valid


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        found = sorted(path.rglob("*.py"))
        yield from (p for p in found if not {"test", "tests"} & set(p.relative_to(path).parts))
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


def _rank(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="replace")).digest()
