#!/usr/bin/env bash
# DeepXDE 1.15.0: a restored model starts its learning rate schedule again, some at the full rate.
#
# Model.save writes "all variables", the optimizer's state with them, and Model.restore brings back the rate at which it
# was saved. One would guess that training goes on from there. Seen: the schedule is not saved and counts from 0.
# "inverse time" and "lambda" forget the decay at the first step: a run of 900 steps in three sessions is trained at the
# rates of the first 300 three times. "step" waits a whole step size again, "cosine" falls along another curve. Nothing is said.
#
# Exits non-zero if deepxde does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" deepxde==1.15.0 numpy==2.4.6 scipy==1.17.1 scikit-learn==1.7.2 scikit-optimize==0.10.2 matplotlib==3.11.2 joblib threadpoolctl pyaml pyyaml packaging contourpy cycler fonttools kiwisolver pillow pyparsing python-dateutil six
DDE_BACKEND=pytorch PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import contextlib
import io
import tempfile

import numpy
import torch

with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    import deepxde

torch.set_num_threads(1)
deepxde.config.set_random_seed(0)


def model(decay):
    points = numpy.linspace(-1, 1, 16)[:, None].astype("float32")
    data = deepxde.data.DataSet(X_train=points, y_train=points**2, X_test=points, y_test=points**2)
    made = deepxde.Model(data, deepxde.nn.FNN([1, 8, 1], "tanh", "Glorot uniform"))
    made.compile("adam", lr=1e-3, decay=decay)
    return made


def rate_after(made, steps):
    made.train(iterations=steps, display_every=10_000, verbose=0)
    return made.opt.param_groups[0]["lr"]


print("deepxde", deepxde.__version__)
decays = [("inverse time", 100, 1.0), ("lambda", lambda step: 0.99**step), ("step", 200, 0.1), ("cosine", 600, 0.0)]
for decay in decays:
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        whole, resumed = model(decay), model(decay)
        at_300 = rate_after(whole, 300)
        resumed.restore(whole.save(folder + "/model"))
        restored = resumed.opt.param_groups[0]["lr"]
        went_on, again = [rate_after(whole, 1), rate_after(whole, 149)], [rate_after(resumed, 1), rate_after(resumed, 149)]
    print(f"{decay[0]:12} rate at step 300: {at_300:.3g}, restored: {restored:.3g}; at 301 and 450: "
          f"{went_on[0]:.3g}, {went_on[1]:.3g}, resumed: {again[0]:.3g}, {again[1]:.3g}")
    assert restored == at_300 and abs(again[1] / went_on[1] - 1) > 0.3
    if decay[0] in ("inverse time", "lambda"):
        assert again[0] > 0.98e-3 > 3 * went_on[0]
PY
