#!/usr/bin/env bash
# segmentation-models-pytorch 0.6.0: SoftCrossEntropyLoss shrinks with every ignored pixel.
#
# Its docstring calls it a drop-in replacement of torch's CrossEntropyLoss with label smoothing, and it takes ignore_index, -100 by default as torch's
# does. One would guess that the two agree. Seen: they do where nothing is ignored. Where pixels are, it divides by all of them, torch by those that
# count: with nine in ten ignored, loss and gradients are a tenth. A batch that is mostly unlabelled hardly moves the network, and the loss of a
# validation set depends on how much of it is labelled.
#
# Exits non-zero if it does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-compile --no-deps --target "$tmp" segmentation-models-pytorch==0.6.0
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import importlib
import importlib.util
import sys
import types
from importlib.metadata import version

import torch

name = "segmentation_models_pytorch"
print("torch", torch.__version__, "segmentation-models-pytorch", version("segmentation-models-pytorch"))
# the losses alone: the package imports torchvision, which has to be built for the torch at hand
package = types.ModuleType(name)
package.__path__ = importlib.util.find_spec(name).submodule_search_locations
sys.modules[name] = package
losses = importlib.import_module(f"{name}.losses")
classes = {"torch": torch.nn.CrossEntropyLoss, "smp": losses.SoftCrossEntropyLoss}
torch.manual_seed(0)
logits = torch.randn(4, 5, 32, 32, requires_grad=True)
labels = torch.randint(0, 5, (4, 32, 32))
order = torch.rand(4, 32, 32)
for ignored in (0.0, 0.5, 0.9):
    target = labels.masked_fill(order < ignored, -100)
    seen = {}
    for name, kind in classes.items():
        loss = kind(**{"label_smoothing" if name == "torch" else "smooth_factor": 0.1})(logits, target)
        seen[name] = (float(loss), float(torch.autograd.grad(loss, logits)[0].norm()))
        print(f"{ignored:.0%} ignored, {name}: loss {seen[name][0]:.3f}, norm of the gradient {seen[name][1]:.2e}")
    counted = float((target >= 0).float().mean())
    assert all(abs(a / b - counted) < 1e-3 for a, b in zip(seen["smp"], seen["torch"], strict=True))
PY
