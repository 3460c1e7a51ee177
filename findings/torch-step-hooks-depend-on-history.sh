#!/usr/bin/env bash
# torch 2.13.0: whether an optimizer's step hooks run once or twice a step depends on what else the process has made.
#
# torch wraps the step of a class with its hooks when the first optimizer of just that class is made. One would guess that
# a subclass whose step ends in super().step() runs them once a step. Seen: once if no optimizer of the parent class was
# made before, twice from the moment one is, also for optimizers that exist already. Counters, profilers, averages of
# weights and schedules that live on hooks then run twice too fast; no error is raised. So it is for pytorch_optimizer
# 4.1.0's MuonClip once a Muon was made.
#
# Exits non-zero if torch does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch; assert torch.__version__.split("+")[0] == "2.13.0"' 2>/dev/null \
  || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" pytorch_optimizer==4.1.0
PYTHONPATH=$tmp "$python" - <<'PY'
import torch
from pytorch_optimizer import Muon, MuonClip


def weight():
    p = torch.nn.Parameter(torch.ones(4, 4))
    p.grad = torch.ones(4, 4)
    return p


class Clipped(torch.optim.SGD):
    def step(self, closure=None):
        torch.nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 1.0)
        return super().step(closure)


def calls(optimizer):
    seen = []
    handle = optimizer.register_step_post_hook(lambda *_: seen.append(1))
    optimizer.step()
    handle.remove()
    return len(seen)


def muon(cls):
    return cls([{"params": [weight()], "use_muon": True}])


print("torch", torch.__version__)
out = []
for name, child, parent in (
    ("subclass of SGD", Clipped([weight()], lr=0.1), lambda: torch.optim.SGD([weight()], lr=0.1)),
    ("MuonClip", muon(MuonClip), lambda: muon(Muon)),
):
    before = calls(child)
    parent()
    out.append((before, calls(child)))
    print(f"{name}: hook runs {out[-1][0]} time a step; after an optimizer of its parent was made {out[-1][1]} times")
assert out == [(1, 2), (1, 2)], out
PY
