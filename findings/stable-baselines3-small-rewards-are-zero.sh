#!/usr/bin/env bash
# stable-baselines3 2.9.2: Monitor rounds returns to six places, and the best model is chosen by the rounded ones.
#
# evaluate_policy takes the returns from Monitor, and warns where an environment is not wrapped into it; make_vec_env and every algorithm wrap by
# themselves. One would guess that the return is the sum of the rewards. Seen: it is rounded to six decimal places. With rewards of 1e-7 a step
# (a return in a unit that makes it small, a penalty per second) an episode has the return 0, the mean of evaluate_policy is 0 with a standard
# deviation of 0, and policies four times as good are equal. Without Monitor, evaluate_policy gives 0.0000001 and 0.0000004.
#
# Exits non-zero if it does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-compile --no-deps --target "$tmp" stable-baselines3==2.9.2 gymnasium==1.4.0 farama-notifications==0.0.6 cloudpickle==3.1.3 pandas==3.1.1 python-dateutil six matplotlib==3.11.2 pyparsing cycler kiwisolver packaging contourpy fonttools pillow
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import gymnasium
import numpy as np
import stable_baselines3
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor


class Small(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (1,), "float32")
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, "float32"), {}

    def step(self, action):
        return np.zeros(1, "float32"), 4e-7 if action else 1e-7, True, False, {}


class Always:
    def __init__(self, action):
        self.action = action

    def predict(self, observations, **_):
        return np.full(len(observations), self.action), None


print("stable-baselines3", stable_baselines3.__version__, "gymnasium", gymnasium.__version__)
for wrap in (lambda env: env, Monitor):
    means = [float(evaluate_policy(Always(action), wrap(Small()), n_eval_episodes=5, warn=False)[0]) for action in (0, 1)]
    print("with Monitor:" if wrap is Monitor else "without:", "mean returns of two policies", means)
    assert means == [0.0, 0.0] if wrap is Monitor else np.allclose(means, [1e-7, 4e-7])
PY
