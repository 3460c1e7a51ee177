#!/usr/bin/env bash
# torch 2.13.0: an lr given as a tensor is one tensor for all parameter groups, and schedulers write into it group by group.
#
# torch.compile and capturable want lr=torch.tensor(...). One would guess that groups keep rates of their own, as with
# lr=0.1. Seen with three groups: LambdaLR with a law each gives all of them the last one's rate, one plateau of
# ReduceLROnPlateau(factor=0.5) lowers the rate to an eighth, and so does group["lr"] *= 0.5 in a loop. No error, no
# warning. A dict of its own lr=torch.tensor(...) for each group helps.
#
# Exits non-zero if torch does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch; assert torch.__version__.split("+")[0] == "2.13.0"' 2>/dev/null \
  || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import torch
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau


def laws(optimizer):
    LambdaLR(optimizer, [lambda _: 1.0, lambda _: 0.1, lambda _: 0.01])


def plateau(optimizer):
    scheduler = ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    for loss in (1.0, 1.0):
        scheduler.step(loss)


def by_hand(optimizer):
    for group in optimizer.param_groups:
        group["lr"] *= 0.5


def rates(change, lr):
    optimizer = torch.optim.AdamW([{"params": [torch.nn.Parameter(torch.ones(1))]} for _ in range(3)], lr=lr)
    change(optimizer)
    return [round(float(group["lr"]), 5) for group in optimizer.param_groups]


print("torch", torch.__version__)
seen = {}
for change in (laws, plateau, by_hand):
    seen[change.__name__] = rates(change, 0.1), rates(change, torch.tensor(0.1))
    print("{}: lr=0.1: {}, lr=torch.tensor(0.1): {}".format(change.__name__, *seen[change.__name__]))
assert seen == {
    "laws": ([0.1, 0.01, 0.001], [0.001] * 3),
    "plateau": ([0.05] * 3, [0.0125] * 3),
    "by_hand": ([0.05] * 3, [0.0125] * 3),
}
PY
