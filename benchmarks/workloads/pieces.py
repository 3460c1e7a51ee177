"""Byte-pair tokens: a tokenizer trained on the training split, so that nothing is downloaded.

References:
    Sennrich, Haddow and Birch, "Neural machine translation of rare words with subword units", 2016;
    Radford et al., "Language models are unsupervised multitask learners", 2019, section 2.2 (over bytes).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thermoopt.benchmarks.workloads.task import require

__all__ = ["encode", "piece_lengths", "train_tokenizer"]


def train_tokenizer(texts: Iterable[str], pieces: int) -> Any:
    """Train a byte-level byte-pair tokenizer; the same texts give the same one.

    Args:
        texts: of the training split only.
        pieces: size of the vocabulary; the 256 bytes are in it, so any text can be encoded.

    Returns:
        The ``tokenizers.Tokenizer``.

    Raises:
        ImportError: tokenizers is not installed.
        ValueError: ``pieces`` is not above 256, or the texts are too short for that many.
    """
    if pieces <= 256:
        raise ValueError(f"pieces={pieces}: more than the 256 bytes are needed")
    library = require("tokenizers", "tokenizers")
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=pieces,
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != pieces:
        raise ValueError(f"pieces={pieces}: the texts give {tokenizer.get_vocab_size()} only")
    return tokenizer


def encode(tokenizer: Any, texts: list[str]) -> Tensor:
    """Return the pieces of all texts, one after the other, as int32."""
    encoded = tokenizer.encode_batch_fast(texts)
    return torch.from_numpy(np.concatenate([np.asarray(e.ids, dtype=np.int32) for e in encoded]))


def piece_lengths(tokenizer: Any) -> Tensor:
    """Return the number of UTF-8 bytes of each piece, int64: a piece has one letter per byte."""
    return torch.tensor([len(tokenizer.id_to_token(i)) for i in range(tokenizer.get_vocab_size())])
