#!/usr/bin/env bash
# dadaptation 3.2, pytorch_optimizer 4.1.0: a schedule that starts or ends at a learning rate of 0 breaks some optimizers there.
#
# Hugging Face's schedules with a warm-up, and the common LambdaLR(lambda step: min(1, step / 100)), start at 0; a step
# after the end of a linear one is at 0. One would guess that such a step does nothing. Seen: dadaptation's DAdaptSGD, whose
# README tells its users to keep the schedule that they have, divides by zero in the first step and raises
# UnboundLocalError in the last; pytorch_optimizer's ASGD divides by zero in both, Gravity in the first; FTRL makes every
# weight NaN in either and goes on.
#
# Exits non-zero if they do something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" dadaptation==3.2 pytorch_optimizer==4.1.0
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import dadaptation
import pytorch_optimizer
import torch


def outcome(cls, law):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    optimizer = cls(model.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, law)
    for _ in range(11):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        try:
            optimizer.step()
        except (ZeroDivisionError, UnboundLocalError) as error:
            return type(error).__name__
        scheduler.step()
    return "trains" if torch.isfinite(model.weight).all() else "NaN"


print("torch", torch.__version__)
seen = {}
for package, names in ((dadaptation, ("DAdaptAdam", "DAdaptSGD")), (pytorch_optimizer, ("AdamW", "ASGD", "Gravity", "FTRL"))):
    for name in names:
        cls = getattr(package, name)
        seen[name] = outcome(cls, lambda step: min(1.0, step / 5)), outcome(cls, lambda step: 1.0 - step / 10)
        print("{}: warm-up from 0: {}, linear to 0: {}".format(f"{package.__name__}.{name}", *seen[name]))
assert seen == {
    "DAdaptAdam": ("trains", "trains"),
    "DAdaptSGD": ("ZeroDivisionError", "UnboundLocalError"),
    "AdamW": ("trains", "trains"),
    "ASGD": ("ZeroDivisionError", "ZeroDivisionError"),
    "Gravity": ("ZeroDivisionError", "trains"),
    "FTRL": ("NaN", "NaN"),
}
PY
