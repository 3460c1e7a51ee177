#!/usr/bin/env bash
# torch 2.13.0: a learning rate from numpy makes checkpoints that torch.load refuses.
#
# numpy.float64 is a float, so lr=numpy.logspace(-4, -2, 5)[i], as a sweep has it, passes every check; a LambdaLR whose
# law says numpy.cos puts one into the optimizer by itself, though it was given lr=1e-3. One would guess that it is a
# number in the checkpoint. Seen: torch.save writes a numpy scalar, and torch.load with its default arguments raises
# UnpicklingError for it, when the run is to be resumed. The scheduler's own state is refused with it.
#
# Exits non-zero if torch does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch; assert torch.__version__.split("+")[0] == "2.13.0"' 2>/dev/null \
  || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import io
import pickle

import numpy as np
import torch


def outcome(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    try:
        torch.load(file)
    except pickle.UnpicklingError:
        return "refused"
    return "loads"


def optimizer(lr):
    made = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=lr)
    made.step()
    return made


print("torch", torch.__version__, "numpy", np.__version__)
scheduled = optimizer(1e-3)
scheduler = torch.optim.lr_scheduler.LambdaLR(scheduled, lambda step: 0.5 * (1 + np.cos(np.pi * step / 100)))
scheduler.step()
seen = {
    "lr=1e-3": outcome(optimizer(1e-3).state_dict()),
    "lr=numpy.logspace(-4, -2, 5)[2]": outcome(optimizer(np.logspace(-4, -2, 5)[2]).state_dict()),
    "LambdaLR by numpy.cos, the optimizer": outcome(scheduled.state_dict()),
    "LambdaLR by numpy.cos, the scheduler": outcome(scheduler.state_dict()),
}
for name, what in seen.items():
    print(f"{name}: {what}")
assert list(seen.values()) == ["loads", "refused", "refused", "refused"]
PY
