#!/usr/bin/env bash
# bitsandbytes 0.50.2: nesterov, dampening, amsgrad and RMSprop's momentum are taken and ignored; LAMB has no trust ratio.
#
# One would guess that an option of the signature, explained in the docstring, does what it says, or raises as lr_decay of Adagrad and
# centered of RMSprop do. Seen on CPU: SGD and LARS are the same, bit for bit, with and without nesterov and dampening, Adam and AdamW
# with and without amsgrad, RMSprop with and without momentum, LAMB with and without bias_correction and adam_w_mode. And LAMB, whose
# step is lr times the norm of the weights by its definition, takes AdamW's, shortened where that is longer than they are: at lr=0.01 its
# first step is 0.3 % of weights of 1 and 0.01 % of weights of 100.
#
# Exits non-zero if it does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" bitsandbytes==0.50.2 packaging==26.4
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import bitsandbytes
import torch

torch.manual_seed(0)
start = torch.randn(64, 64)
gradients = [torch.randn(64, 64) for _ in range(20)]


def train(library, name, weight=start, **options):
    weight = torch.nn.Parameter(weight.clone())
    optimizer = getattr(library, name)([weight], lr=0.01, **options)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach()


print("torch", torch.__version__, "bitsandbytes", bitsandbytes.__version__)
momentum = {"momentum": 0.9}
cases = [
    ("SGD", momentum, {"nesterov": True}),
    ("SGD", momentum, {"dampening": 0.5}),
    ("LARS", momentum, {"nesterov": True}),
    ("LARS", momentum, {"dampening": 0.5}),
    ("Adam", {}, {"amsgrad": True}),
    ("AdamW", {}, {"amsgrad": True}),
    ("RMSprop", {}, momentum),
    ("LAMB", {}, {"bias_correction": False}),
    ("LAMB", {"weight_decay": 0.1}, {"adam_w_mode": False}),
]
for name, base, option in cases:
    same = torch.equal(train(bitsandbytes.optim, name, **base), train(bitsandbytes.optim, name, **base, **option))
    differs = not hasattr(torch.optim, name) or not torch.equal(
        train(torch.optim, name, **base), train(torch.optim, name, **base, **option)
    )
    print(f"{name} with {option}: {'the same' if same else 'differs'}")
    assert same and differs
for name, option in (("Adagrad", {"lr_decay": 0.1}), ("RMSprop", {"centered": True})):
    try:
        train(bitsandbytes.optim, name, **option)
    except (ValueError, NotImplementedError) as error:
        print(f"{name} with {option}: {error}")
    else:
        raise AssertionError(name)
steps = {}
for norm in (1.0, 100.0):
    weight = torch.nn.Parameter(torch.full((64, 64), norm))
    optimizer = bitsandbytes.optim.LAMB([weight], lr=0.01, weight_decay=0.0)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    steps[norm] = float((norm - weight.detach()).norm() / (64 * norm))
print("LAMB: first step as a part of the weight, by its size:", steps)
assert abs(steps[1.0] - 3.16e-3) < 1e-4 and abs(steps[100.0] - 1e-4) < 1e-5
PY
