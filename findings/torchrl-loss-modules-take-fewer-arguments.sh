#!/usr/bin/env bash
# torchrl 0.14.1: a loss module's named_parameters() does not take what torch.nn.Module's takes.
#
# A LossModule is an nn.Module, so one would guess that what walks a model with torch's own arguments walks it. Seen:
# named_parameters(remove_duplicate=False), by which a tool sees tied weights under all their names, raises TypeError;
# the override, which leaves the target networks out, takes prefix and recurse only. And the path of the parameter
# value_network_params.module.0.module.0.weight is that of no module: named_modules() does not know its parent.
#
# Exits non-zero if torchrl does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --target "$tmp" --no-deps \
  torchrl==0.14.1 tensordict==0.14.3 pyvers==0.2.3 hoptorch==0.1.4 cloudpickle==3.1.3 packaging==26.3 \
  importlib_metadata==10.2.0 zipp==4.1.2 orjson==3.13.0
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import torch
import torchrl
from torchrl.data import OneHot
from torchrl.modules import MLP, QValueActor
from torchrl.objectives import DQNLoss

print("torch", torch.__version__, "torchrl", torchrl.__version__)
actor = QValueActor(MLP(in_features=4, out_features=2, num_cells=[8]), in_keys=["observation"], spec=OneHot(2))
loss = DQNLoss(actor, action_space="one-hot", delay_value=True)
name, _ = next(iter(loss.named_parameters()))
assert torch.nn.Linear(2, 2).named_parameters(remove_duplicate=False) and isinstance(loss, torch.nn.Module)
try:
    loss.named_parameters(remove_duplicate=False)
    error = None
except TypeError as raised:
    error = raised
parent = name.rpartition(".")[0]
known = parent in dict(loss.named_modules())
print(f"{type(error).__name__}: {error}\n{name}: parent among named_modules(): {known}")
assert isinstance(error, TypeError) and not known
PY
