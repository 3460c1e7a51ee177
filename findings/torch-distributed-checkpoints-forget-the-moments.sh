#!/usr/bin/env bash
# torch 2.13.0: torch.distributed.checkpoint.load loads no moments into an optimizer that has not stepped, and says nothing.
#
# It fills the state_dict that it is given, in place or by passing the model and the optimizer themselves. One would guess that what
# was saved is loaded, or that it complains, as it does about a weight that it misses in the file. Seen: a fresh
# optimizer's state_dict has no moments yet, so there is nothing to fill; the weights come, the lr comes, AdamW's moments and
# counters stay in the file, and the run that resumes starts them from zero, on one process too. No error, no warning.
# set_optimizer_state_dict, or one step before loading, helps.
#
# Exits non-zero if torch does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch; assert torch.__version__.split("+")[0] == "2.13.0"' 2>/dev/null \
  || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import tempfile

import torch
import torch.distributed.checkpoint as dcp

torch.set_num_threads(1)
x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))


def build():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def train(model, optimizer, steps=10):
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(x) - x[:, :1]).square().mean()
        loss.backward()
        optimizer.step()
    return loss.item()


def loaded(folder, how):
    model, optimizer = build()
    if how == "the objects themselves":
        dcp.load({"model": model, "optimizer": optimizer}, checkpoint_id=folder)
    else:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        dcp.load(state, checkpoint_id=folder)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    states, lr, weights = len(optimizer.state), optimizer.param_groups[0]["lr"], model.weight.detach().clone()
    return weights, lr, states, train(model, optimizer)


print("torch", torch.__version__)
model, optimizer = build()
train(model, optimizer)
optimizer.param_groups[0]["lr"] = 0.05
with tempfile.TemporaryDirectory() as folder:
    dcp.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, checkpoint_id=folder)
    saved = model.weight.detach().clone()
    on = train(model, optimizer)
    print(f"the run that goes on: a loss of {on:.5f} ten steps later")
    for how in ("state dicts", "the objects themselves"):
        weights, lr, states, resumed = loaded(folder, how)
        print(f"{how}: lr {lr}, the right weights: {torch.equal(weights, saved)}, parameters with moments: {states}, {resumed:.5f}")
        assert torch.equal(weights, saved) and lr == 0.05 and states == 0 and abs(resumed - on) > 1e-3
PY
