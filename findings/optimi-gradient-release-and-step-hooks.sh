#!/usr/bin/env bash
# torch-optimi 0.3.3: under gradient release torch's step hooks run once a parameter and once more an iteration.
#
# With gradient_release=True optimi steps each parameter inside of backward through the public, hooked step(param=...);
# the training loop still calls step(). One would guess one call of a step post hook an iteration, as with
# every other torch optimizer. Seen: 10 iterations over 4 parameters run it 50 times. Whatever counts steps by hooks
# (profilers, averaging of weights, schedules) runs n + 1 times too fast; no error is raised anywhere.
#
# Exits non-zero if it is called another number of times.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" torch-optimi==0.3.3
PYTHONPATH=$tmp "$python" - <<'PY'
import optimi
import torch
from torch import nn

model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
optimizer = optimi.AdamW(model.parameters(), lr=1e-3, gradient_release=True)
optimi.prepare_for_gradient_release(model, optimizer)
calls = 0


def count(*_):
    global calls
    calls += 1


optimizer.register_step_post_hook(count)
for _ in range(10):
    model(torch.randn(8, 4)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
parameters = len(list(model.parameters()))
print(f"10 iterations, {parameters} parameters: the step post hook ran {calls} times")
assert calls == 10 * (parameters + 1)
PY
