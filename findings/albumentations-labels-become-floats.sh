#!/usr/bin/env bash
# albumentations 2.0.8: labels and ids of boxes go through float32: 16777217 comes back as 16777216, 3 as 3.0.
#
# label_fields travel with the boxes so that those of dropped boxes are dropped, so one would guess that the others come back as they were.
# Seen: labels that are numbers are put beside the corners into one array of float32. A list of ints comes back as floats, which embeddings
# and class losses refuse; ids past 2**24 come back as other ids, and as ints again where they were a numpy array, so that nothing shows:
# predictions are then matched with another annotation, or with none. Ids as strings stay.
#
# Exits non-zero if albumentations does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -m pip install --quiet --target "$tmp" albumentations==2.0.8 albucore==0.0.24 numpy==2.4.6
PYTHONPATH=$tmp NO_ALBUMENTATIONS_UPDATE=1 "$python" -W ignore - <<'PY'
import albumentations as A
import numpy as np

print("albumentations", A.__version__)
boxes = A.BboxParams(format="pascal_voc", label_fields=["labels", "ids"])


def flipped(labels, ids):
    flip = A.Compose([A.HorizontalFlip(p=1)], bbox_params=boxes)
    out = flip(image=np.zeros((8, 8, 3), np.uint8), bboxes=np.array([[1, 1, 3, 3], [2, 2, 5, 5.0]]), labels=labels, ids=ids)
    print(f"labels {labels!r}, ids {ids!r} become {out['labels']!r}, {out['ids']!r}")
    return out


ids = [16777217, 2000100019]
lists, arrays = flipped([3, 7], ids), flipped(np.array([3, 7]), np.array(ids))
strings = flipped(["cat", "dog"], [str(value) for value in ids])
assert all(isinstance(value, float) for value in lists["labels"]) and [int(v) for v in lists["ids"]] != ids
assert np.issubdtype(np.asarray(arrays["ids"]).dtype, np.integer) and list(arrays["ids"]) != ids and arrays["ids"][0] == 16777216
assert [int(value) for value in strings["ids"]] == ids
PY
