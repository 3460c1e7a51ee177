#!/usr/bin/env bash
# pytorch_optimizer 4.1.0: Lookahead is a torch.optim.Optimizer by isinstance, and breaks most of what takes one.
#
# It never calls Optimizer.__init__ and makes two of its hook tables by hand. One would guess that what takes any torch
# optimizer takes it. Seen: register_step_post_hook works; register_load_state_dict_post_hook and
# register_state_dict_pre_hook raise AttributeError, and so does copy.deepcopy (which Lightning, skorch and grid searches
# do); a caller that registers several hooks is left with half of them.
#
# Exits non-zero if it does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" pytorch_optimizer==4.1.0
PYTHONPATH=$tmp "$python" - <<'PY'
import copy

import pytorch_optimizer
import torch

weights = torch.nn.Linear(4, 1).parameters()
lookahead = pytorch_optimizer.Lookahead(torch.optim.SGD(weights, lr=0.1))
assert isinstance(lookahead, torch.optim.Optimizer)


def outcome(f):
    try:
        f()
    except AttributeError as error:
        return f"AttributeError: {error}"
    return "works"


seen = {
    name: outcome(lambda name=name: getattr(lookahead, name)(lambda *a: None))
    for name in (
        "register_step_post_hook",
        "register_state_dict_pre_hook",
        "register_load_state_dict_post_hook",
    )
}
seen["copy.deepcopy"] = outcome(lambda: copy.deepcopy(lookahead))
for name, what in seen.items():
    print(f"{name}: {what}")
assert [what == "works" for what in seen.values()] == [True, False, False, False]
PY
