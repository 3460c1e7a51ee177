#!/usr/bin/env bash
# higher 0.2.1: differentiable optimizers ignore maximize and decoupled_weight_decay, and go the other way.
#
# innerloop_ctx takes a torch optimizer and is to do, differentiably, what it does. Seen: it was written before torch had
# these options, reads those that it knows from the groups and drops the others without a word. SGD(maximize=True), as in an inner
# loop of adversarial training, descends; Adam(decoupled_weight_decay=True), which is AdamW, couples its decay. (torch's AdamW is
# refused, with an error.) A negated loss helps for the first.
#
# Exits non-zero if higher does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" higher==0.2.1
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import copy

import higher
import torch

torch.set_num_threads(1)
torch.manual_seed(0)
x = torch.randn(64, 3)
y = x.sum(1, keepdim=True)
net = torch.nn.Linear(3, 1)


def loss(module):
    return torch.nn.functional.mse_loss(module(x), y)


def both(make):
    """The weights after five steps by torch, and by higher; and the loss there."""
    plain, other = copy.deepcopy(net), copy.deepcopy(net)
    optimizer = make(plain.parameters())
    with higher.innerloop_ctx(other, make(other.parameters())) as (functional, inner):
        for _ in range(5):
            optimizer.zero_grad()
            loss(plain).backward()
            optimizer.step()
            inner.step(loss(functional))
        return plain.weight.detach(), functional.weight.detach(), float(loss(plain)), float(loss(functional))


print("higher 0.2.1, torch", torch.__version__, "loss at the start", round(float(loss(net)), 3))
cases = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05),
    "SGD(maximize=True)": lambda p: torch.optim.SGD(p, lr=0.05, maximize=True),
    "Adam(weight_decay=1)": lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=1.0),
    "Adam(maximize=True)": lambda p: torch.optim.Adam(p, lr=0.05, maximize=True),
    "Adam(weight_decay=1, decoupled_weight_decay=True)": lambda p: torch.optim.Adam(
        p, lr=0.05, weight_decay=1.0, decoupled_weight_decay=True
    ),
}
for name, make in cases.items():
    by_torch, by_higher, loss_torch, loss_higher = both(make)
    alike = torch.allclose(by_torch, by_higher, atol=1e-5)
    print(f"{name}: loss by torch {loss_torch:.3f}, by higher {loss_higher:.3f}")
    assert alike is (name in ("SGD", "Adam(weight_decay=1)"))
    if "maximize" in name:
        assert loss_torch > float(loss(net)) > loss_higher
PY
