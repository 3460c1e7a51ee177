#!/usr/bin/env bash
# torch 2.13.0: going through a DataLoader that shuffles nothing moves the global random numbers.
#
# shuffle=False and num_workers=0 ask for no random number, so one would guess that evaluating is free: that a run with
# dropout, or one whose training batches are shuffled, is the same whether it is evaluated or not. Seen: every iter() over a
# DataLoader without a generator draws a seed for workers that it does not have; a run that is evaluated after each epoch
# ends elsewhere than one that is evaluated at its end, by as much as another seed would do. Two settings are then compared
# on two seeds. DataLoader(generator=torch.Generator()) for the evaluation helps.
#
# Exits non-zero if torch does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch; assert torch.__version__.split("+")[0] == "2.13.0"' 2>/dev/null \
  || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import torch
from torch.utils.data import DataLoader, TensorDataset

torch.set_num_threads(1)
x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
data = TensorDataset(x, x[:, :1])


def trained(evaluate, seed=0, **options):
    torch.manual_seed(seed)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    held_out = DataLoader(data, batch_size=16, shuffle=False, **options)
    for _ in range(3):
        for inputs, targets in DataLoader(data, batch_size=16, shuffle=True):
            optimizer.zero_grad()
            dropped = torch.nn.functional.dropout(inputs, 0.5)
            torch.nn.functional.mse_loss(model(dropped), targets).backward()
            optimizer.step()
        if evaluate:
            with torch.no_grad():
                sum(torch.nn.functional.mse_loss(model(inputs), targets) for inputs, targets in held_out)
    return model.weight.detach()[0]


print("torch", torch.__version__)
plain, again, evaluated = trained(False), trained(False), trained(True)
apart = trained(True, generator=torch.Generator())
print("weights:", plain.tolist(), "\nevaluated after each epoch:", evaluated.tolist())
print("evaluated by a loader with a generator of its own:", apart.tolist())
assert torch.equal(plain, again) and torch.equal(plain, apart) and (plain - evaluated).abs().max() > 1e-2
PY
