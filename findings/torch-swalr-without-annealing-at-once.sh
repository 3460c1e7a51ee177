#!/usr/bin/env bash
# torch 2.13.0: SWALR(anneal_epochs=0) takes over the learning rate when it is made, not when it is stepped.
#
# torch's guide makes both schedules before the loop: one for training, and SWALR, which is stepped from a later epoch on.
# anneal_epochs=0 is allowed and should mean that the rate is swa_lr from SWALR's first step on. Seen: it is swa_lr from the
# line that makes it. A StepLR and a cosine go on from there, so with swa_lr=0.05 for a rate of 1 the whole training before the
# averaging runs at a twentieth of its rate; with anneal_epochs=1 it does not, and with a LambdaLR only the first epoch. Nothing is
# said, and the last rates are as asked.
#
# Exits non-zero if torch does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch; assert torch.__version__.split("+")[0] == "2.13.0"' 2>/dev/null \
  || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, StepLR
from torch.optim.swa_utils import SWALR

SCHEDULES = {
    "StepLR": lambda optimizer: StepLR(optimizer, 4, 0.5),
    "CosineAnnealingLR": lambda optimizer: CosineAnnealingLR(optimizer, 12),
    "LambdaLR": lambda optimizer: LambdaLR(optimizer, lambda epoch: 1 - epoch / 12),
}


def rates(make, **options):
    """The guide's loop: 8 epochs of a schedule, then 3 of SWALR."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    schedule = make(optimizer)
    averaging = SWALR(optimizer, swa_lr=0.05, **options) if options else None
    seen = []
    for epoch in range(11):
        seen.append(round(optimizer.param_groups[0]["lr"], 4))
        optimizer.step()
        (schedule if epoch < 8 or averaging is None else averaging).step()
    return seen


print("torch", torch.__version__)
for name, make in SCHEDULES.items():
    alone, one, none = rates(make), rates(make, anneal_epochs=1), rates(make, anneal_epochs=0)
    print(f"{name}\n  alone           {alone}\n  anneal_epochs=1 {one}\n  anneal_epochs=0 {none}")
    assert one[:8] == alone[:8] and none[0] == 0.05 and none[-1] == one[-1] == 0.05
    if name != "LambdaLR":
        assert all(abs(slow - 0.05 * rate) < 1e-3 for slow, rate in zip(none[:8], alone[:8]))
PY
