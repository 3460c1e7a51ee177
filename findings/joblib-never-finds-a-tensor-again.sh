#!/usr/bin/env bash
# joblib 1.6.0: a function that takes a torch tensor is never found in the cache.
#
# Memory.cache runs a function once for equal arguments, whatever they are: joblib.hash goes through their pickles, and has
# cases of its own for arrays and dicts. One would guess that equal tensors have one hash. Seen: the pickle of a CPU tensor
# names the address of its memory, so equal tensors, equal models and equal state_dicts all have hashes of their own: a cached
# function runs again at every call, and the cache grows by a result each time. Nothing is said. With x.numpy() it hits.
#
# Exits non-zero if joblib (or torch) does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" joblib==1.6.0 cloudpickle==3.1.3
PYTHONPATH=$tmp CACHE=$tmp/cache "$python" -W ignore - <<'PY'
import os
import pathlib

import joblib
import torch

memory = joblib.Memory(os.environ["CACHE"], verbose=0)
runs = {"tensor": 0, "array": 0}


@memory.cache(ignore=["kind"])
def embed(x, kind):
    runs[kind] += 1
    return x.sum()


print("torch", torch.__version__, "joblib", joblib.__version__)
kept = [torch.arange(1000.0) for _ in range(5)]
for x in kept:
    embed(x, "tensor")
results = len(list(pathlib.Path(os.environ["CACHE"]).rglob("output.pkl")))
for x in kept:
    embed(x.numpy(), "array")
models = [torch.nn.Linear(2, 2) for _ in range(2)]
models[1].load_state_dict(models[0].state_dict())
same = [joblib.hash(a) == joblib.hash(b) for a, b in (kept[:2], models, [m.state_dict() for m in models])]
print(f"five calls with equal tensors: {runs['tensor']} runs, {results} results on disk; with arrays: {runs['array']}")
print("equal tensors, models and state_dicts have equal hashes:", same)
assert runs == {"tensor": 5, "array": 1} and results == 5 and same == [False] * 3
PY
