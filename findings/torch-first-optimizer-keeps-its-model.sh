#!/usr/bin/env bash
# torch 2.13.0: the first optimizer of a process keeps its model alive after both were dropped.
#
# Neither an optimizer nor a model lies in a circle of references, so one would guess that their memory is free when the
# last name is gone; it is, for every optimizer but the first. Making that one imports torch._dynamo, and something there
# keeps the frames of the call, and with them the optimizer and its parameters, until the garbage collector runs: a cell
# that is run again holds two models on its device, once. Seen with SGD and 64 MB of weights, with the collector off.
#
# Exits non-zero if torch does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch; assert torch.__version__.split("+")[0] == "2.13.0"' 2>/dev/null \
  || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import gc
import weakref

import torch

gc.disable()


def dropped():
    model = torch.nn.Linear(4096, 4096, bias=False)
    torch.optim.SGD(model.parameters(), lr=0.1)
    return weakref.ref(model.weight)


print("torch", torch.__version__)
weights = [dropped() for _ in range(3)]
kept = [weight() is not None for weight in weights]
gc.collect()
after = [weight() is not None for weight in weights]
print("weights of the first, second and third model are kept:", kept, "after gc.collect():", after)
assert (kept, after) == ([True, False, False], [False] * 3)
PY
