#!/usr/bin/env bash
# tokenizers 0.22.2: WordPiece trained twice on the same text, with the same options, numbers its tokens differently.
#
# Training draws nothing at random and takes no seed, so one would guess that it gives one vocabulary, as BPE, Unigram and WordLevel do here. Seen:
# the tokens are the same, but in every training some dozens of 300 have another number, in one process as in two. Seeds for random do nothing;
# the order is that of a hash map in Rust. So a tokenizer that is made again, by the script that evaluates or on each rank, does not read what
# the first has written: the checkpoint's embeddings belong to other tokens, all shapes match, and nothing says so. Train once and save.
#
# Exits non-zero if tokenizers does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -m pip install --quiet --no-deps --target "$tmp" tokenizers==0.22.2 huggingface-hub==0.36.2
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import random

import tokenizers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

generator = random.Random(0)
TEXT = ["".join(generator.choices("abcdefgh ", k=200)) for _ in range(200)]


def trained(kind):
    random.seed(0)
    tokenizer = Tokenizer(getattr(models, kind)())
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = getattr(trainers, {"BPE": "Bpe"}.get(kind, kind) + "Trainer")(vocab_size=300, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer.get_vocab()


print("tokenizers", tokenizers.__version__)
moved = {}
for kind in ("BPE", "WordLevel", "Unigram", "WordPiece"):
    first, *others = (trained(kind) for _ in range(5))
    assert all(set(other) == set(first) for other in others)
    moved[kind] = [sum(other[token] != number for token, number in first.items()) for other in others]
    print(f"{kind}: of {len(first)} tokens so many have another number after training again: {moved[kind]}")
assert sum(moved["WordPiece"]) > 0 and not any(sum(moved[kind]) for kind in ("BPE", "WordLevel", "Unigram"))
PY
