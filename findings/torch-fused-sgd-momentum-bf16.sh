#!/usr/bin/env bash
# torch 2.13.0, CPU: SGD(momentum=0.9, fused=True) on bfloat16 or float16 weights does not train them.
#
# One would guess that fused=True is the same step in one kernel, as it is in float32. Seen: of tensors of 16 elements and
# more every full vector of 16 elements stays where it is (or takes garbage: momentum buffers hold values from nowhere,
# -1.9e29 in one run, and differ from run to run); only the remainder is stepped. No error, no warning. From 1.0 with a
# gradient of 0.5 and lr 0.1 three steps lead to 0.719 (foreach and plain loop); fused most elements stay at 1.0.
# In float32 fused is right.
#
# Exits non-zero if torch does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch; assert torch.__version__.split("+")[0] == "2.13.0"' 2>/dev/null \
  || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
PYTHONPATH=$tmp "$python" - <<'PY'
import torch

torch.set_num_threads(1)


def trained(dtype, **options):
    p = torch.nn.Parameter(torch.ones(33, dtype=dtype))
    optimizer = torch.optim.SGD([p], lr=0.1, **options)
    for _ in range(3):
        p.grad = torch.full_like(p, 0.5)
        optimizer.step()
    return p.detach().float()


print("torch", torch.__version__)
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    plain, fused = trained(dtype, momentum=0.9), trained(dtype, momentum=0.9, fused=True)
    wrong = int((~torch.isclose(plain, fused, atol=0.05)).sum())
    print(f"{dtype}: plain {plain[0]:.3f}, fused {fused[:3].tolist()}, {wrong} of {len(plain)} elements wrong")
    assert wrong == 0 if dtype == torch.float32 else wrong >= 16
PY
