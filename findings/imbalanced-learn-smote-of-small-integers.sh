#!/usr/bin/env bash
# imbalanced-learn 0.14.2: SMOTE on uint8 data (images, as data sets ship them) makes noise of pixels that lie between no two examples.
#
# A synthetic example lies between an example of the rare class and a neighbour of it, so one would guess that it stays between the two.
# Seen: the difference of two neighbours is taken in the type of the data. In uint8 it is never negative (3 - 5 is 254), so a pixel that
# should fall rises, then wraps around: from pixels of 158 to 250 come ones from 0 to 255, two in five outside what any example has.
# uint16 reaches 65440. Nothing is said, shapes and types are right. With the same numbers as float32 all lie between.
#
# Exits non-zero if imbalanced-learn does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -m pip install --quiet --no-deps --target "$tmp" imbalanced-learn==0.14.2 sklearn-compat==0.1.6 scikit-learn==1.9.1 scipy==1.17.1 \
  numpy==2.4.6 joblib==1.6.0 threadpoolctl==3.8.0 narwhals==2.29.0 cloudpickle==3.1.3
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import imblearn
import numpy as np
from imblearn.over_sampling import SMOTE

print("imbalanced-learn", imblearn.__version__)
random = np.random.default_rng(0)
many, few = random.integers(40, 80, (100, 16)), random.integers(158, 251, (10, 16))
labels = np.repeat([0, 1], [100, 10])
outside = {}
for kind in (np.uint8, np.uint16, np.float32):
    data = np.concatenate([many, few]).astype(kind)
    made = SMOTE(k_neighbors=3, random_state=0).fit_resample(data, labels)[0][110:]
    outside[kind] = float(((made < few.min(0)) | (made > few.max(0))).mean())
    print(f"{kind.__name__}: real ones {few.min()} to {few.max()}, made {made.dtype} {made.min():.0f} to {made.max():.0f},")
    print(f"  {outside[kind]:.0%} of the values beyond those of every real one")
assert outside[np.uint8] > 0.2 and outside[np.uint16] > 0.2 and outside[np.float32] == 0
PY
