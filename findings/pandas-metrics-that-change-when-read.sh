#!/usr/bin/env bash
# pandas 3.1.1: read_json does not give back the numbers and the names that are in a file of metrics.
#
# A JSON line says what is a string and what a number, and Python writes floats so that they read back to the bit. One would
# guess that read_json(lines=True) keeps both, as read_csv does with the numbers. Seen: of losses below 1 nine in ten come back with other last
# bits (its default parser is a faster one; precise_float=True helps), so logs of two equal runs, one read so, differ.
# Strings that look like numbers become numbers: runs "0007" and "007" are both 7, a commit "12e4" is 120000.
# And a duration of 5e7 in a column named train_time, or whatever ends in _time or _at, is a day in 1971.
#
# Exits non-zero if pandas does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}

"$python" -m pip install --quiet --target "$tmp" pandas==3.1.1
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import io
import json
import random

import pandas as pd

print("pandas", pd.__version__)
generator = random.Random(0)
losses = [generator.random() for _ in range(1000)]
lines = "\n".join(json.dumps({"loss": loss}) for loss in losses)
read, precise = (pd.read_json(io.StringIO(lines), lines=True, precise_float=p)["loss"].tolist() for p in (False, True))
csv = pd.read_csv(io.StringIO("\n".join(["loss", *map(repr, losses)])))["loss"].tolist()
same = [sum(a == b for a, b in zip(losses, other)) for other in (read, precise, csv)]
print("of 1000 losses {} are the same bits by read_json, {} with precise_float, {} by read_csv".format(*same))
rows = [{"run": "0007", "commit": "12e4", "train_time": 5e7}, {"run": "007", "commit": "3141", "train_time": 6e7}]
table = pd.read_json(io.StringIO("\n".join(map(json.dumps, rows))), lines=True)
print(rows, "are read as", table, sep="\n")
assert same[0] < 500 and same[1:] == [1000, 1000]
assert table["run"].tolist() == [7, 7] and table["commit"].tolist() == [120000, 3141]
assert table["train_time"][0].year == 1971
PY
