#!/usr/bin/env bash
# grokadamw 0.1.2: the later a tensor in the list, the larger its first steps, to ten times lr; and a resumed run begins again.
#
# It is `optim="grokadamw"` of Hugging Face's Trainer. One would guess that Adam's first steps are of size lr, and that load_state_dict
# brings its moments back. Seen: beta1 falls by a tenth with every tensor of a group (0.9, 0.81, 0.73, ...), the bias correction divides by
# 1 - 0.9 all the same: the first step of the 24th tensor is 9.2 lr. The moments lie in the group under the parameters themselves
# as keys, `state` is empty; a fresh optimizer that loads them looks for its own parameters and starts from zero, without a word.
# Gradients are clipped to a norm of 1 for each tensor, not for the model.
#
# Exits non-zero if it does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" grokadamw==0.1.2
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import copy

import torch
from grokadamw import GrokAdamW

print("torch", torch.__version__)


def train(weights, optimizer, gradients):
    before = [weight.detach().clone() for weight in weights]
    for gradient in gradients:
        for weight in weights:
            weight.grad = gradient.clone()
        optimizer.step()
    return torch.stack([(weight.detach() - old).abs().mean() for weight, old in zip(weights, before)])


torch.manual_seed(0)
gradients = [0.1 * torch.randn(32) for _ in range(20)]
weights = [torch.nn.Parameter(torch.zeros(32)) for _ in range(24)]
optimizer = GrokAdamW(weights, lr=1e-3, weight_decay=0.0)
first = train(weights, optimizer, gradients[:1]) / 1e-3
print("first step of tensors 1, 2, 3, 24 in units of lr:", [round(float(first[i]), 2) for i in (0, 1, 2, 23)])
assert abs(first[0] - 1) < 0.01 and abs(first[1] - 1.9) < 0.01 and first[23] > 9
train(weights, optimizer, gradients[1:10])
saved, copies = copy.deepcopy(optimizer.state_dict()), [torch.nn.Parameter(w.detach().clone()) for w in weights]
print("state of the checkpoint:", saved["state"])
resumed = GrokAdamW(copies, lr=1e-3, weight_decay=0.0)
resumed.load_state_dict(saved)
went, goes = train(weights, optimizer, gradients[10:11]), train(copies, resumed, gradients[10:11])
print(f"next step of the last tensor: {went[23] / 1e-3:.2f} lr, resumed {goes[23] / 1e-3:.2f} lr")
assert saved["state"] == {} and goes[23] > 3 * went[23] and abs(goes[23] / 1e-3 - first[23]) < 0.1
PY
