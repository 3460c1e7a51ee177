#!/usr/bin/env bash
# torch-optimizer 0.3.0: SGDW's weight decay takes the same amount off every weight, negative ones too.
#
# One would guess that decoupled decay multiplies weights by 1 - lr * weight_decay, as in torch-optimizer's own Lamb and everywhere else.
# Seen: SGDW takes lr * weight_decay off each weight, whatever its size and sign: one of 0 becomes negative, one of -1 goes on to -2,
# and so on without end. No warning; the loss falls all the same where gradients are stronger.
#
# Exits non-zero if it does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" torch-optimizer==0.3.0 pytorch-ranger==0.1.1
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import torch
import torch_optimizer

print("torch", torch.__version__, "torch_optimizer", torch_optimizer.__version__)
start = torch.tensor([100.0, 1.0, 0.0, -1.0])
seen = {}
for name, cls in (("SGDW", torch_optimizer.SGDW), ("torch.AdamW", torch.optim.AdamW)):
    weight = torch.nn.Parameter(start.clone())
    optimizer = cls([weight], lr=0.1, weight_decay=0.1)
    for _ in range(100):
        weight.grad = torch.zeros(4)
        optimizer.step()
    seen[name] = weight.detach()
    print(f"{name}: {start.tolist()} after 100 steps without a gradient: {[round(w, 3) for w in seen[name].tolist()]}")
assert torch.allclose(seen["torch.AdamW"], start * 0.99**100, rtol=1e-3)
assert torch.allclose(seen["SGDW"], start - 1.0, atol=1e-3)
PY
