#!/usr/bin/env bash
# transformers 5.24.0: SwiftFormer's attention weights are all 1: a softmax over a dimension of one; w_g never learns.
#
# Efficient additive attention weighs the queries of all places by query @ w_g and sums them. One would guess that the softmax runs over the
# places. Seen: it runs over the last dimension, which holds one number: every weight is exactly 1, whatever w_g, whose gradient is exactly
# 0. No message; weight decay alone moves it. The authors' own code had this and now normalises over the places (Amshaker/SwiftFormer issues
# 2 and 4).
#
# Exits non-zero if it does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-compile --target "$tmp" transformers==5.24.0
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import torch
import transformers
from transformers import SwiftFormerConfig, SwiftFormerForImageClassification

torch.manual_seed(0)
config = SwiftFormerConfig(image_size=64, depths=[1, 1, 1, 1], embed_dims=[8, 16, 24, 32], num_labels=3)
model = SwiftFormerForImageClassification(config).eval()
images, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 0])
before = model(pixel_values=images, labels=labels)
before.loss.backward()
print("torch", torch.__version__, "transformers", transformers.__version__)
attention = {name: p for name, p in model.named_parameters() if name.endswith("attn.w_g")}
for name, p in attention.items():
    print(f"{name}: {p.numel()} weights, largest gradient {float(p.grad.abs().max())}")
others = min(float(p.grad.abs().max()) for name, p in model.named_parameters() if "attn.to_query.weight" in name)
with torch.no_grad():
    for p in attention.values():
        p.copy_(100 * torch.randn(p.shape))
after = model(pixel_values=images, labels=labels)
print("the same output with other w_g, a hundred times as large:", torch.equal(before.logits, after.logits))
assert len(attention) == 4 and all(bool((p.grad == 0).all()) for p in attention.values()) and others > 0
assert torch.equal(before.logits, after.logits)
PY
