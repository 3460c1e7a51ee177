#!/usr/bin/env bash
# torchinfo 1.8.0: weights that two layers share are counted twice: a language model with tied embeddings is a third larger.
#
# One would guess that "Total params" is what sum(p.numel() for p in model.parameters()) says. Seen: it adds up layers, knowing a layer
# that is used again but not a parameter that is. An embedding tied to the output layer counts in both: 2000 tokens of 64 and a layer of
# 4160 weights are 260160 and not 132160 (GPT-2 of 124 million is one of 163), in the trainable ones and in the size in MB as well.
#
# Exits non-zero if torchinfo does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" torchinfo==1.8.0
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import torch
import torchinfo
from torch import nn


def network(tied, layer_again=False):
    embedding, hidden, output = nn.Embedding(2000, 64), nn.Linear(64, 64), nn.Linear(64, 2000, bias=False)
    if tied:
        output.weight = embedding.weight
    return nn.Sequential(embedding, hidden, hidden if layer_again else nn.Tanh(), output)


print("torchinfo", torchinfo.__version__, "torch", torch.__version__)
tokens = torch.randint(2000, (1, 10))
seen = {}
for name, model in (("untied", network(False)), ("a layer used twice", network(False, True)), ("tied", network(True))):
    found = torchinfo.summary(model, input_data=tokens, verbose=0)
    seen[name] = sum(parameter.numel() for parameter in model.parameters()), found.total_params, found.trainable_params
    print(f"{name}: parameters {seen[name][0]}, total params {seen[name][1]}, trainable {seen[name][2]}")
assert seen["untied"][0] == seen["untied"][1] and seen["a layer used twice"][0] == seen["a layer used twice"][1]
assert seen["tied"] == (132160, 260160, 260160)
PY
