#!/usr/bin/env bash
# torchmetrics 1.9.0: R2Score is wrong where the mean of the targets is large beside their spread: 0.99 for a constant, or above 1.
#
# sklearn takes the same float32 numbers and gets it right, so one would guess the same. Seen: the spread of the targets is a
# difference of two sums in float32, of the squares and of the mean's. Of targets at -11179 +- 10 (energies in eV) a model that answers the mean
# alone gets 0.35 in place of 0, and one with 0.76 gets 0.84; of seconds since 1970 within a day the constant gets 0.995. The figure
# depends on the size of the batches, too, and is exactly 0 where the difference is negative or so. ExplainedVariance and RelativeSquaredError
# are computed alike; PearsonCorrCoef is right. Targets and predictions as float64, or centred, help.
#
# Exits non-zero if torchmetrics does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" torchmetrics==1.9.0 lightning-utilities==0.15.3 packaging==26.4 \
  scikit-learn==1.9.1 scipy==1.17.1 numpy==2.4.6 joblib==1.6.0 threadpoolctl==3.8.0 narwhals==2.29.0 cloudpickle==3.1.3
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import torch
import torchmetrics
from sklearn.metrics import r2_score

torch.set_num_threads(1)


def r2(predictions, targets, batch=100):
    metric = torchmetrics.R2Score()
    for pair in zip(predictions.split(batch), targets.split(batch)):
        metric.update(*pair)
    return round(float(metric.compute()), 3)


print("torchmetrics", torchmetrics.__version__)
generator = torch.Generator().manual_seed(0)
seen = {}
for name, mean, spread in (("energy in eV", -11179, 10), ("wavelength in nm", 1550, 0.5), ("time in s", 1.7e9, 86400.0)):
    targets = (torch.randn(20000, generator=generator, dtype=torch.float64) * spread + mean).float()
    good = (targets + torch.randn(20000, generator=generator) * spread / 2).float()
    constant = torch.full_like(targets, float(targets.double().mean()))
    true = [round(r2_score(targets.numpy(), guess.numpy()), 3) for guess in (good, constant)]
    ours = [r2(guess, targets) for guess in (good, constant)]
    seen[name] = true, ours, r2(good.double(), targets.double())
    print(f"{name}, {mean} +- {spread}: a good model {ours[0]} (sklearn {true[0]}), the mean alone {ours[1]} (sklearn {true[1]});")
    print(f"  the good one in batches of 1000 {r2(good, targets, batch=1000)}, in float64 {seen[name][2]}")
for (good, constant), (ours, _), double in seen.values():
    assert 0.7 < good < 0.8 and abs(constant) < 0.02 and abs(double - good) < 0.01 and abs(ours - good) > 0.02
assert seen["energy in eV"][1][1] > 0.1 and seen["time in s"][1][1] > 0.9
PY
