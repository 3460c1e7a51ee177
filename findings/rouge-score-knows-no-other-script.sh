#!/usr/bin/env bash
# rouge-score 0.1.2: a summary in Russian, Chinese or Arabic gets ROUGE 0 against itself, an accented word is cut at its accents.
#
# ROUGE counts shared words, so one would guess that equal texts get 1 in any language. Seen: what is not a to z or a digit
# separates words, so that such a text has none and all scores are 0; a mixed text is judged by its numbers and Latin words alone: a
# wrong Russian summary with the right year gets 1. Of "größe" are left "gr" and "e", which match another word's. No
# warning; averages of a multilingual test set are lowered, or made of numbers. RougeScorer(tokenizer=...) with one's own helps.
#
# Exits non-zero if rouge-score does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -m pip install --quiet --target "$tmp" rouge-score==0.1.2 numpy==2.4.6
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
from importlib.metadata import version

from rouge_score.rouge_scorer import RougeScorer

print("rouge-score", version("rouge-score"))


class Words:
    def tokenize(self, text):
        return text.lower().split()


def scores(target, prediction, **options):
    found = RougeScorer(["rouge1", "rougeL"], **options).score(target, prediction)
    return [round(found[name].fmeasure, 2) for name in ("rouge1", "rougeL")]


def show(target, prediction):
    pair = scores(target, prediction), scores(target, prediction, tokenizer=Words())
    print(f"{target!r} and {prediction!r}: {pair[0]}, by words {pair[1]}")
    return pair


same = [show(text, text) for text in ("модель учится быстро", "模型 学习 很 快", "النموذج يتعلم")]
year = show("модель учится с 2024", "поезд опоздал в 2024")
cut = show("größe", "grüe")
english = show("the model learns", "the model learns")
assert all(pair == ([0, 0], [1, 1]) for pair in same) and english[0] == [1, 1]
assert year[0] == [1, 1] and year[1][0] < 0.5 and cut == ([1, 1], [0, 0])
PY
