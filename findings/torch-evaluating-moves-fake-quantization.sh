#!/usr/bin/env bash
# torch 2.13.0: evaluating a network in quantisation-aware training changes it, in eval() and under no_grad().
#
# eval() is what keeps BatchNorm's statistics still, and a validation pass changes nothing, one would guess. Seen: the observers of
# fake quantisation go on averaging the ranges that they see, in eval() as in train(). A validation pass changes what the network
# answers to training data from then on, by more the more unlike they are; what is validated twice has two losses.
# model.apply(torch.ao.quantization.disable_observer) before evaluating, and enable_observer after it, helps.
#
# Exits non-zero if torch does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch; assert torch.__version__.split("+")[0] == "2.13.0"' 2>/dev/null \
  || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import copy

import torch
from torch.ao import quantization as q

torch.set_num_threads(1)
torch.manual_seed(0)
x, held_out = torch.randn(256, 8), 3 * torch.randn(256, 8)
target = x[:, :1] * x[:, 1:2]
net = torch.nn.Sequential(
    q.QuantStub(), torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1), q.DeQuantStub()
)
net.qconfig = q.get_default_qat_qconfig("x86")
q.prepare_qat(net.train(), inplace=True)
optimizer = torch.optim.Adam(net.parameters(), 1e-2)
for _ in range(100):
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(net(x), target).backward()
    optimizer.step()
net.eval()


@torch.no_grad()
def moved_by_a_look(looked_at, still=False):
    other = copy.deepcopy(net)
    if still:
        other.apply(q.disable_observer)
    look = copy.deepcopy(other)
    for _ in range(20):
        look(looked_at)
    return float((q.convert(look)(x) - q.convert(other)(x)).abs().max())


print("torch", torch.__version__)
free, still = moved_by_a_look(held_out), moved_by_a_look(held_out, still=True)
print(f"answers of the converted network, of size {float(net(x).std()):.2f}, after 20 held-out batches: moved by {free:.3f}")
print(f"with disable_observer: {still}")
with torch.no_grad():
    losses = [float(torch.nn.functional.mse_loss(net(held_out), held_out[:, :1] * held_out[:, 1:2])) for _ in range(3)]
print("one validation loss, three times:", losses)
assert free > 0.02 and still == 0 and len(set(losses)) == 3
PY
