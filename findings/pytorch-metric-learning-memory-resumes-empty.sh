#!/usr/bin/env bash
# pytorch-metric-learning 2.9.0: CrossBatchMemory saves its memory but not how full it is, and resumes with next to none.
#
# Its state_dict holds the embeddings and labels of earlier batches, so one would guess that a resumed run compares with them. Seen: the
# place in the queue and whether it has been filled are plain attributes. After load_state_dict all the memory is there and none of
# it is used: the first batches are compared with themselves alone, as at the start of training, and overwrite what was loaded from
# its front on, not its oldest. Every loss is another until the queue is full again. Nothing is said, all keys match. Setting
# queue_idx and has_been_filled by hand helps.
#
# Exits non-zero if pytorch-metric-learning does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" pytorch-metric-learning==2.9.0 scikit-learn==1.7.2 scipy==1.17.1 numpy==2.4.6 joblib threadpoolctl tqdm
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import copy

import pytorch_metric_learning
import torch
from pytorch_metric_learning.losses import ContrastiveLoss, CrossBatchMemory


def batch(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 4, generator=generator), torch.randint(3, (8,), generator=generator)


def losses(loss, steps):
    return [round(float(loss(*batch(step))), 4) for step in steps]


print("pytorch-metric-learning", pytorch_metric_learning.__version__)
whole = CrossBatchMemory(ContrastiveLoss(), 4, memory_size=64)
losses(whole, range(20))
state = copy.deepcopy(whole.state_dict())
print("saved:", {name: list(value.shape) for name, value in state.items()})
resumed = CrossBatchMemory(ContrastiveLoss(), 4, memory_size=64)
print(resumed.load_state_dict(state))
mended = CrossBatchMemory(ContrastiveLoss(), 4, memory_size=64)
mended.load_state_dict(state)
mended.queue_idx, mended.has_been_filled = whole.queue_idx, whole.has_been_filled
print("place in the queue:", whole.queue_idx, whole.has_been_filled, "resumed:", resumed.queue_idx, resumed.has_been_filled)
went_on, again, by_hand = (losses(loss, range(20, 26)) for loss in (whole, resumed, mended))
print("goes on:", went_on, "\nresumed:", again, "\nby hand:", by_hand)
assert went_on == by_hand and all(a != b for a, b in zip(went_on, again))
PY
