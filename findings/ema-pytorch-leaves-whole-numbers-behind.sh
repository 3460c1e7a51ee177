#!/usr/bin/env bash
# ema-pytorch 0.8.3: buffers of whole numbers and flags stay in the averaged model what they were at its start.
#
# EMA keeps a copy of a model whose weights and buffers follow. One would guess that counters and flags are copied, as the
# floats next to them are averaged. Seen: only floating buffers and parameters are touched, in the first copy after update_after_step
# as well. A layer that sets itself up on its first batch and notes that in a flag (an ActNorm, a codebook) is not set up in
# the averaged model: evaluating it does that again, on whatever batch it is shown, over the averages. Counters are those of step
# 0, as num_batches_tracked is. torch's AveragedModel copies them with use_buffers=False, and averages with True.
#
# Exits non-zero if ema-pytorch does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" ema-pytorch==0.8.3
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import torch
from ema_pytorch import EMA
from torch.optim.swa_utils import AveragedModel

x = 3 * torch.randn(256, 4, generator=torch.Generator().manual_seed(0))


class ActNorm(torch.nn.Module):
    """Scales by what makes its first batch have a deviation of 1, then learns."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(4))
        self.register_buffer("ready", torch.tensor(False))

    def forward(self, x):
        if not self.ready:
            self.scale.data = 1 / x.std(0)
            self.ready.fill_(True)
        return x * self.scale


torch.manual_seed(0)
model = torch.nn.Sequential(ActNorm(), torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1))
ema, torchs = EMA(model, beta=0.99), AveragedModel(model)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for _ in range(500):
    optimizer.zero_grad()
    (model(x) - x[:, :1]).square().mean().backward()
    optimizer.step()
    ema.update()
    torchs.update_parameters(model)
flags = {"model": model, "EMA": ema.ema_model, "AveragedModel": torchs.module}
seen = {name: (bool(m[0].ready), int(m[2].num_batches_tracked)) for name, m in flags.items()}
print("torch", torch.__version__, "flag and number of batches:", seen)
model.eval(), ema.eval()
before = ema.ema_model[0].scale.clone()
with torch.no_grad():
    ema(x[:8])
after = ema.ema_model[0].scale
print(f"the averaged scale {before.tolist()}, after evaluating a batch {after.tolist()}")
assert seen["model"] == seen["AveragedModel"] == (True, 500) and seen["EMA"] == (False, 0)
assert not torch.allclose(before, after, rtol=0.05)
PY
