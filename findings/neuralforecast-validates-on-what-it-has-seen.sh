#!/usr/bin/env bash
# neuralforecast 3.2.2: cross_validation after fit scores networks that have seen the windows they are scored on.
#
# One would guess that cross-validation begins with new models for its windows, as scikit-learn's does and as statsforecast's and
# mlforecast's do. Seen: it goes on training those that are there (use_init_models is False by default). After a fit on all
# data the held-out windows have been trained on, and what should be an honest error is that of a memory: on white noise, which nobody
# can forecast, a third of the least possible. refit=True goes on from the same weights. Nothing is said. A new NeuralForecast,
# or use_init_models=True, helps.
#
# Exits non-zero if neuralforecast does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" neuralforecast==3.2.2 pytorch-lightning==2.5.2 lightning-utilities==0.15.3 \
  torchmetrics==1.9.0 utilsforecast==0.2.17 coreforecast==0.0.20 pandas==2.3.3 numpy==2.4.6 fsspec==2026.9.0 optuna==5.0.0 ray==2.60.0 \
  packaging tqdm pyyaml python-dateutil pytz tzdata six narwhals alembic colorlog sqlalchemy mako greenlet click filelock jsonschema \
  msgpack protobuf requests typing-extensions attrs rpds-py referencing jsonschema-specifications certifi idna urllib3 charset-normalizer cloudpickle scipy scikit-learn joblib threadpoolctl pyarrow tensorboardX \
  pydantic==2.14.4 pydantic_core==2.50.5 annotated-types typing-inspection aiohttp aiosignal frozenlist multidict yarl propcache
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import logging
import warnings

import numpy as np
import pandas as pd
import torch

warnings.simplefilter("ignore")
torch.set_num_threads(1)
import neuralforecast  # noqa: E402
from neuralforecast.models import MLP  # noqa: E402

for name in list(logging.root.manager.loggerDict):
    logging.getLogger(name).setLevel(logging.ERROR)
noise = pd.DataFrame({"unique_id": "a", "ds": pd.date_range("2020", periods=120), "y": np.random.RandomState(0).randn(120)})
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}


def error(fitted, **options):
    model = MLP(h=6, input_size=12, hidden_size=64, max_steps=300, learning_rate=1e-2, random_seed=1, **QUIET)
    forecast = neuralforecast.NeuralForecast([model], "D")
    if fitted:
        forecast.fit(noise)
    windows = forecast.cross_validation(noise, n_windows=4, **options)
    return float((windows["MLP"] - windows["y"]).abs().mean())


print("neuralforecast", neuralforecast.__version__, "torch", torch.__version__)
least = float(noise["y"][-9:].abs().mean())
print(f"white noise: mean absolute error of forecasting 0 in the windows {least:.2f}")
new, seen, again, reset = error(False), error(True), error(True, refit=True), error(True, use_init_models=True)
print(f"cross_validation of a new model {new:.2f}, after fit {seen:.2f}, with refit {again:.2f}, with use_init_models {reset:.2f}")
assert new == reset > least > 1.5 * max(seen, again)
PY
