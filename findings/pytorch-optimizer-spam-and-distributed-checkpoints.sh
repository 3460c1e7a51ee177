#!/usr/bin/env bash
# pytorch_optimizer 4.1.0 with torch 2.13.0: SPAM cannot be saved by torch.distributed.checkpoint.
#
# SPAM keeps the ints "total_step" and "current_step" in optimizer.state, beside the parameters. optimizer.state_dict()
# and torch.save take it; one would guess that get_optimizer_state_dict, which works on one process for any optimizer that
# torch.save takes, does too. Seen: KeyError: 'total_step' after the first step (none before it), so the first checkpoint
# of a long run fails. Anything that walks optimizer.state.items() and expects dicts fails likewise.
#
# Exits non-zero if the two get on.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" pytorch_optimizer==4.1.0
PYTHONPATH=$tmp "$python" - <<'PY'
import io

import torch
from pytorch_optimizer import load_optimizer
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

model = torch.nn.Linear(4, 1)
optimizer = load_optimizer("spam")(model.parameters())
model(torch.randn(3, 4)).sum().backward()
optimizer.step()
print("keys of optimizer.state that are no parameters:", [k for k in optimizer.state if isinstance(k, str)])
torch.save(optimizer.state_dict(), io.BytesIO())
print("torch.save of state_dict(): works")
try:
    get_optimizer_state_dict(model, optimizer)
except KeyError as error:
    print("get_optimizer_state_dict: KeyError", error)
else:
    raise SystemExit("get_optimizer_state_dict works now")
PY
