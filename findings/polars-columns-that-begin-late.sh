#!/usr/bin/env bash
# polars 2.1.0: metrics that are first logged after the hundredth line are dropped without a word, and 1.5 becomes 1.
#
# A log has a line a step, and a validation loss now and then. One would guess that all columns of a JSON lines file are read, or that it
# raises. Seen: read_ndjson and scan_ndjson take the columns from the first 100 lines; a key that comes later is no column, its values
# are gone. So do pl.DataFrame and pl.from_dicts with a list of dicts, and there a column whose first 100 values are whole numbers cuts
# the others: a rate of 1.5 is 1, one of 0.5 is 0 (strict=True, the default, says nothing). infer_schema_length=None reads it all.
#
# Exits non-zero if polars does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -m pip install --quiet --target "$tmp" polars==2.1.0
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import json
import tempfile

import polars as pl

print("polars", pl.__version__)
rows = [{"step": step, "rate": 1 if step < 120 else 0.5} for step in range(300)]
for row in rows[150::50]:
    row["val_loss"] = 0.25
floats = [{**row, "rate": float(row["rate"])} for row in rows]
with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
    file.write("\n".join(map(json.dumps, floats)))
    file.flush()
    read, scanned = pl.read_ndjson(file.name), pl.scan_ndjson(file.name).collect()
    whole = pl.read_ndjson(file.name, infer_schema_length=None)
print("keys in the file: step, rate, val_loss; read_ndjson", read.columns, "scan_ndjson", scanned.columns)
print("with infer_schema_length=None", whole.columns, "val_loss on", whole["val_loss"].drop_nulls().len(), "lines")
frame, dicts, all_rows = pl.DataFrame(rows), pl.from_dicts(rows), pl.DataFrame(rows, infer_schema_length=None)
print("DataFrame(rows)", frame.columns, "last rate", frame["rate"][-1], "from_dicts", dicts.columns, "last rate", dicts["rate"][-1])
print("DataFrame(rows, infer_schema_length=None)", all_rows.columns, "last rate", all_rows["rate"][-1])
assert all("val_loss" not in table.columns and len(table) == 300 for table in (read, scanned, frame, dicts))
assert frame["rate"][-1] == dicts["rate"][-1] == 0 and all_rows["rate"][-1] == 0.5
assert whole["val_loss"].drop_nulls().len() == 3
PY
