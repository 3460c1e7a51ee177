#!/usr/bin/env bash
# pytorch-tabnet 4.1.0: a schedule by the epoch does nothing without validation data, one by the batch is lost at the second fit.
#
# One would guess that StepLR lowers the learning rate whether there is an eval_set or not, and that two fits, or the
# folds of a cross-validation that share one dict of settings, train alike. Seen: without an eval_set no scheduler by the
# epoch ever steps, since there is no metric to hand to a plateau. And scheduler_params takes is_batch_level=True, as documented
# for OneCycleLR: the first fit takes it out of the caller's dict, and all later ones, of every estimator given that dict, step
# once an epoch (or never): a one-cycle schedule then ends in its warm-up, at the highest rate. Nothing is said of either.
#
# Exits non-zero if pytorch-tabnet does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" pytorch-tabnet==4.1.0 scikit-learn==1.9.1 scipy==1.17.1 \
  joblib==1.6.0 threadpoolctl==3.8.0 tqdm==4.70.1 narwhals==2.29.0
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import contextlib
import io

import numpy as np
import torch
from pytorch_tabnet.tab_model import TabNetClassifier
from torch.optim.lr_scheduler import OneCycleLR, StepLR

x = np.random.default_rng(0).normal(size=(256, 4)).astype("float32")
y = (x[:, 0] > 0).astype(int)


def rates(scheduler, settings, **data):
    """Learning rates that the 5 epochs of 4 batches ended with."""
    net = TabNetClassifier(scheduler_fn=scheduler, scheduler_params=settings, verbose=0, seed=0)
    with contextlib.redirect_stdout(io.StringIO()):
        net.fit(x, y, max_epochs=5, patience=0, batch_size=64, virtual_batch_size=64, **data)
    return [round(float(lr), 5) for lr in net.history["lr"]]


print("torch", torch.__version__)
checked = {"eval_set": [(x, y)]}
with_data, without = (rates(StepLR, {"step_size": 1, "gamma": 0.5}, **data) for data in (checked, {}))
print(f"StepLR(1, 0.5): {with_data} with an eval_set, {without} without")
settings = {"max_lr": 0.1, "total_steps": 20, "is_batch_level": True}
folds = [rates(OneCycleLR, settings, **checked) for _ in range(3)]
for fold, seen in enumerate(folds, 1):
    print(f"OneCycleLR, fit {fold}: {seen}")
print("the dict of its settings is now", settings)
assert with_data == [0.02, 0.01, 0.005, 0.0025, 0.00125] and without == [0.02] * 5
assert max(folds[0]) > 0.08 and folds[0][-1] < 0.002
assert folds[1] == folds[2] == sorted(folds[1]) and folds[1][-1] > 0.08
assert "is_batch_level" not in settings
PY
