#!/usr/bin/env bash
# dadaptation 3.2, pytorch_optimizer 4.1.0: a warm-up whose first lr is 0 breaks some optimizers at their first step.
#
# Hugging Face's schedules with a warm-up, and the common LambdaLR(lambda step: min(1, step / 100)), start at 0.
# One would guess that the first step then does nothing. Seen: dadaptation's DAdaptSGD, whose README tells its users to keep
# their schedule, and pytorch_optimizer's ASGD and Gravity divide by zero; FTRL makes every weight NaN and goes on.
# A schedule that ends at 0 does it to the last three in the last step.
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


def outcome(cls):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    optimizer = cls(model.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 100))
    for _ in range(10):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        try:
            optimizer.step()
        except ZeroDivisionError as error:
            return repr(error)
        scheduler.step()
    return "trains" if torch.isfinite(model.weight).all() else "weights are NaN"


print("torch", torch.__version__)
seen = {}
for package, names in ((dadaptation, ("DAdaptAdam", "DAdaptSGD")), (pytorch_optimizer, ("AdamW", "ASGD", "Gravity", "FTRL"))):
    for name in names:
        seen[name] = outcome(getattr(package, name))
        print(f"{package.__name__}.{name}: {seen[name]}")
divided = "ZeroDivisionError('float division by zero')"
assert list(seen.values()) == ["trains", divided, "trains", divided, divided, "weights are NaN"]
PY
