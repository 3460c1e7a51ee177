#!/usr/bin/env bash
# schedulefree 1.4.1: ScheduleFreeWrapper, made to wrap any optimizer, raises KeyError with nearly all of torch's.
#
# Its docstring wraps torch.optim.RMSprop, and the one line of it says any optimizer. One would guess that AdamW works. Seen: Adam, AdamW,
# NAdam, RAdam, RMSprop, Adadelta, Adamax, Adafactor, ASGD and Rprop raise KeyError in their first step, and so do they with
# ScheduleFreeWrapperReference: the wrapper puts its own tensor into the parameter's state, and torch's optimizers set up a state only
# where it is empty. SGD and Adagrad, which fill theirs otherwise, work.
#
# Exits non-zero if it does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" schedulefree==1.4.1
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import schedulefree
import torch


def outcome(wrapper, name):
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = wrapper(getattr(torch.optim, name)([weight], lr=1e-2))
    optimizer.train()
    weight.grad = torch.ones(4)
    try:
        optimizer.step()
    except KeyError as error:
        return f"KeyError: {error}"
    return "steps"


print("torch", torch.__version__)
names = "SGD Adagrad Adam AdamW NAdam RAdam RMSprop Adadelta Adamax Adafactor ASGD Rprop".split()
for wrapper in (schedulefree.ScheduleFreeWrapper, schedulefree.ScheduleFreeWrapperReference):
    seen = {name: outcome(wrapper, name) for name in names}
    print(wrapper.__name__, seen)
    assert [name for name in names if seen[name] == "steps"] == ["SGD", "Adagrad"]
PY
