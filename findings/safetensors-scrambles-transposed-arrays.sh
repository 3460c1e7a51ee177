#!/usr/bin/env bash
# safetensors 0.8.0: save_file of safetensors.numpy writes a transposed array's numbers in another order.
#
# Its docstring asks for contiguous arrays. safetensors.torch asks for the same and raises, so one would guess that this one raises too, or copies as
# numpy.save does. Seen: it writes the shape of the transpose and the memory as it lies, so that W.T, or an array in Fortran's order (as many of
# SciPy's come), is read back with the right shape, type and sum and the numbers in other places. A converter that transposes weights
# between two frameworks writes a network that loads everywhere and is another. numpy.ascontiguousarray helps.
#
# Exits non-zero if safetensors does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" safetensors==0.8.0 numpy==2.4.6
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import io

import numpy as np
import safetensors
import safetensors.numpy
import safetensors.torch
import torch

print("safetensors", safetensors.__version__)
weight = np.arange(6, dtype=np.float32).reshape(2, 3)
kept = {}
for name, array in (("W", weight), ("W.T", weight.T), ("Fortran's order", np.asfortranarray(weight))):
    back = safetensors.numpy.load(safetensors.numpy.save({"weight": array}))["weight"]
    saved = io.BytesIO()
    np.save(saved, array)
    saved.seek(0)
    kept[name] = np.array_equal(back, array)
    print(f"{name}: {array.tolist()} comes back as {back.tolist()}; by numpy.save it is equal: {np.array_equal(np.load(saved), array)}")
    assert back.shape == array.shape and back.sum() == array.sum()
try:
    safetensors.torch.save({"weight": torch.from_numpy(weight).T})
    refused = False
except ValueError as error:
    refused = True
    print("safetensors.torch, the transpose:", str(error).splitlines()[0][:90])
assert kept == {"W": True, "W.T": False, "Fortran's order": False} and refused
PY
