#!/usr/bin/env bash
# ml_dtypes 0.6.0, numpy 2.4.6: sums, means and variances of bfloat16 arrays stop at 256.
#
# numpy takes means of float16 in float32, and sums float16 pairwise. JAX's and ml_dtypes' bfloat16 is a numpy dtype as well, and arrays that come out of
# JAX, or of a checkpoint, have it. One would guess that their mean is as good as bfloat16 allows. Seen: the sum is carried in bfloat16, one number after
# the other, where 256 + 1 is 256. The mean of 100,000 numbers between 0 and 1 is 0.0026, their variance 0.0002, and 1,000 ones in float8_e4m3fn
# have a mean of 1/64. median, the matrix product and .astype(float32).mean() are right. No warning comes.
#
# Exits non-zero if it does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -m pip install --quiet --no-compile --no-deps --target "$tmp" ml_dtypes==0.6.0 numpy==2.4.6
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import ml_dtypes
import numpy as np

print("ml_dtypes", ml_dtypes.__version__, "numpy", np.__version__)
numbers = np.random.default_rng(0).random(100_000)
seen = {}
for dtype in (np.float16, ml_dtypes.bfloat16):
    array = numbers.astype(dtype)
    seen[dtype.__name__] = [float(f(array)) for f in (np.mean, np.var, np.median)]
    name, (mean, variance, median) = dtype.__name__, seen[dtype.__name__]
    print(f"{name}: mean {mean:.3g} variance {variance:.3g} median {median:.3g}; in float32 {array.astype(np.float32).mean():.3g}")
(mean16, variance16, median16), (mean, variance, median) = seen.values()
assert abs(mean16 - 0.5) < 0.01 and abs(variance16 - 1 / 12) < 0.01 and abs(median16 - 0.5) < 0.01
assert mean < 0.003 and variance < 0.003 and abs(median - 0.5) < 0.01
ones = np.ones(1000)
for dtype, total in ((ml_dtypes.bfloat16, 256), (ml_dtypes.float8_e4m3fn, 16), (ml_dtypes.float8_e5m2, 8)):
    array = ones.astype(dtype)
    print(f"{dtype.__name__}: 1000 ones have the sum {array.sum()} and the mean {array.mean()}")
    assert float(array.sum()) == total
assert float(ones.astype(ml_dtypes.bfloat16) @ ones.astype(ml_dtypes.bfloat16)) == 1000
PY
