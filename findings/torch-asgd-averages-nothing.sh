#!/usr/bin/env bash
# torch 2.13.0: ASGD, averaged SGD, trains and leaves the weights of plain SGD, and hears a new lr a step late.
#
# One would guess that the model ends with averaged weights, as the name and the docstring's paper say. Seen: averaging begins after t0 = 1e6
# steps unless told otherwise, and then the average goes to optimizer.state[p]["ax"], from where no method brings it to the model: without
# lambd and alpha the weights are SGD's, bit for bit. The rate of a step was worked out at the end of the step before: a group whose lr is
# set to 0 moves once more, and a schedule runs a step late, so that its first step has the rate of none.
#
# Exits non-zero if it does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import torch

print("torch", torch.__version__)
torch.manual_seed(0)
gradients = [torch.randn(8) for _ in range(50)]


def train(cls, **options):
    weight = torch.nn.Parameter(torch.ones(8))
    optimizer = cls([weight], lr=0.1, **options)
    path = []
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
        path.append(weight.detach().clone())
    return torch.stack(path), optimizer.state[weight]


sgd, _ = train(torch.optim.SGD)
path, state = train(torch.optim.ASGD, lambd=0.0, alpha=0.0, t0=0.0)
print("weights of ASGD(t0=0) are SGD's:", torch.equal(path, sgd))
print("from the mean of the run: weights", float((path[-1] - sgd.mean(0)).norm()), "ax", float((state["ax"] - sgd.mean(0)).norm()))
assert torch.equal(path, sgd) and (state["ax"] - sgd.mean(0)).norm() < 0.2 < (path[-1] - sgd.mean(0)).norm()
path, state = train(torch.optim.ASGD)
print("by default ax is the last weight:", torch.equal(state["ax"], path[-1]))
assert torch.equal(state["ax"], path[-1])
moves = {}
for cls in (torch.optim.SGD, torch.optim.ASGD):
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = cls([weight], lr=0.1)
    moves[cls.__name__] = []
    for lr in (0.1, 0.1, 0.0, 0.0):
        optimizer.param_groups[0]["lr"] = lr
        before = weight.detach().clone()
        weight.grad = torch.ones(1)
        optimizer.step()
        moves[cls.__name__].append(round(float(before - weight.detach()), 3))
print("steps with lr 0.1, 0.1, 0, 0:", moves)
assert moves == {"SGD": [0.1, 0.1, 0.0, 0.0], "ASGD": [0.1, 0.1, 0.1, 0.0]}
PY
