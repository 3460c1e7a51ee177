#!/usr/bin/env bash
# pyhessian 0.1: measuring the Hessian turns the model to eval() for good.
#
# One would guess that a measurement in mid-run leaves the model as it was. Seen: `hessian(model, ...)` calls model.eval() and nothing turns
# it back: from then on Dropout is off and BatchNorm neither uses nor learns the batch's statistics, in every loop that calls train()
# once, before its first epoch. The run goes on as another network's, without a word.
#
# Exits non-zero if it does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" pyhessian==0.1 numpy==2.4.6
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import torch
from pyhessian import hessian

print("torch", torch.__version__)
torch.manual_seed(0)
layers = torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Tanh(), torch.nn.Dropout(0.5), torch.nn.Linear(8, 2)
model = torch.nn.Sequential(*layers).train()
x, y = torch.randn(32, 4), torch.randint(2, (32,))
assert not torch.equal(model(x), model(x))
top, _ = hessian(model, torch.nn.CrossEntropyLoss(), data=(x, y), cuda=False).eigenvalues()
before = model[1].running_mean.clone()
same, learned = torch.equal(model(x), model(x)), not torch.equal(before, model[1].running_mean)
print("largest eigenvalue", round(top[0], 4), "training afterwards:", model.training)
print("two passes with Dropout agree:", same, "BatchNorm learns:", learned)
assert not model.training and same and not learned
PY
