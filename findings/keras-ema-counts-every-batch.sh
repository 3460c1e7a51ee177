#!/usr/bin/env bash
# keras 3.15.1: with gradient_accumulation_steps the moving average of the weights moves at every batch, not at every update.
#
# The docstring says that EMA looks at accumulated iterations. One would guess that accumulating the gradient of four batches gives the same
# run, average included, as one batch four times the size. Seen: the weights are the same, the average is not. It takes in the unchanged weights at
# every batch, so that ema_momentum=0.99 is in truth 0.99**n per update: with 32 batches 0.72, an average over four updates in
# the place of a hundred. (Only ema_overwrite_frequency counts updates.)
#
# Exits non-zero if it does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --target "$tmp" keras==3.15.1
KERAS_BACKEND=torch HOME=$tmp PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import keras
import numpy
import torch

print("torch", torch.__version__, "keras", keras.__version__, keras.backend.backend())


def train(accumulate):
    weight = keras.Variable(numpy.zeros(4, "float32"))
    options = {"gradient_accumulation_steps": accumulate} if accumulate > 1 else {}
    optimizer = keras.optimizers.SGD(learning_rate=1.0, use_ema=True, ema_momentum=0.99, **options)
    for _ in range(100):
        for _ in range(accumulate):
            optimizer.apply([torch.full((4,), -1.0)], [weight])
    final = float(weight.value[0])
    optimizer.finalize_variable_values([weight])
    return final, float(weight.value[0])


seen = {n: train(n) for n in (1, 4, 32)}
for n, (weight, average) in seen.items():
    lag = weight - average
    print(f"{n} batches an update: weight {weight:.0f} after 100 updates, its average {average:.1f}, {lag:.1f} behind")
assert all(abs(weight - 100) < 1e-3 for weight, _ in seen.values())
assert abs(seen[1][1] - 37.6) < 0.1 and abs(seen[4][1] - 75.3) < 0.2 and abs(seen[32][1] - 96.4) < 0.2
PY
