#!/usr/bin/env bash
# adabound 0.0.5, torch_optimizer 0.3.0: a parameter group that is added later is never trained.
#
# add_param_group is torch's way to train layers that are unfrozen in mid-run. One would guess that it works, or raises. Seen: AdaBound notes the
# learning rates of its groups when it is made and walks through both lists together, up to the end of the shorter. Groups that came later are
# listed in param_groups, get gradients and schedules, and stay as they are for ever, without a state and without a word.
#
# Exits non-zero if it does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-compile --no-deps --target "$tmp" adabound==0.0.5 torch-optimizer==0.3.0 pytorch_ranger==0.1.1
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
from importlib.metadata import version

import adabound
import torch
import torch_optimizer

print("torch", torch.__version__, "adabound", version("adabound"), "torch_optimizer", torch_optimizer.__version__)
moved = {}
for library, name in ((adabound, "AdaBound"), (torch_optimizer, "AdaBound"), (torch_optimizer, "DiffGrad"), (torch.optim, "Adam")):
    first, later = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    optimizer = getattr(library, name)([first], lr=0.1)
    optimizer.add_param_group({"params": [later]})
    for _ in range(5):
        first.grad, later.grad = torch.ones(1), torch.ones(1)
        optimizer.step()
    label = f"{library.__name__}.{name}"
    moved[label] = round(1 - later.item(), 3)
    print(f"{label}: five steps move the first group by {1 - first.item():.3f}, the later one by {moved[label]}")
    assert 1 - first.item() > 0.2 and (len(optimizer.state.get(later, {})) == 0) == (name == "AdaBound")
assert moved["adabound.AdaBound"] == moved["torch_optimizer.AdaBound"] == 0
assert moved["torch_optimizer.DiffGrad"] > 0.2 and moved["torch.optim.Adam"] == 0.5
PY
