#!/usr/bin/env bash
# clearml 2.1.12: a loss that has become NaN, or infinite, is reported as 0.
#
# One would guess that a tracker keeps a NaN, leaves it out or refuses it. Seen: report_scalar writes 0.0 in the place of NaN, inf and
# -inf, so that the curve of a loss that blew up ends at 0, the best value there is for whoever compares runs by their last or
# least loss. A line at level INFO says so, once a process for NaN and once for infinity.
# (Logger.set_reporting_nan_value puts another number in its place.)
#
# Exits non-zero if clearml does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -m pip install --quiet --target "$tmp" clearml==2.1.12
HOME=$tmp CLEARML_CACHE_DIR=$tmp/cache CLEARML_OFFLINE_MODE=1 PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import json
import math

import clearml

print("clearml", clearml.__version__)
off = {"auto_connect_frameworks": False, "auto_connect_streams": False, "auto_connect_arg_parser": False}
task = clearml.Task.init("project", "task", auto_resource_monitoring=False, **off)
losses = [2.0, 1.0, 40.0, math.inf, math.nan, -math.inf]
for step, loss in enumerate(losses):
    task.get_logger().report_scalar("loss", "train", loss, step)
task.flush(wait_for_uploads=True)
folder = task.get_offline_mode_folder()
lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
events = [event for line in lines for event in (line if isinstance(line, list) else [line])]
kept = {event["iter"]: event["value"] for event in events if event.get("metric") == "loss"}
task.close()
print("reported", losses)
print("kept    ", [kept[step] for step in range(len(losses))])
assert [kept[step] for step in range(len(losses))] == [2.0, 1.0, 40.0, 0.0, 0.0, 0.0]
PY
