#!/usr/bin/env bash
# torch 2.13.0, kron-torch 0.3.3: load_state_dict turns a string in an optimizer's state into "<generator object ...>".
#
# A state may hold anything that can be pickled, and state_dict() gives it back as it is. One would guess that load_state_dict
# does, too. Seen: it rebuilds whatever can be iterated over from a generator of its parts. A string comes back as the text
# "<generator object Optimizer.load_state_dict...>", also inside of lists and dicts; a deque loses its maxlen, so that
# a window of the last ten values grows for ever; a defaultdict is a dict; whole numbers in a tensor become floats, which
# index nothing; arrays and named tuples raise. Only the last two are told of. kron-torch (PSGD) keeps einsum formulas
# in its state: it can be saved, and its first step after loading is a torch error about that text.
#
# Exits non-zero if torch or kron-torch does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" kron-torch==0.3.3 opt-einsum==3.4.0
PYTHONPATH=$tmp TORCHDYNAMO_DISABLE=1 "$python" -W ignore - <<'PY'
from collections import defaultdict, deque, namedtuple

import torch


def loaded(value):
    before, after = (torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1) for _ in range(2))
    before.state[before.param_groups[0]["params"][0]] = {"value": value}
    try:
        after.load_state_dict(before.state_dict())
    except TypeError as error:
        return error
    return next(iter(after.state.values()))["value"]


print("torch", torch.__version__)
Pair = namedtuple("Pair", "a b")
values = ["power", {"kind": "row"}, deque([1.0, 2.0], maxlen=2), defaultdict(list), torch.tensor([0, 1]), Pair(1, 2)]
seen = [loaded(value) for value in values]
for value, got in zip(values, seen):
    print(f"{value!r} -> {got!r}")
assert all("generator object" in text for text in (seen[0], seen[1]["kind"]))
assert seen[2].maxlen is None and type(seen[3]) is dict and seen[4].dtype == torch.float32
assert isinstance(seen[5], TypeError) and isinstance(loaded(torch.ones(2).numpy()), TypeError)

from kron_torch import Kron

x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))


def step(model, optimizer):
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


model = torch.nn.Linear(4, 3)
optimizer = Kron(model.parameters(), lr=1e-3)
step(model, optimizer)
again = Kron(model.parameters(), lr=1e-3)
again.load_state_dict(optimizer.state_dict())
step(model, optimizer)
try:
    step(model, again)
except Exception as error:
    print("Kron, loaded from its own state_dict:", type(error).__name__, str(error)[:100])
else:
    raise SystemExit("Kron steps after loading")
PY
