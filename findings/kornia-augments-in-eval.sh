#!/usr/bin/env bash
# kornia 0.9.0: random augmentations are applied in eval() too.
#
# They are modules, made to stand at the front of a network, on its device; like Dropout, one would guess, they rest in
# eval(). Seen: none looks at training. A network with augmentations inside is evaluated on augmented images, with another score at every
# pass; one that is served augments what its users send. AugmentationSequential does the same. Calling them only
# `if self.training` helps.
#
# Exits non-zero if kornia does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" kornia==0.9.0 kornia_rs==0.2.0 packaging==26.3
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import kornia
import torch
from kornia import augmentation as K

torch.set_num_threads(1)
torch.manual_seed(0)
images = torch.rand(64, 1, 16, 16)
print("kornia", kornia.__version__, "torch", torch.__version__)
assert torch.equal(torch.nn.Dropout2d(0.5).eval()(images), images)
for augment in (
    K.RandomHorizontalFlip(p=0.5),
    K.RandomErasing(p=0.5),
    K.RandomGaussianNoise(p=0.5),
    K.RandomAffine(15.0, p=0.5),
    K.AugmentationSequential(K.RandomVerticalFlip(p=0.5)),
):
    net = torch.nn.Sequential(augment, torch.nn.Flatten(), torch.nn.Linear(256, 1)).eval()
    with torch.no_grad():
        scores = [round(float(net(images).square().mean()), 5) for _ in range(3)]
        touched = int((augment(images) != images).flatten(1).any(1).sum())
    name = type(augment).__name__
    print(f"{name}: in eval() changes {touched} of 64 images; one score, three times: {scores}")
    assert touched > 10 and len(set(scores)) > 1
PY
