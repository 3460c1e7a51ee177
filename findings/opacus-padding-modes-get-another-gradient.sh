#!/usr/bin/env bash
# opacus 1.6.0: a convolution with padding_mode "circular", "reflect" or "replicate" trains with the gradients of zero padding.
#
# One would guess that the per-sample gradients of a layer that GradSampleModule and ModuleValidator accept sum to the gradient of the batch, as they
# do for every other option of a convolution. Seen: the forward pass pads as asked, the gradients of the weight are formed as if the border were
# zeros. With every padding mode but "zeros" they are off by 27 to 45 % here, the bias is right, and nothing is said. ModuleValidator finds no fault.
#
# Exits non-zero if it does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-compile --no-deps --target "$tmp" opacus==1.6.0 opt_einsum==3.4.0 scipy==1.17.1
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import opacus
import torch
from opacus.grad_sample import GradSampleModule
from opacus.validators import ModuleValidator

print("torch", torch.__version__, "opacus", opacus.__version__)
wrong = {}
for dimensions, kind in ((1, torch.nn.Conv1d), (2, torch.nn.Conv2d)):
    for mode in ("zeros", "circular", "reflect", "replicate"):
        torch.manual_seed(0)
        layer = kind(2, 3, 3, padding=1, padding_mode=mode)
        x = torch.randn(16, 2, *[8] * dimensions)
        target = torch.randn(16, 3, *[8] * dimensions)
        (layer(x) * target).sum().backward()
        gradient = layer.weight.grad.clone()
        layer.weight.grad = None
        assert ModuleValidator.validate(layer) == []
        private = GradSampleModule(layer, loss_reduction="sum")
        (private(x) * target).sum().backward()
        summed = layer.weight.grad_sample.sum(0)
        torch.testing.assert_close(layer.bias.grad_sample.sum(0), target.sum([0, *range(2, 2 + dimensions)]))
        wrong[kind.__name__, mode] = float((summed - gradient).norm() / gradient.norm())
        print(f"{kind.__name__}, {mode}: error of the summed per-sample gradients {100 * wrong[kind.__name__, mode]:.0f} %")
assert all(error < 1e-5 if mode == "zeros" else error > 0.05 for (_, mode), error in wrong.items())
PY
