#!/usr/bin/env bash
# tokenizers 0.22.2: special tokens that were added before training share their numbers with letters, and a byte-level BPE drops bytes.
#
# One would guess that training keeps the tokens that are there and numbers its own after them. Seen: it numbers from 0 again.
# [PAD] stays 0 and so is a letter; get_vocab_size counts both, no error, no warning. A mask of "not [PAD]" hides that letter, and decode
# gives [PAD] for it, or drops it as special. (Special tokens named in the trainer get numbers of their own.)
# And byte-level BPE, which one would guess can write any text, knows only bytes that it met in training: an upper-case letter or a newline
# that was not there vanishes in encode. initial_alphabet=ByteLevel.alphabet() in the trainer helps.
#
# Exits non-zero if tokenizers does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -m pip install --quiet --no-deps --target "$tmp" tokenizers==0.22.2 huggingface-hub==0.36.2
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEXT = ["the cat sat on the mat", "a dog ran in the park"] * 20


def byte_level(added=(), **options):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(added))
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=400, show_progress=False, **options))
    return tokenizer


def there_and_back(tokenizer, text):
    numbers = tokenizer.encode(text).ids
    back = tokenizer.decode(numbers)
    print(f"  {text!r} is {numbers}, decoded {back!r}")
    return back


print("tokenizers", tokenizers.__version__)
before = byte_level(added=["[PAD]"])
vocabulary = before.get_vocab()
shared = [token for token, number in vocabulary.items() if number == vocabulary["[PAD]"]]
print("added before training: number", vocabulary["[PAD]"], "is", shared, "- tokens", len(vocabulary), "numbers", len(set(vocabulary.values())))
lost = there_and_back(before, "a cat")
named = byte_level(special_tokens=["[PAD]"])
print("named in the trainer:")
kept = there_and_back(named, "a cat")
print("bytes that were not in the training text:")
dropped = there_and_back(named, "The cat costs $5\n")
whole = there_and_back(byte_level(initial_alphabet=pre_tokenizers.ByteLevel.alphabet()), "The cat costs $5\n")
assert len(shared) == 2 and len(set(vocabulary.values())) == len(vocabulary) - 1
assert lost != "a cat" == kept and dropped == "he cat costs " and whole == "The cat costs $5\n"
PY
