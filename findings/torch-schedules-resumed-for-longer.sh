#!/usr/bin/env bash
# torch 2.13.0: a schedule that is built for a longer run and resumed from a shorter one keeps the old length, or not, by its class.
#
# A run of 100 steps is to go on to 200: the script is started again with T_max=200 and loads its checkpoint. One would
# guess that what the constructor was told holds, as it does for LambdaLR, whose law is not in the state. Seen: load_state_dict
# puts the old T_max and total_iters over the new ones without a word: CosineAnnealingLR, at 0 after step 100, climbs
# back to the full learning rate at step 200, where it should have cooled down; LinearLR and PolynomialLR stand at their end, so
# 100 steps train nothing; OneCycleLR raises at step 101.
#
# Exits non-zero if torch does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch; assert torch.__version__.split("+")[0] == "2.13.0"' 2>/dev/null \
  || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
from math import cos, pi

import torch
from torch.optim import lr_scheduler as lrs

SCHEDULES = {
    "LambdaLR": lambda o, n: lrs.LambdaLR(o, lambda step: 0.5 * (1 + cos(pi * step / n))),
    "CosineAnnealingLR": lambda o, n: lrs.CosineAnnealingLR(o, n),
    "LinearLR": lambda o, n: lrs.LinearLR(o, 1.0, 0.0, total_iters=n),
    "PolynomialLR": lambda o, n: lrs.PolynomialLR(o, n),
    "OneCycleLR": lambda o, n: lrs.OneCycleLR(o, 0.1, total_steps=n),
}


def build(schedule, length):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    return optimizer, schedule(optimizer, length)


def rates(optimizer, scheduler, steps):
    out = []
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        out.append(round(optimizer.param_groups[0]["lr"], 3))
    return out


print("torch", torch.__version__)
seen = {}
for name, schedule in SCHEDULES.items():
    optimizer, scheduler = build(schedule, 100)
    rates(optimizer, scheduler, 99)
    saved = optimizer.state_dict(), scheduler.state_dict()
    optimizer, scheduler = build(schedule, 200)
    optimizer.load_state_dict(saved[0])
    scheduler.load_state_dict(saved[1])
    try:
        seen[name] = rates(optimizer, scheduler, 101)[::25]
    except ValueError as error:
        seen[name] = f"ValueError: {str(error)[:60]}"
    print(f"{name}: lr at steps 100, 125, 150, 175, 200: {seen[name]}")
assert seen["LambdaLR"] == [0.05, 0.031, 0.015, 0.004, 0.0]
assert seen["CosineAnnealingLR"] == [0.0, 0.015, 0.05, 0.085, 0.1]
assert seen["LinearLR"] == seen["PolynomialLR"] == [0.0] * 5
assert seen["OneCycleLR"].startswith("ValueError")
PY
