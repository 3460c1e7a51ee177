#!/usr/bin/env bash
# torch 2.13.0, heavyball 3.2.1, pytorch_optimizer 4.1.0: loading an optimizer's state turns the float32 in it into bfloat16.
#
# Optimizers for bfloat16 weights keep averages in float32, since x * 0.999 is x again in bfloat16; heavyball does
# by default. One would guess that a state comes back as it was saved. Seen: Optimizer.load_state_dict casts floating
# tensors, but for "step", to the dtype of their parameter, and whoever has no load_state_dict of its own inherits that:
# heavyball's moments are bfloat16 from the first resume on, and so is NAdam's product; the weight by which
# pytorch_optimizer's QHAdam averages second moments goes to 1000, and sticks at 256 once a run was resumed. No warning.
#
# Exits non-zero if they do something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch; assert torch.__version__.split("+")[0] == "2.13.0"' 2>/dev/null \
  || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" heavyball==3.2.1 pytorch_optimizer==4.1.0
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import copy

import heavyball
import heavyball.utils
import pytorch_optimizer
import torch

heavyball.utils.compile_mode = None
torch.set_num_threads(1)


def find(state, key):
    for name, value in state.items():
        if isinstance(value, dict):
            value = find(value, key)
        elif key not in str(name):
            continue
        if value is not None:
            return value


def kept(cls, key, resume, count=5000, **options):
    p = torch.nn.Parameter(torch.ones(8, 8, dtype=torch.bfloat16))
    optimizer = cls([p], lr=1e-3, **options)
    for step in range(count):
        p.grad = torch.ones_like(p)
        optimizer.step()
        if step == 2 and resume:
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = cls([p], lr=1e-3, **options)
            optimizer.load_state_dict(state)
    return find(optimizer.state[p], key)


print("torch", torch.__version__)
for cls, key in ((torch.optim.NAdam, "mu_product"), (heavyball.AdamW, "exp_avg_sq")):
    plain, resumed = (kept(cls, key, resume, count=5).dtype for resume in (False, True))
    print(f"{cls.__module__}.{cls.__name__}: {key} is {plain}, after a resume {resumed}")
    assert (plain, resumed) == (torch.float32, torch.bfloat16)
plain, resumed = (float(kept(pytorch_optimizer.QHAdam, "beta2_weight", resume)) for resume in (False, True))
print(f"QHAdam: beta2_weight after 5000 steps {plain:.0f}, resumed after 3 of them {resumed:.0f}")
assert plain > 950 and resumed == 256
PY
