#!/usr/bin/env bash
# poutyne 1.19.0: a run that is resumed from its own folder trains its next epoch at the learning rate of the one before.
#
# ModelBundle.train() resumes by itself: it restores weights, optimizer, random numbers and the schedulers in lr_schedulers.
# One would guess that the run goes on as the uninterrupted one. Seen: what is written at the end of an epoch is the state before
# the schedulers' step, so that the resumed run repeats a rate and stays an epoch behind for good, by one decay a
# restart. Without a scheduler the resumed run has the bits of the uninterrupted one.
#
# Exits non-zero if poutyne does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" \
  poutyne==1.19.0 torchmetrics==1.9.0 lightning-utilities==0.15.3 packaging==26.3
PYTHONPATH=$tmp FOLDER=$tmp/runs "$python" -W ignore - <<'PY'
import contextlib
import io
import os

import poutyne
import torch

x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
data = torch.utils.data.TensorDataset(x, x[:, :1])


class Rates(poutyne.Callback):
    def on_epoch_begin(self, epoch_number, logs):
        self.seen.append(round(self.model.optimizer.param_groups[0]["lr"], 6))


def train(name, epochs, schedulers, rates):
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 1)
    folder, optimizer = f"{os.environ['FOLDER']}/{name}", torch.optim.SGD(net.parameters(), lr=0.1)
    bundle = poutyne.ModelBundle.from_network(folder, net, optimizer=optimizer, loss_function="mse", device="cpu")
    callback, loader = Rates(), torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)
    callback.seen = rates
    with contextlib.redirect_stdout(io.StringIO()):
        bundle.train(loader, loader, epochs=epochs, verbose=False, lr_schedulers=schedulers(), callbacks=[callback])
    return net


print("torch", torch.__version__, "poutyne", poutyne.__version__)
for name, schedulers in (("constant", list), ("halved", lambda: [poutyne.ExponentialLR(0.5)])):
    whole, parts = [], []
    uninterrupted = train(f"{name}-whole", 6, schedulers, whole)
    train(f"{name}-parts", 3, schedulers, parts)
    resumed = train(f"{name}-parts", 6, schedulers, parts)
    same = torch.equal(uninterrupted.weight, resumed.weight)
    print(f"{name}: lr {whole}; in two parts {parts}; same weights: {same}")
    assert (whole == parts and same) if name == "constant" else (parts == [*whole[:3], *whole[2:5]] and not same)
PY
