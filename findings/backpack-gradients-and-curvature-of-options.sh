#!/usr/bin/env bash
# backpack-for-pytorch 1.7.1: per-sample gradients ignore padding_mode and padding="same", and the curvature counts ignored labels.
#
# BackPACK raises NotImplementedError for what it cannot do: class weights, an embedding's padding_idx, pos_weight. One would guess that what does not
# raise is right. Seen: for a convolution with padding "same" or a padding mode other than "zeros", the per-sample gradients of BatchGrad do not sum to
# the gradient that autograd leaves beside them (off by 17 to 107 %). With labels of CrossEntropyLoss's ignore_index in the batch, the diagonal of the
# generalised Gauss-Newton matrix of a linear model is not that of its Hessian: ignored examples count like the others.
#
# Exits non-zero if it does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-compile --no-deps --target "$tmp" backpack-for-pytorch==1.7.1 einops==0.8.2 unfoldNd==0.2.3 packaging==26.4
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from backpack import backpack, extend
from backpack.extensions import BatchGrad, DiagGGNExact
from torch.nn import functional

print("torch", torch.__version__, "backpack-for-pytorch", version("backpack-for-pytorch"))


def error(got, right):
    return float((got - right).norm() / right.norm())


options = [{"padding": 1}, {"padding": 1, "stride": 2}, {"padding": "same"}]
options += [{"padding": 1, "padding_mode": mode} for mode in ("circular", "reflect", "replicate")]
for kept in options:
    torch.manual_seed(0)
    model = extend(torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3, **kept), torch.nn.Flatten()))
    output = model(torch.randn(16, 2, 8, 8))
    with backpack(BatchGrad()):
        extend(torch.nn.MSELoss(reduction="sum"))(output, torch.randn_like(output)).backward()
    off = error(model[0].weight.grad_batch.sum(0), model[0].weight.grad)
    print(f"Conv2d({kept}): per-sample gradients are off by {100 * off:.0f} %")
    assert (off < 1e-5) == ("stride" in kept or kept == {"padding": 1}) and (off < 1e-5 or off > 0.1)

torch.manual_seed(0)
x, weight = torch.randn(8, 4), torch.randn(5, 4)
for labels in ([0, 1, 2, 3, 4, 0, 1, 2], [0, 1, -100, -100, 4, -100, -100, 2]):
    labels = torch.tensor(labels)
    model = extend(torch.nn.Linear(4, 5, bias=False))
    model.weight.data.copy_(weight)
    with backpack(DiagGGNExact()):
        extend(torch.nn.CrossEntropyLoss())(model(x), labels).backward()

    def curvature(x, labels):
        hessian = torch.autograd.functional.hessian(lambda w: functional.cross_entropy(x @ w.T, labels), weight)
        return hessian.reshape(20, 20).diagonal().reshape(5, 4)

    counted = labels >= 0
    every = curvature(x, labels.clamp(min=0))  # the curvature of a softmax does not depend on the label
    diagonal = model.weight.diag_ggn_exact
    off = error(diagonal, curvature(x, labels))
    print(f"{int((~counted).sum())} of 8 labels ignored: the diagonal is off by {100 * off:.0f} %")
    assert (off < 1e-5) == bool(counted.all())
    torch.testing.assert_close(diagonal, every)
PY
