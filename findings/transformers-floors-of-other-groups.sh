#!/usr/bin/env bash
# transformers 5.24.0: min_lr and lr_end of its schedules are right for groups at the optimizer's default lr only.
#
# Parameter groups with an lr of their own are how heads and backbones are tuned. One would guess that a cosine with min_lr=1e-6 and a polynomial
# decay with lr_end=1e-6 end there. Seen: the floor becomes a ratio to `optimizer.defaults["lr"]`, what the optimizer was given for groups
# that name none, and each group ends at that ratio of its own: with AdamW's untouched default of 1e-3 a group at 1e-5 ends at 1e-8, a hundredth
# of the floor, and one at 1e-2 at ten times it. Past its end a cosine with a floor does not stay there, either: it climbs back to the full rate
# (the polynomial, linear and warmup_stable_decay ones stay).
#
# Exits non-zero if it does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-compile --target "$tmp" transformers==5.24.0
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import torch
import transformers
from transformers import get_scheduler

print("torch", torch.__version__, "transformers", transformers.__version__)
rates = [1e-5, 1e-3, 1e-2]


def run(name, steps, **options):
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr} for lr in rates]
    optimizer = torch.optim.AdamW(groups)
    schedule = get_scheduler(
        name, optimizer, num_warmup_steps=0, num_training_steps=100, scheduler_specific_kwargs=options
    )
    for _ in range(steps):
        optimizer.step()
        schedule.step()
    return [group["lr"] for group in optimizer.param_groups]


for name, options in (("cosine_with_min_lr", {"min_lr": 1e-6}), ("polynomial", {"lr_end": 1e-6})):
    seen = run(name, 100, **options)
    print(f"{name}, {options}: groups at {rates} end at {[f'{lr:.1e}' for lr in seen]}")
    assert all(abs(lr / (1e-6 * rate / 1e-3) - 1) < 1e-6 for lr, rate in zip(seen, rates)), seen
later = run("cosine_with_min_lr", 200, min_lr=1e-6)
print(f"cosine_with_min_lr, 100 steps past its end: {later}")
assert all(abs(lr / rate - 1) < 1e-6 for lr, rate in zip(later, rates))
assert run("polynomial", 200, lr_end=1e-6) == run("polynomial", 100, lr_end=1e-6)
PY
