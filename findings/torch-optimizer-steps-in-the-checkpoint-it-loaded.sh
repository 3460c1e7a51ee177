#!/usr/bin/env bash
# torch 2.13.0: an optimizer steps in the tensors of the state_dict that it loaded.
#
# Module.load_state_dict copies, and one would guess that of Optimizer.load_state_dict: that a checkpoint in memory can be
# loaded again, into three variants of a run, say. Seen: moments and step counts of parameters' own device and dtype are not
# copied, so the first run that goes on trains the checkpoint with it; the second starts from the first one's moments, and
# ends elsewhere. No error, no warning, in neither place. A copy.deepcopy of the state, or reading the file again, helps.
#
# Exits non-zero if torch does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch; assert torch.__version__.split("+")[0] == "2.13.0"' 2>/dev/null \
  || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import copy

import torch

torch.set_num_threads(1)
x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))


def build():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def train(model, optimizer, steps=10):
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(x) - x[:, :1]).square().mean()
        loss.backward()
        optimizer.step()
    return loss.item()


model, optimizer = build()
train(model, optimizer)
weights, state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))


def resumed(copied):
    model, optimizer = build()
    model.load_state_dict(weights)
    optimizer.load_state_dict(copy.deepcopy(state) if copied else state)
    return train(model, optimizer)


print("torch", torch.__version__)
right = [resumed(copied=True) for _ in range(2)]
print("ten more steps from copies of one checkpoint:", right)
shared, count = [], []
for _ in range(2):
    shared.append(resumed(copied=False))
    count.append(int(state["state"][0]["step"]))
print("from the checkpoint itself:", shared, "its step count afterwards:", count)
assert right[0] == right[1] == shared[0] != shared[1] and count == [20, 30]
PY
