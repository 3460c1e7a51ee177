#!/usr/bin/env bash
# grain 0.2.18: IndexSampler cuts the data before it shuffles: each rank sees the same samples in every epoch.
#
# Its shuffle is described as whether to shuffle the data set globally, so one would guess that ranks divide a new order of the whole in each epoch,
# as with torch's DistributedSampler. Seen: each rank is given one stretch of the file and shuffles that. Of data that lie by class or by source a
# rank has its own for the whole run, batches are never mixed, whatever the seed and the number of epochs; in the order that is trained on, two of four
# classes never meet in a rank's batch. MapDataset.source(data).shuffle(seed)[rank::ranks] takes from the whole.
#
# Exits non-zero if grain does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -m pip install --quiet --target "$tmp" grain==0.2.18 numpy==2.4.6
PYTHONPATH=$tmp "$python" -W ignore - 2> >(grep -v absl >&2) <<'PY'
from importlib.metadata import version

import grain
from grain.samplers import IndexSampler
from grain.sharding import ShardOptions

CLASSES = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]


def epochs(rank, count=3):
    sampler = IndexSampler(16, shuffle=True, seed=0, num_epochs=count, shard_options=ShardOptions(rank, 2))
    seen = list(grain.DataLoader(data_source=range(16), sampler=sampler, worker_count=0))
    return [seen[start : start + 8] for start in range(0, 8 * count, 8)]


print("grain", version("grain"))
for rank in (0, 1):
    passes = epochs(rank)
    for number, indices in enumerate(passes):
        print(f"rank {rank}, epoch {number}: samples {indices}, classes {sorted({CLASSES[i] for i in indices})}")
    assert all(sorted(indices) == list(range(8 * rank, 8 * rank + 8)) for indices in passes) and passes[0] != passes[1]
whole = grain.MapDataset.source(range(16)).shuffle(seed=0)
mixed = [list(whole[rank::2]) for rank in (0, 1)]
print("MapDataset, shuffled and then cut:", mixed)
assert sorted(sum(mixed, [])) == list(range(16)) and {CLASSES[i] for i in mixed[0]} != {0, 1}
PY
