#!/usr/bin/env bash
# bitsandbytes 0.50.2: Adam's weight_decay is AdamW's.
#
# torch, and the paper, keep two optimizers apart: Adam adds the decay to the gradient, which its denominator then takes away again,
# AdamW shrinks the weights by lr * weight_decay. One would guess that bitsandbytes' Adam and AdamW differ in that, too. Seen on CPU: they
# are one and the same but for their default, to the last bit, in 32 and in 8 bits. Whoever goes from torch's Adam with weight_decay=0.1 to Adam8bit
# has a weight of 100 under gradients of 100 shrink by 1 % in ten steps, where it did not shrink. RMSprop and Adagrad do add the decay to
# the gradient.
#
# Exits non-zero if it does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" bitsandbytes==0.50.2 packaging==26.4
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import bitsandbytes
import torch


def step(cls, value, gradient):
    weight = torch.nn.Parameter(torch.full((64, 64), value))
    optimizer = cls([weight], lr=1e-2, weight_decay=0.1)
    for _ in range(10):
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
    return value - weight.detach()


print("torch", torch.__version__, "bitsandbytes", bitsandbytes.__version__)
seen = {}
for cls in (torch.optim.Adam, torch.optim.AdamW, bitsandbytes.optim.Adam, bitsandbytes.optim.AdamW):
    key = f"{cls.__module__.split('.')[0]}.{cls.__name__}"
    seen[key] = step(cls, 100.0, 100.0)
    print(f"{key}: ten steps at lr 0.01 with weight_decay 0.1 take a weight of 100 down by {seen[key].mean():.3f}")
assert abs(seen["torch.Adam"].mean() - 0.1) < 1e-3 and abs(seen["torch.AdamW"].mean() - 1.096) < 1e-2
assert torch.equal(seen["bitsandbytes.Adam"], seen["bitsandbytes.AdamW"])
assert (seen["bitsandbytes.Adam"] - seen["torch.AdamW"]).abs().max() < 1e-3
adam8, adamw8 = (step(cls, 100.0, 100.0) for cls in (bitsandbytes.optim.Adam8bit, bitsandbytes.optim.AdamW8bit))
print(f"Adam8bit {adam8.mean():.3f}, AdamW8bit {adamw8.mean():.3f}")
assert torch.equal(adam8, adamw8) and abs(adam8.mean() - 1.096) < 2e-2
PY
