#!/usr/bin/env bash
# pytorch_optimizer 4.1.0 with torch 2.13.0: checkpoints of AdaShift, Conda, ScalableShampoo and SCION are written by
# torch.save and refused by torch.load.
#
# Their state or groups hold objects: a deque, a projector, a preconditioner, an enum. torch.load reads tensors and plain
# data only, unless told to trust the file. One would guess that what torch.save(optimizer.state_dict()) writes can be read
# back by torch.load with the arguments that both have by default. Seen: UnpicklingError, when the run is to be resumed.
#
# Exits non-zero if they do something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" pytorch_optimizer==4.1.0
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import io
import pickle
import re

import pytorch_optimizer
import torch

print("torch", torch.__version__)
seen = {}
for name in ("AdamP", "AdaShift", "Conda", "ScalableShampoo", "SCION"):
    p = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = getattr(pytorch_optimizer, name)([p], lr=1e-3)
    for _ in range(12):
        p.grad = torch.randn(4, 4)
        optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    try:
        torch.load(file)
        seen[name] = "loads"
    except pickle.UnpicklingError as error:
        seen[name] = re.search(r"GLOBAL (\S+)", str(error)).group(1)
    print(f"{name}: {seen[name]}")
assert [what == "loads" for what in seen.values()] == [True, False, False, False, False]
PY
