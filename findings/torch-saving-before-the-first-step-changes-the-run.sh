#!/usr/bin/env bash
# torch 2.13.0: torch.distributed.checkpoint's get_optimizer_state_dict steps an optimizer that has not stepped yet.
#
# It is there to read a state. One would guess that a checkpoint at step 0 (or reading the state for its shapes) changes
# nothing. Seen: to have a state to return it makes a step with gradients of zero and lr 0, and leaves what that step
# left: AdamW's counters stand at 1, so the first moments are no longer taken at face value and the whole run is another;
# SGD with dampening, NAdam and RAdam likewise; step hooks run once more. No warning. On one process, without FSDP.
#
# Exits non-zero if torch does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch; assert torch.__version__.split("+")[0] == "2.13.0"' 2>/dev/null \
  || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

torch.set_num_threads(1)
x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))


def trained(cls, read, **options):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    optimizer = cls(model.parameters(), lr=0.1, **options)
    hooks, losses = [], []
    optimizer.register_step_post_hook(lambda *_: hooks.append(1))
    if read:
        get_optimizer_state_dict(model, optimizer)
    for _ in range(5):
        optimizer.zero_grad()
        loss = (model(x) - x[:, :1]).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(round(loss.item(), 4))
    return losses, len(hooks)


print("torch", torch.__version__)
for name, options in (("AdamW", {}), ("RAdam", {}), ("SGD", {"momentum": 0.9, "dampening": 0.5})):
    plain, read = (trained(getattr(torch.optim, name), read, **options) for read in (False, True))
    print(f"{name}: {plain[0]}, {plain[1]} hook calls; after the state was read {read[0]}, {read[1]} hook calls")
    assert plain[0][0] == read[0][0] and plain[0][-1] != read[0][-1] and (plain[1], read[1]) == (5, 6)
PY
