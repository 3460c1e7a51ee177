#!/usr/bin/env bash
# transformers 4.57.6 with tokenizers 0.22.2: the options of the last call are saved with the tokenizer, which then cuts all texts elsewhere.
#
# truncation and max_length are arguments of one call, so one would guess that they end with it. Seen: a fast tokenizer sets them in
# the Rust object below and save_pretrained writes them into tokenizer.json. Whatever reads that file by itself (the tokenizers
# library, its other languages, servers built on it) cuts and pads every text as the last call before saving was told to, without a
# word. AutoTokenizer does not show it, as it sets both anew at each call. Saving before the first call, or after one without them, helps.
#
# Exits non-zero if transformers does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -m pip install --quiet --target "$tmp" transformers==4.57.6 tokenizers==0.22.2 huggingface-hub==0.36.2 numpy==2.4.6
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import tempfile

import tokenizers
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXT = "the cat sat on a mat"
words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
words.train_from_iterator([TEXT], trainers.WordLevelTrainer(special_tokens=["[UNK]", "[PAD]"], show_progress=False))


def read_back(*calls):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")
    for options in calls:
        tokenizer([TEXT], **options)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        by_itself = Tokenizer.from_file(f"{folder}/tokenizer.json")
        again = PreTrainedTokenizerFast.from_pretrained(folder)
    return by_itself.encode(TEXT).tokens, by_itself.encode("the cat").tokens, len(again(TEXT)["input_ids"])


print("transformers", transformers.__version__, "tokenizers", tokenizers.__version__)
short = {"truncation": True, "max_length": 3, "padding": "max_length"}
fresh, used, then_without = read_back(), read_back(short), read_back(short, {})
print("saved fresh:", fresh, "\nsaved after a call with max_length=3:", used, "\nafter one more call without:", then_without)
assert fresh == then_without == (TEXT.split(), ["the", "cat"], 6)
assert used == (["the", "cat", "sat"], ["the", "cat", "[PAD]"], 6)
PY
