#!/usr/bin/env bash
# torch 2.13.0: what a scheduler does to a parameter group that is added in mid-run depends on which one it is.
#
# The documentation of add_param_group recommends it for layers that are unfrozen as training goes on. One would guess
# that the scheduler either takes the group in or leaves it alone. Seen: LambdaLR (all of Hugging Face's schedules),
# MultiplicativeLR, CyclicLR and CosineAnnealingWarmRestarts raise ValueError (of a zip()) at their next step, OneCycleLR a
# KeyError; StepLR, ExponentialLR and MultiStepLR take it in; and of a warm-up by LinearLR or ConstantLR it ends above its own lr,
# for good: it is divided by the warm-up's factor though it was never multiplied by it. Another surprise in mid-run:
# SequentialLR takes a ChainedScheduler or another SequentialLR, and raises NotImplementedError at its milestone.
#
# Exits non-zero if torch does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch; assert torch.__version__.split("+")[0] == "2.13.0"' 2>/dev/null \
  || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import torch
from torch.optim import lr_scheduler as lrs


def weight():
    return torch.nn.Parameter(torch.ones(1))


def added(build):
    optimizer = torch.optim.AdamW([weight()], lr=0.1)
    scheduler = build(optimizer)
    for step in range(8):
        if step == 1:
            optimizer.add_param_group({"params": [weight()], "lr": 0.1})
        optimizer.step()
        try:
            scheduler.step()
        except (ValueError, KeyError) as error:
            return repr(error)
    return round(optimizer.param_groups[1]["lr"], 4)


print("torch", torch.__version__)
seen = {
    "LambdaLR": added(lambda o: lrs.LambdaLR(o, lambda step: 1 / (1 + step))),
    "MultiplicativeLR": added(lambda o: lrs.MultiplicativeLR(o, lambda step: 0.9)),
    "CyclicLR": added(lambda o: lrs.CyclicLR(o, 0.01, 0.1, cycle_momentum=False)),
    "WarmRestarts": added(lambda o: lrs.CosineAnnealingWarmRestarts(o, 5)),
    "OneCycleLR": added(lambda o: lrs.OneCycleLR(o, 0.1, 10)),
    "StepLR": added(lambda o: lrs.StepLR(o, 4, gamma=0.5)),
    "LinearLR": added(lambda o: lrs.LinearLR(o, start_factor=0.1, total_iters=4)),
    "ConstantLR": added(lambda o: lrs.ConstantLR(o, factor=0.1, total_iters=4)),
}
for name, what in seen.items():
    print(f"{name}: {what if isinstance(what, str) else f'the lr 0.1 of the added group ends at {what}'}")
assert [isinstance(what, str) for what in seen.values()] == [True] * 5 + [False] * 3
assert seen["StepLR"] == 0.025 and seen["LinearLR"] > 0.15 and seen["ConstantLR"] == 1.0

optimizer = torch.optim.AdamW([weight()], lr=0.1)
warm = lrs.LinearLR(optimizer, 0.1, total_iters=3)
rest = lrs.ChainedScheduler([lrs.ExponentialLR(optimizer, 0.9), lrs.StepLR(optimizer, 3)], optimizer)
sequence = lrs.SequentialLR(optimizer, [warm, rest], milestones=[3])
steps = 0
try:
    for _ in range(6):
        optimizer.step()
        sequence.step()
        steps += 1
except NotImplementedError as error:
    print(f"SequentialLR of a ChainedScheduler: {error!r} after {steps} steps")
assert steps == 2
PY
