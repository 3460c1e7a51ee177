#!/usr/bin/env bash
# torch 2.13.0, CPU: AdamW(fused=True) goes on with scrambled moments after model.to(memory_format=torch.channels_last).
#
# The conversion gives parameters other strides; the optimizer's moments keep theirs. One would guess that fused=True is the
# same step in one kernel, or that it refuses, and the plain loop and foreach do go on rightly. Seen: the fused step
# pairs elements by their place in memory, so every convolution weight is divided by the second moment of another element.
# No error, no warning. The same happens to a checkpoint of a contiguous model that is resumed in a channels_last one.
#
# Exits non-zero if torch does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch; assert torch.__version__.split("+")[0] == "2.13.0"' 2>/dev/null \
  || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
PYTHONPATH=$tmp "$python" - <<'PY'
import torch

torch.set_num_threads(1)


def trained(convert_at, **options):
    torch.manual_seed(0)
    model = torch.nn.Conv2d(3, 8, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, **options)
    x = torch.randn(4, 3, 8, 8)
    for step in range(20):
        if step == convert_at:
            model.to(memory_format=torch.channels_last)
        optimizer.zero_grad()
        model(x).sin().sum().backward()
        optimizer.step()
    return model.weight.detach().contiguous()


def distance(a, b):
    return float((a - b).abs().max())


print("torch", torch.__version__)
out = {}
for name, options in (("loop", {"foreach": False}), ("foreach", {"foreach": True}), ("fused", {"fused": True})):
    out[name] = distance(trained(10, **options), trained(None, **options))
    print(f"{name}: weights differ by {out[name]:.1e} from those of a run that was not converted")
assert out["loop"] < 1e-4 and out["foreach"] < 1e-4 and out["fused"] > 1e-2, out
PY
