#!/usr/bin/env bash
# dadaptation 3.2, pytorch_optimizer 4.1.0: a parameter group whose lr is 0 moves as fast as the others.
#
# dadaptation's optimizers say in an error that groups may differ in lr if it is 0 in some, which is how layers are frozen.
# One would guess that such a group stays where it is. Seen: DAdaptLion takes lr=0 and steps the group at the rate of
# the others; DAdaptAdan and DAdaptAdaGrad, and pytorch_optimizer's Prodigy and all of its DAdapt, take the first
# group's lr for every group, whatever the others say, and freeze everything if the first one is frozen. No error, no warning.
# Seen right: dadaptation's DAdaptAdam and DAdaptSGD.
#
# Exits non-zero if they do something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" dadaptation==3.2 pytorch_optimizer==4.1.0
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import dadaptation
import pytorch_optimizer
import torch


def moved(cls, *lrs):
    weights = [torch.nn.Parameter(torch.ones(8)) for _ in lrs]
    optimizer = cls([{"params": [w]} for w in weights])
    for group, lr in zip(optimizer.param_groups, lrs):
        group["lr"] *= lr
    for _ in range(20):
        for w in weights:
            w.grad = w.detach().clone()
        optimizer.step()
    return [bool((w.detach() != 1).any()) for w in weights]


print("torch", torch.__version__)
right, wrong = [], []
for package in (dadaptation, pytorch_optimizer):
    for name in ("DAdaptAdam", "DAdaptSGD", "DAdaptLion", "DAdaptAdan", "DAdaptAdaGrad", "Prodigy"):
        cls = getattr(package, name, None)
        if cls is None:
            continue
        second, first = moved(cls, 1.0, 0.0), moved(cls, 0.0, 1.0)
        print(f"{package.__name__}.{name}: groups that move with lr 1, 0: {second}; with 0, 1: {first}")
        assert moved(cls, 1.0, 1.0) == [True, True]
        (right if second == [True, False] and first == [False, True] else wrong).append(cls)
assert right == [dadaptation.DAdaptAdam, dadaptation.DAdaptSGD], right
assert all(moved(cls, 1.0, 0.0) == [True, True] for cls in wrong)
PY
