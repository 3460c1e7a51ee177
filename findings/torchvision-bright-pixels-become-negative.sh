#!/usr/bin/env bash
# torchvision 0.28.0: to_tensor makes the brighter half of a 16-bit image negative.
#
# Depth maps, X-rays and other 16-bit PNGs open as Pillow's mode I;16, whose numbers go from 0 to 65535. pil_to_tensor gives them as uint16. One would guess
# that to_tensor, and ToTensor, which are documented to leave them unscaled, give the same numbers. Seen: it takes them for signed: 40000 becomes
# -25536, white becomes -1, and black stays 0. Nothing is said, and a mean and a standard deviation that are taken from such data do not tell.
#
# Exits non-zero if it does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-compile --no-deps --target "$tmp" torchvision==0.28.0 pillow==12.0.0
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import importlib.util
import io
import sys
import types
from importlib.metadata import version

import numpy as np
import torch
from PIL import Image

print("torch", torch.__version__, "torchvision", version("torchvision"), "pillow", Image.__version__)
# the transforms alone: the package has compiled operators that must be built for the torch at hand
package = types.ModuleType("torchvision")
package.__path__ = importlib.util.find_spec("torchvision").submodule_search_locations
sys.modules["torchvision"] = package
from torchvision.transforms import functional, transforms  # noqa: E402

pixels = np.array([[0, 1000, 32767, 32768, 40000, 65535]], dtype=np.uint16)
file = io.BytesIO()
Image.fromarray(pixels).save(file, format="png")
image = Image.open(file)
assert image.mode == "I;16" and np.array_equal(np.asarray(image), pixels)
seen = {
    "pil_to_tensor": functional.pil_to_tensor(image),
    "to_tensor": functional.to_tensor(image),
    "ToTensor": transforms.ToTensor()(image),
}
for name, tensor in seen.items():
    print(f"{name}: {tensor.dtype} {tensor.flatten().tolist()}")
assert seen["pil_to_tensor"].flatten().tolist() == pixels.flatten().tolist()
for name in ("to_tensor", "ToTensor"):
    assert seen[name].dtype == torch.int16 and seen[name].flatten().tolist() == [0, 1000, 32767, -32768, -25536, -1]
PY
