#!/usr/bin/env bash
# keras 3.15.1: a torch module in a keras model is in training mode when the model is called, and its batch norm moves while it is frozen.
#
# A keras layer that is called without `training` predicts: Dropout does nothing, BatchNormalization uses its averages. With trainable=False a
# BatchNormalization stands still even in fit. One would guess the same of TorchModuleWrapper. Seen: it puts its module into train() unless
# training=False reaches it. model(x) drops half of the activations and moves the averages, where model.predict(x) does neither: an evaluation loop
# that calls the model changes it. And fit goes on moving the averages of a wrapper that is frozen.
#
# Exits non-zero if it does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-compile --no-deps --target "$tmp" keras==3.15.1 absl-py rich namex==0.1.0 h5py==3.16.0 optree==0.20.0 ml-dtypes==0.6.0 packaging==26.4
KERAS_BACKEND=torch PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import keras
import numpy as np
import torch

print("torch", torch.__version__, "keras", keras.__version__)
x = np.random.default_rng(0).normal(3, 1, size=(64, 4)).astype("float32")


def dropped(outputs):
    return float((np.asarray(outputs.detach() if isinstance(outputs, torch.Tensor) else outputs) == 0).mean())


layers = {"keras": keras.layers.Dropout(0.5), "torch": keras.layers.TorchModuleWrapper(torch.nn.Dropout(0.5))}
for name, layer in layers.items():
    model = keras.Sequential([keras.layers.Input((4,)), layer])
    seen = [dropped(model.predict(x, verbose=0)), dropped(model(x)), dropped(model(x, training=False))]
    print(f"{name}'s Dropout: zeros in predict {seen[0]:.2f}, in model(x) {seen[1]:.2f}, in model(x, training=False) {seen[2]:.2f}")
    assert seen[0] == seen[2] == 0 and (seen[1] == 0 if name == "keras" else 0.3 < seen[1] < 0.7)

norms = {"keras": keras.layers.BatchNormalization(), "torch": keras.layers.TorchModuleWrapper(torch.nn.BatchNorm1d(4))}
for name, layer in norms.items():
    model = keras.Sequential([keras.layers.Input((4,)), layer, keras.layers.Dense(1)])

    def average():
        return float((layer.moving_mean.value if name == "keras" else layer.module.running_mean).mean())

    values = [average()]
    model(x)
    values.append(average())
    layer.trainable = False
    model.compile("sgd", "mse")
    model.fit(x, x[:, :1], verbose=0)
    values.append(average())
    print(f"{name}'s batch norm: average {values[0]:.3f}, after model(x) {values[1]:.3f}, after fit with trainable=False {values[2]:.3f}")
    assert values[0] == values[1] == values[2] if name == "keras" else 0 == values[0] < values[1] < values[2]
PY
