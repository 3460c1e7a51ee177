#!/usr/bin/env bash
# torch 2.13.0: with Python's own process pools all folds of a cross-validation train one model, the caller's.
#
# Arguments of a process pool are copies: what a worker does to them is its own affair, in multiprocessing.Pool as in
# concurrent.futures. One would guess that of a model, too. Seen: importing torch makes both hand tensors over as shared
# memory (torch.multiprocessing says so of itself, neither pool does). A worker trains the weights of whoever called it, the
# next fold starts where the last one ended, and all scores but the first are of a model that has seen its test data;
# with several workers they step in the same weights at once. joblib's processes get copies.
#
# Exits non-zero if torch does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" joblib==1.6.0 cloudpickle==3.1.3
cat > "$tmp/folds.py" <<'PY'
import copy
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import torch

x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
y = x.prod(1, keepdim=True)


def score(model, fold):
    torch.set_num_threads(1)
    held_out = torch.arange(len(x)) % 4 == fold
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        (model(x[~held_out]) - y[~held_out]).square().mean().backward()
        optimizer.step()
    return round((model(x[held_out]) - y[held_out]).square().mean().item(), 3)


def pool(tasks):
    with multiprocessing.get_context("spawn").Pool(1) as workers:
        return workers.starmap(score, tasks, chunksize=1)


def futures(tasks):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as workers:
        return list(workers.map(score, *zip(*tasks)))


def processes_of_joblib(tasks):
    import joblib

    return joblib.Parallel(2)(joblib.delayed(score)(*task) for task in tasks)


def here(tasks):
    return [score(copy.deepcopy(model), fold) for model, fold in tasks]


if __name__ == "__main__":
    print("torch", torch.__version__)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    seen = {}
    for run in (here, processes_of_joblib, pool, futures):
        mine = copy.deepcopy(model)
        scores = run([(mine, fold) for fold in range(4)])
        moved = any(not torch.equal(p, q) for p, q in zip(mine.parameters(), model.parameters()))
        seen[run.__name__] = scores, moved
        print(f"{run.__name__}: losses of the held-out folds {scores}, the caller's model has moved: {moved}")
    right = seen["here"]
    assert seen["processes_of_joblib"] == right and not right[1]
    for run in ("pool", "futures"):
        scores, moved = seen[run]
        assert moved and scores[0] == right[0][0] and scores[1:] != right[0][1:]
PY
OMP_NUM_THREADS=1 PYTHONPATH=$tmp "$python" -W ignore "$tmp/folds.py"
