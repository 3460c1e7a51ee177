#!/usr/bin/env bash
# pyro-ppl 1.9.2: clip_norm of ClippedAdam clips each entry, and clip_args each tensor by itself.
#
# The docstring calls clip_norm the magnitude of norm to which gradients are clipped. One would guess that a gradient of norm 1000 is scaled
# down to 10. Seen: entries are clamped to +-clip_norm. Ten thousand entries of 10, a norm of 1000, pass as they are; (30, 1)
# becomes (10, 1), which points elsewhere; DCTAdam does the same. And {"clip_norm": 1.0} as the second argument of pyro.optim.Adam, which does
# clip norms, clips every parameter by itself: the gradient of 100 parameters keeps a norm of 10.
#
# Exits non-zero if it does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" pyro-ppl==1.9.2 pyro-api==0.1.2 opt-einsum==3.4.0 tqdm==4.70.1 packaging==26.4
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import pyro
import torch
from pyro.optim import ClippedAdam
from pyro.optim.clipped_adam import ClippedAdam as Inner
from pyro.optim.dct_adam import DCTAdam

print("torch", torch.__version__, "pyro", pyro.__version__)


def clipped(cls, gradient):
    weight = torch.nn.Parameter(torch.zeros_like(gradient))
    weight.grad = gradient.clone()
    cls([weight], clip_norm=10.0).step()
    return weight.grad


for cls in (Inner, DCTAdam):
    wide, bent = clipped(cls, torch.full((10000,), 10.0)), clipped(cls, torch.tensor([30.0, 1.0]))
    print(f"{cls.__name__}, clip_norm=10: a norm of 1000 becomes {wide.norm():.0f}, (30, 1) becomes {tuple(bent.tolist())}")
    assert abs(wide.norm() - 1000) < 1 and bent.tolist() == [10.0, 1.0]
assert issubclass(Inner, torch.optim.Optimizer) and callable(ClippedAdam)
weights = [torch.zeros(4, requires_grad=True) for _ in range(100)]
for number, weight in enumerate(weights):
    pyro.get_param_store().setdefault(f"w{number}", weight)
weights = [pyro.get_param_store()[f"w{number}"] for number in range(100)]
for weight in weights:
    weight.grad = torch.ones(4)
pyro.optim.Adam({"lr": 1e-3}, {"clip_norm": 1.0})(weights)
total = torch.cat([weight.grad for weight in weights]).norm()
print(f"clip_args of clip_norm 1.0, 100 parameters: a norm of 20 becomes {total:.2f}")
assert abs(total - 10) < 0.01
PY
