#!/usr/bin/env bash
# datasets 5.2.0: Dataset.from_generator gives the earlier data when what the generator reads has changed.
#
# load_dataset on a CSV file notices that the file is another; one would guess that from_generator runs the generator that it is given.
# Seen: the result is cached on disk by a hash of the generator's code and of the globals that it names, and found again by the
# next call, in this process or another. A generator that reads a file goes on giving the file's first content, and one that
# draws from random gives the first seed's numbers to every seed. No warning. gen_kwargs with something that
# changes, or another cache_dir, helps.
#
# Exits non-zero if datasets does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}

"$python" -m pip install --quiet --target "$tmp" datasets==5.2.0
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import os
import random
import tempfile

folder = tempfile.TemporaryDirectory()
os.environ["HF_HOME"] = folder.name

import datasets  # noqa: E402

datasets.disable_progress_bars()
path = os.path.join(folder.name, "numbers.csv")

def write(*numbers):
    with open(path, "w") as file:
        file.write("\n".join(["x", *map(str, numbers)]) + "\n")

def rows():
    with open(path) as file:
        for line in list(file)[1:]:
            yield {"x": int(line)}

def draws():
    for _ in range(2):
        yield {"x": round(float(random.random()), 3)}

print("datasets", datasets.__version__)
seen = {"from_generator": [], "load_dataset": [], "drawn": []}
for seed, numbers in enumerate([(1, 2, 3), (7, 8, 9, 10)]):
    write(*numbers)
    random.seed(seed)
    seen["from_generator"].append(datasets.Dataset.from_generator(rows)["x"][:])
    seen["load_dataset"].append(datasets.load_dataset("csv", data_files=path, split="train")["x"][:])
    seen["drawn"].append(datasets.Dataset.from_generator(draws)["x"][:])
for name, (first, second) in seen.items():
    print(f"{name}: {first}, then {second}")
assert seen["load_dataset"] == [[1, 2, 3], [7, 8, 9, 10]] and seen["from_generator"] == [[1, 2, 3], [1, 2, 3]]
assert seen["drawn"][0] == seen["drawn"][1]
PY
