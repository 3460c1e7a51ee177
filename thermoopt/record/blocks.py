"""Parsing of many readings at once: lines of the same form are read as one array of numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

__all__ = ["BLOCK", "is_reading", "numbers_of"]

Array = NDArray[np.float64]

BLOCK = 512
"""Lines that are parsed at once: about 400 kB, which fit a cache."""

_OF_NUMBERS = b"0123456789.+-enul"
"""Characters of numbers and null; a line without them is its form."""

_LARGEST = 2.0**53
"""Steps below this are exact in float64."""


def is_reading(text: bytes) -> bool:
    """Whether a line begins and ends as the sinks write a reading."""
    return text.startswith(b'{"step":') and text.endswith(b"]]}")


def numbers_of(
    texts: Sequence[bytes], n_skips: int, n_scopes: int, n_quantities: int
) -> tuple[Array, Callable[[], Array]] | None:
    """Return the numbers of readings, or None unless all have the same form and steps rise.

    Lines from :func:`thermoopt.record.form.reading_lines` differ only in their numbers. Any other line,
    even one with the same meaning, is left to a JSON parser. Most of the time is spent on numbers, and most
    numbers are those of groups, which are rarely used: they are parsed on demand.

    Args:
        texts: lines without line endings.
        n_skips, n_scopes, n_quantities: how many numbers the lists hold.

    Returns:
        - Step, loss, skipped, quantities of the total, ``[len(texts), 2 + n_skips + n_quantities]``; null is
          NaN.
        - A function that returns those of groups, ``[len(texts), n_scopes - 1, n_quantities]``; NaN where a
          line holds something that is not a number.
    """
    if b"\n".join(texts).translate(None, _OF_NUMBERS) != _form(n_skips, n_scopes, n_quantities, len(texts)):
        return None
    parts = [text[len(_BEGINS) : -len(_ENDS)].partition(_BETWEEN) for text in texts]
    text = b",".join([total for total, _, _ in parts])
    for words in (b',"loss":', b',"skipped":[', b'],"values":[['):
        text = text.replace(words, b",")
    numbers = _numbers(text, len(texts), 2 + n_skips + n_quantities)
    if numbers is None:
        return None
    steps = numbers[:, 0]
    if not (steps[0] >= 0 and steps[-1] < _LARGEST and (np.diff(steps) > 0).all()):
        return None
    if not (steps == np.floor(steps)).all():
        return None
    return numbers, partial(_groups, [groups for _, _, groups in parts], n_scopes - 1, n_quantities)


def _groups(texts: list[bytes], n_groups: int, n_quantities: int) -> Array:
    shape = (len(texts), n_groups, n_quantities)
    if not n_groups:
        return np.zeros(shape)
    numbers = _numbers(b",".join(texts).replace(_BETWEEN, b","), len(texts), n_groups * n_quantities)
    if numbers is None and len(texts) > 1:  # one of them holds no numbers
        return np.concatenate([_groups([text], n_groups, n_quantities) for text in texts])
    return np.full(shape, np.nan) if numbers is None else numbers.reshape(shape)


def _numbers(text: bytes, lines: int, width: int) -> Array | None:
    """Numbers between commas, ``[lines, width]``, or None if they are not that many."""
    try:  # anything that is not a number ends the array early, in some versions of numpy with a warning
        numbers = np.fromstring(text.replace(b"null", b"nan"), sep=",")
    except (ValueError, DeprecationWarning):  # where warnings are errors
        return None
    return numbers.reshape(lines, width) if numbers.size == lines * width else None


_BEGINS, _BETWEEN, _ENDS = b'{"step":', b"],[", b"]]}"


@lru_cache(maxsize=16)
def _form(n_skips: int, n_scopes: int, n_quantities: int, n_lines: int) -> bytes:
    """Return lines without their numbers."""
    scope = b"[" + b"," * (n_quantities - 1) + b"]"
    line = _BEGINS + b',"loss":,"skipped":[' + b"," * (n_skips - 1)
    line += b'],"values":[' + b",".join([scope] * n_scopes) + b"]}"
    return b"\n".join([line] * n_lines).translate(None, _OF_NUMBERS)
