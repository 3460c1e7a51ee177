#!/usr/bin/env bash
# pytorch_optimizer 4.1.0: a deep copy, or a pickle, of nearly all of its optimizers is made without complaint and raises
# AttributeError at its first step.
#
# torch's Optimizer keeps defaults, state and groups in a copy and nothing else, which is all that its own optimizers have.
# These keep flags beside them (self.maximize, self.foreach). One would guess that what copy.deepcopy, torch.save of the
# whole optimizer or a spawned worker returns can step like the original. Seen: of those that take model.parameters() alone
# and step without a closure, all but a handful cannot; their state_dict() is fine.
#
# Exits non-zero if it does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" pytorch_optimizer==4.1.0
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import copy
import pickle

import pytorch_optimizer
import torch


def step(optimizer):
    for p in optimizer.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    try:
        optimizer.step()
    except AttributeError as error:
        return str(error)
    return "steps"


torch.manual_seed(0)
for name in ("AdaBelief", "Adan", "Lamb", "Lion", "MARS", "Prodigy", "RAdam", "SOAP"):
    optimizer = getattr(pytorch_optimizer, name)(torch.nn.Linear(4, 4).parameters(), lr=1e-3)
    assert step(optimizer) == "steps", name
    seen = [step(copied) for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer)))]
    print(f"{name}: the copy: {seen[0]}; the pickle: {seen[1]}")
    assert all("object has no attribute" in what for what in seen), name
PY
