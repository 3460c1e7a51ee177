"""A progress bar for reading a long record, on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

__all__ = ["reading_bar"]

PATIENCE = 1.0
"""Seconds after which a bar appears; shorter reads need none."""

EVERY = 0.2
"""Seconds between two updates of the bar."""

WIDTH = 24


@contextmanager
def reading_bar(name: str, stream: TextIO | None = None) -> Iterator[Callable[[int, int], None]]:
    """Show a bar with the time left, on a terminal only, once reading has taken more than a second.

    Args:
        name: of what is read.
        stream: where to; None for stderr.

    Yields:
        A function to call with the amount done and the total.
    """
    out = sys.stderr if stream is None else stream
    began = last = time.monotonic()
    drawn = ""

    def show(done: int, whole: int) -> None:
        nonlocal last, drawn
        now = time.monotonic()
        if now - began < PATIENCE or now - last < EVERY or not 0 < done <= whole or not out.isatty():
            return
        last = now
        full = WIDTH * done // whole
        left = (now - began) / done * (whole - done)
        bar = "█" * full + "░" * (WIDTH - full)
        text = f"reading {name}  {bar}  {100 * done // whole:3d} %  {left:.0f} s left"
        out.write("\r" + text.ljust(len(drawn)))
        out.flush()
        drawn = text

    try:
        yield show
    finally:
        if drawn:
            out.write("\r" + " " * len(drawn) + "\r")
            out.flush()
