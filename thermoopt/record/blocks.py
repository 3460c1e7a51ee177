"""Many readings at once: lines that all look alike are read as one array of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["BLOCK", "is_reading", "numbers_of"]

BLOCK = 512
"""Lines that are read at once: some 400 kB, which stay in a cache."""

_OF_NUMBERS = b"0123456789.+-enul"
"""What numbers and null consist of; what is left of a line without them is its form."""

_LARGEST = 2.0**53
"""Steps below it are exact as float64."""


def is_reading(text: bytes) -> bool:
    """Whether a line begins and ends as the sinks write a reading."""
    return text.startswith(b'{"step":') and text.endswith(b"]]}")


def numbers_of(
    texts: Sequence[bytes], n_skips: int, n_scopes: int, n_quantities: int
) -> NDArray[np.float64] | None:
    """Return the numbers of readings, or None if they are not all of one form, with steps that rise.

    Formatted as :func:`thermoopt.record.form.reading_lines` does it, lines differ in nothing but numbers. Any
    other line, also one with the same meaning, is left to a parser of JSON.

    Args:
        texts: lines without their ends.
        n_skips, n_scopes, n_quantities: how many numbers the lists hold.

    Returns:
        ``[len(texts), 2 + n_skips + n_scopes * n_quantities]``: step, loss, skipped, quantities; null is NaN.
    """
    text = b"\n".join(texts) + b"\n"
    if text.translate(None, _OF_NUMBERS) != _form(n_skips, n_scopes, n_quantities) * len(texts):
        return None
    for words, separator in _SEPARATORS:
        text = text.replace(words, separator)
    width = 2 + n_skips + n_scopes * n_quantities
    try:  # without the last comma; what is no number ends the array early, by numpy's version with a warning
        numbers = np.fromstring(text[:-1], sep=",")
    except (ValueError, DeprecationWarning):  # where warnings are errors
        return None
    if numbers.size != width * len(texts):
        return None
    numbers = numbers.reshape(len(texts), width)
    steps = numbers[:, 0]
    if not (steps[0] >= 0 and steps[-1] < _LARGEST and (np.diff(steps) > 0).all()):
        return None
    return numbers if (steps == np.floor(steps)).all() else None


_SEPARATORS = (
    (b'{"step":', b""),
    (b',"loss":', b","),
    (b',"skipped":[', b","),
    (b'],"values":[[', b","),
    (b"],[", b","),
    (b"]]}\n", b","),
    (b"null", b"nan"),
)


@lru_cache(maxsize=16)
def _form(n_skips: int, n_scopes: int, n_quantities: int) -> bytes:
    """What is left of a line without its numbers."""
    scope = b"[" + b"," * (n_quantities - 1) + b"]"
    line = b'{"step":,"loss":,"skipped":[' + b"," * (n_skips - 1)
    line += b'],"values":[' + b",".join([scope] * n_scopes) + b"]}\n"
    return line.translate(None, _OF_NUMBERS)
