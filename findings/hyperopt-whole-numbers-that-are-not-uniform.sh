#!/usr/bin/env bash
# hyperopt 0.3.0: uniformint is not uniform, and spaces with a step leave the bounds that they are given.
#
# One would guess that uniformint(0, 3) gives each of four numbers as often, as its name says, and that low and high bound
# what is drawn. Seen: the first and the last number come half as often as the others, by random search as at the start of TPE. A
# space with a step q is rounded to multiples of q, whatever its bounds: quniform(1, 10, 4) is 0 in one draw of nine and never 10;
# qloguniform from 1e-5 to 1e-1 in steps of 1e-3 gives a learning rate of exactly 0 in two draws of five.
#
# Exits non-zero if hyperopt does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -m pip install --quiet --no-deps --target "$tmp" hyperopt==0.3.0 scipy==1.17.1 networkx==3.6.1 cloudpickle==3.1.3 \
  tqdm==4.70.1 numpy==2.4.6
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import logging
import math
from collections import Counter

import hyperopt
import numpy as np
from hyperopt import Trials, fmin, hp, rand

logging.getLogger("hyperopt").setLevel(logging.ERROR)
DRAWS = 2000


def draws(space):
    trials = Trials()
    quiet = {"show_progressbar": False, "rstate": np.random.default_rng(0)}
    fmin(lambda x: 0.0, space, algo=rand.suggest, max_evals=DRAWS, max_queue_len=DRAWS, trials=trials, **quiet)
    return Counter(float(round(trial["misc"]["vals"]["x"][0], 6)) for trial in trials.trials)


print("hyperopt", hyperopt.__version__)
whole = draws(hp.uniformint("x", 0, 3))
stepped = draws(hp.quniform("x", 1, 10, 4))
rates = draws(hp.qloguniform("x", math.log(1e-5), math.log(1e-1), 1e-3))
print(f"of {DRAWS} draws: uniformint(0, 3) {dict(sorted(whole.items()))}")
print(f"quniform(1, 10, 4) {dict(sorted(stepped.items()))}")
print(f"qloguniform from 1e-5 to 1e-1 by 1e-3: 0 {rates[0.0]} times")
assert set(whole) == {0.0, 1.0, 2.0, 3.0} and 1.6 < (whole[1] + whole[2]) / (whole[0] + whole[3]) < 2.4
assert set(stepped) == {0.0, 4.0, 8.0} and stepped[0.0] > DRAWS / 15
assert rates[0.0] > DRAWS / 3
PY
