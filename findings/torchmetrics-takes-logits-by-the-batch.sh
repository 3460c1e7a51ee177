#!/usr/bin/env bash
# torchmetrics 1.9.0: of logits, a binary metric depends on how they are cut into batches.
#
# The documentation says that predictions outside of [0, 1] are taken for logits and put through a sigmoid. One would guess that
# this is found out once, of the data. Seen: it is asked anew of each batch; a batch whose logits all happen to lie in [0, 1] is
# taken for probabilities, so a logit of 0.3 is class 0 there and class 1 in the next batch, and an AUROC ranks
# both scales together. The same 64 predictions have another accuracy in batches of 4, 2 and 1. No warning. The smaller the
# batch (or the last one), the worse; put sigmoid into the call.
#
# Exits non-zero if torchmetrics does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" torchmetrics==1.9.0 lightning-utilities==0.15.3 packaging==26.3
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import torch
import torchmetrics
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC

logits = torch.randn(64, generator=torch.Generator().manual_seed(0))
labels = (torch.rand(64, generator=torch.Generator().manual_seed(1)) < logits.sigmoid()).long()


def value(metric, scores, size):
    for part, target in zip(scores.split(size), labels.split(size)):
        metric.update(part, target)
    return round(float(metric.compute()), 3)


print("torchmetrics", torchmetrics.__version__)
for cls in (BinaryAccuracy, BinaryAUROC):
    raw = {size: value(cls(), logits, size) for size in (64, 4, 2, 1)}
    put = {size: value(cls(), logits.sigmoid(), size) for size in (64, 4, 2, 1)}
    print(f"{cls.__name__} by the size of the batch: of logits {raw}, of their sigmoid {put}")
    assert len(set(put.values())) == 1 and raw[64] == put[64] and len({raw[64], raw[4], raw[1]}) == 3
PY
