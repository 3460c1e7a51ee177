#!/usr/bin/env bash
# schedulefree 1.4.1, pytorch_optimizer 4.1.0: a layer that gets its first gradient late in a run leaps.
#
# Layers are unfrozen in mid-run, and an expert or a head may not be used for a while: their gradient is None until then. One would guess
# that Adam's bias correction counts each parameter's own steps, as torch's does, so that such a layer starts as every layer did. Seen: it
# counts the group's. The second moment is then a thousandth of the squared gradient and is taken for an average. After 2000 steps without
# it a layer's first ten steps carry it 2.5 times as far as a fresh optimizer would (AdamWScheduleFree), five times (AdaBelief, AdamP,
# DiffGrad, Yogi, AdamC), 20 times (LaProp), 88 times (RAdamScheduleFree), a tenth as far (Lamb). No warning.
# Seen right: torch's AdamW, pytorch_optimizer's QHAdam.
#
# Exits non-zero if they do something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" schedulefree==1.4.1 pytorch_optimizer==4.1.0
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import pytorch_optimizer
import schedulefree
import torch


def ratio(make):
    torch.manual_seed(0)
    early, late, fresh = (torch.nn.Parameter(torch.zeros(64)) for _ in range(3))
    long, short = make([early, late]), make([fresh])
    for optimizer in (long, short):
        getattr(optimizer, "train", lambda: None)()
    for _ in range(2000):
        early.grad = torch.randn(64)
        long.step()
    assert (late == 0).all()
    for _ in range(10):
        early.grad, late.grad = torch.randn(64), torch.randn(64) + 1
        fresh.grad = late.grad.clone()
        long.step()
        short.step()
    return float(late.detach().abs().mean() / fresh.detach().abs().mean())


print("torch", torch.__version__)
names = ["QHAdam", "AdaBelief", "AdamP", "DiffGrad", "Yogi", "AdamC", "LaProp", "Lamb"]
classes = [torch.optim.AdamW, schedulefree.AdamWScheduleFree, schedulefree.RAdamScheduleFree]
seen = {}
for cls in classes + [getattr(pytorch_optimizer, name) for name in names]:
    key = cls.__name__ if cls.__module__.split(".")[0] != "torch" else "torch." + cls.__name__
    seen[key] = ratio(lambda params, cls=cls: cls(params, lr=1e-3))
    print(f"{key}: the late layer went {seen[key]:.2f} times as far as a fresh one")
for name in ("torch.AdamW", "QHAdam"):
    assert abs(seen[name] - 1) < 0.02, name
assert 2 < seen["AdamWScheduleFree"] < 4 and seen["RAdamScheduleFree"] > 50
assert all(seen[name] > 4 for name in ("AdaBelief", "AdamP", "DiffGrad", "Yogi", "AdamC"))
assert seen["LaProp"] > 10 and seen["Lamb"] < 0.2
PY
