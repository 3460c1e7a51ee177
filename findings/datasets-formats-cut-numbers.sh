#!/usr/bin/env bash
# datasets 5.2.0: with_format("numpy") gives float64 columns as float32.
#
# A column is declared float64 and is stored as such. One would guess that numpy, which has that type, gets it. Seen: for numpy and for torch alike every
# float column is cast to float32, and what is stored as int8 comes as int64. Three times that lie ten seconds apart are one and the same, and 0.1 is no
# longer 0.1. No warning comes, the features still say float64, and without a format, or with "pandas", the numbers are right.
# with_format("numpy", dtype=numpy.float64) helps, and turns the labels into floats.
#
# Exits non-zero if it does something else.
set -euo pipefail
# dill, which datasets hashes with, pickles modules by value that are not in a folder "site-packages"
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp/site-packages" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-compile --target "$tmp/site-packages" datasets==5.2.0 pyarrow==26.0.1 numpy==2.4.6
PYTHONPATH=$tmp/site-packages "$python" -W ignore - <<'PY'
import datasets
import numpy as np
import pyarrow
import torch

print("datasets", datasets.__version__, "pyarrow", pyarrow.__version__, "torch", torch.__version__, "numpy", np.__version__)
times = [1.7e9, 1.7e9 + 10, 1.7e9 + 20]
features = datasets.Features({"time": datasets.Value("float64"), "label": datasets.Value("int8")})
data = datasets.Dataset.from_dict({"time": times, "label": [0, 1, 2]}, features=features)
seen = {}
for name, options in ((None, {}), ("pandas", {}), ("numpy", {}), ("torch", {}), ("numpy", {"dtype": np.float64})):
    rows = data.with_format(name, **options)
    assert rows.features["time"].dtype == "float64"
    columns = [np.asarray(rows[:][key]) for key in ("time", "label")]
    label = f"{name} {options or ''}".strip()
    seen[label] = [str(column.dtype) for column in columns], len(set(columns[0].tolist()))
    print(f"{label}: types {seen[label][0]}, {seen[label][1]} different times of 3")
assert [different for _, different in seen.values()] == [3, 3, 1, 1, 3]
assert seen["numpy"][0] == seen["torch"][0] == ["float32", "int64"] and seen["pandas"][0] == ["float64", "int8"]
assert list(seen.values())[-1][0] == ["float64", "float64"]
PY
