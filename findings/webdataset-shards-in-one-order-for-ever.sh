#!/usr/bin/env bash
# webdataset 1.0.2: with shardshuffle the shards come in one order, the same in every epoch.
#
# One would guess that shards are shuffled anew whenever the data set is read again, as a DataLoader's samples are. Seen: the data set draws one
# number when it is made and starts the shuffling of shards from it in each pass, in the main process and in workers. What is left of
# shuffling is the buffer of .shuffle(n), a few thousand samples of the millions: late shards stay late. With detshuffle=True the
# order changes by the epoch where there are no workers, or workers that persist; workers started anew each epoch repeat it.
#
# Exits non-zero if webdataset does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" webdataset==1.0.2 braceexpand==0.1.7 pyyaml==6.0.4 numpy==2.4.6
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import random
import tempfile

import webdataset
from torch.utils.data import DataLoader

print("webdataset", webdataset.__version__)
random.seed(0)
with tempfile.TemporaryDirectory() as folder:
    for shard in range(16):
        with webdataset.TarWriter(f"{folder}/{shard:02d}.tar") as tar:
            tar.write({"__key__": "sample", "cls": shard})

    def epochs(deterministic=False, **options):
        data = webdataset.WebDataset(folder + "/{00..15}.tar", shardshuffle=16, detshuffle=deterministic).decode().to_tuple("cls")
        loader = DataLoader(data, batch_size=None, **options)
        return [[int(number) for (number,) in loader] for _ in range(3)]

    seen = {}
    for name, arguments in (
        ("shardshuffle=16", {}),
        ("shardshuffle=16, 2 workers", {"num_workers": 2}),
        ("shardshuffle=16, 2 that persist", {"num_workers": 2, "persistent_workers": True}),
        ("detshuffle", {"deterministic": True}),
        ("detshuffle, 2 workers", {"deterministic": True, "num_workers": 2}),
        ("detshuffle, 2 that persist", {"deterministic": True, "num_workers": 2, "persistent_workers": True}),
    ):
        seen[name] = epochs(**arguments)
        print(name, *seen[name], sep="\n  ")
orders = [len({tuple(order) for order in passes}) for passes in seen.values()]
print("different orders in 3 epochs:", dict(zip(seen, orders)))
assert all(sorted(order) == list(range(16)) != order for passes in seen.values() for order in passes)
assert orders == [1, 1, 1, 3, 1, 3]
PY
