#!/usr/bin/env bash
# torchmetrics 1.9.0: in a MetricCollection metrics of different settings become one if their first batch tells them apart in nothing.
#
# A collection lets metrics of the same state share it, and decides that once: by comparing their numbers after the first batch.
# One would guess that what is merged has the same settings. Seen: accuracy at a threshold of 0.5 and at 0.9 are merged after a
# batch of confident predictions, accuracy with ignore_index=0 and without after a batch that has no such label;
# from then on both report the first one's value, whatever comes. No warning. compute_groups=False helps.
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
from torchmetrics.classification import BinaryAccuracy, MulticlassAccuracy

confident = torch.tensor([0.05, 0.95, 0.02, 0.99]), torch.tensor([0, 1, 0, 1])
doubtful = torch.tensor([0.6, 0.7, 0.4, 0.8, 0.3]), torch.tensor([0, 1, 1, 0, 0])
without = torch.tensor([1, 2, 3]), torch.tensor([1, 2, 2])
padding = torch.tensor([0, 0, 0]), torch.tensor([0, 0, 0])


def values(build, batches, **options):
    metrics = torchmetrics.MetricCollection(build(), **options)
    for batch in batches:
        metrics.update(*batch)
    return {name: round(float(value), 3) for name, value in metrics.compute().items()}


def thresholds():
    return {"at_half": BinaryAccuracy(0.5), "at_nine_tenths": BinaryAccuracy(0.9)}


def ignoring():
    return {"all": MulticlassAccuracy(4, average="micro"), "no_0": MulticlassAccuracy(4, average="micro", ignore_index=0)}


print("torchmetrics", torchmetrics.__version__)
for build, batches in ((thresholds, (confident, doubtful)), (ignoring, (without, padding))):
    right, seen = values(build, batches, compute_groups=False), values(build, batches)
    turned = values(build, batches[::-1])
    print(f"each by itself: {right}; in a collection: {seen}; with the batches in the other order: {turned}")
    assert len(set(right.values())) == 2 and len(set(seen.values())) == 1 and turned == right
PY
