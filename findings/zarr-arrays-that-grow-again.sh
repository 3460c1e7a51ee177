#!/usr/bin/env bash
# zarr 3.1.6: an array that is shrunk and grown again shows its old numbers.
#
# One would guess that what is beyond the end of an array is gone, and that new elements have the fill value: so it is in HDF5, and in zarr where a whole
# chunk lies beyond the end. Seen: the last chunk that is partly kept keeps all its numbers, and they come back when the array grows. A log or a
# replay buffer of losses that is cut back to the step of a checkpoint and extended shows the losses of the run that was thrown away, up to the end
# of the chunk, until each is written again; a mean, or a search for the first element that is not NaN, takes them for data.
#
# Exits non-zero if it does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -m pip install --quiet --no-compile --target "$tmp" zarr==3.1.6 h5py==3.16.0
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import io

import h5py
import numpy as np
import zarr

print("zarr", zarr.__version__, "h5py", h5py.__version__)
kept = {}
for name in ("zarr", "h5py"):
    if name == "zarr":
        losses = zarr.create_array(store={}, shape=(10,), chunks=(8,), dtype="float32", fill_value=-1)
    else:
        file = h5py.File(io.BytesIO(), "w")
        losses = file.create_dataset("losses", shape=(10,), chunks=(8,), maxshape=(None,), dtype="float32", fillvalue=-1)
    losses[:] = np.arange(10)
    losses.resize((3,))
    assert losses[:].tolist() == [0, 1, 2]
    losses.resize((10,))
    kept[name] = losses[:].astype(int).tolist()
    print(f"{name}: ten numbers, cut to three and grown to ten: {kept[name]}")
assert kept == {"zarr": [0, 1, 2, 3, 4, 5, 6, 7, -1, -1], "h5py": [0, 1, 2] + [-1] * 7}
PY
