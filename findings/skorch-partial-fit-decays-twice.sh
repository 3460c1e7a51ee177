#!/usr/bin/env bash
# skorch 1.4.0: a decay that falls between two calls of partial_fit is applied twice.
#
# partial_fit goes on with the training where it stood, a few epochs at a time. One would guess that six calls of one epoch are one call
# of six. Seen: LRScheduler makes a new schedule at each call and tells it the number of epochs, and torch's constructor takes that step again,
# on a rate that has had it. StepLR and MultiStepLR apply a decay that falls on such a boundary a second time: 0.1 becomes 0.001 with gamma=0.1,
# then 0.00001. Seen right: ExponentialLR with calls of one epoch, CosineAnnealingLR, LambdaLR, OneCycleLR, and all of them within one call.
#
# Exits non-zero if it does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-compile --target "$tmp" skorch==1.4.0
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import numpy
import skorch
import torch
from skorch.callbacks import Callback, LRScheduler
from torch.optim import lr_scheduler


class Rates(Callback):
    def __init__(self, kept):
        self.kept = kept

    def on_epoch_begin(self, net, **_):
        self.kept.append(float(f"{net.optimizer_.param_groups[0]['lr']:.3g}"))


x = numpy.random.default_rng(0).normal(size=(64, 1)).astype("float32")


def rates(calls, policy, **options):
    kept = []
    callbacks = [("schedule", LRScheduler(policy=policy, **options)), ("rates", Rates(kept))]
    net = skorch.NeuralNetRegressor(
        torch.nn.Linear, module__in_features=1, module__out_features=1, lr=0.1, verbose=0, train_split=None, callbacks=callbacks
    )
    for epochs in calls:
        net.partial_fit(x, 3 * x, epochs=epochs)
    return net.get_params()["callbacks__rates"].kept


print("torch", torch.__version__, "skorch", skorch.__version__)
cases = {
    "StepLR": {"step_size": 2, "gamma": 0.1},
    "MultiStepLR": {"milestones": [2, 4], "gamma": 0.1},
    "CosineAnnealingLR": {"T_max": 6},
    "LambdaLR": {"lr_lambda": lambda epoch: 0.5**epoch},
}
for name, options in cases.items():
    whole, parts = (rates(calls, getattr(lr_scheduler, name), **options) for calls in ([6], [1] * 6))
    print(f"{name}: one call {whole}, six calls {parts}")
    assert len(whole) == len(parts) == 6
    if "StepLR" in name:
        assert whole == [0.1, 0.1, 0.01, 0.01, 0.001, 0.001] and parts == [0.1, 0.1, 0.001, 0.001, 1e-5, 1e-5]
    else:
        assert whole == parts
PY
