"""Words of Python's own text: vocabulary and common parts of word models."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from functools import cache

from thermoopt.benchmarks.workloads.text import corpus

__all__ = ["split_words", "text_words", "vocabulary"]

WORD = re.compile(r"[a-z]{2,}")


def split_words(text: str) -> list[str]:
    """Return the runs of at least two letters, in lower case."""
    return WORD.findall(text.lower())


def vocabulary(words: Iterable[str], size: int) -> dict[str, int]:
    """Number the ``size`` most frequent words from 0; ties are broken alphabetically."""
    counts = Counter(words)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return {word: i for i, word in enumerate(ranked[:size])}


@cache
def text_words() -> tuple[list[str], list[str]]:
    """Return the words of the training and of the validation text, in order."""
    text = corpus()
    train, valid = (
        split_words(bytes(part.numpy()).decode(errors="replace")) for part in (text.train, text.valid)
    )
    return train, valid
