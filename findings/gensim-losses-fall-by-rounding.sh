#!/usr/bin/env bash
# gensim 4.4.0: Word2Vec's training loss is a sum over all epochs that stops growing: its increments fall, and end at 0, where nothing is learned.
#
# get_latest_training_loss is documented to give the current value of the training loss. One would guess the loss of the last batch or epoch. Seen: it is
# the sum over all pairs of all epochs since train() was called, kept in float32, to which each pair's loss is added. The usual way round that, to take the
# difference of two epochs, fails as well: beyond 2**22 or so pairs are rounded off. With a learning rate of 1e-7, where the loss stands, the
# differences fall from 2.6 million to 1.8, rise to 3.6, and are 0 from the eighth epoch on, at a sum of 2**24. It looks like convergence,
# and begins within the second epoch of 600 sentences. Setting model.running_training_loss to 0 after each epoch helps.
#
# Exits non-zero if it does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -m pip install --quiet --no-compile --target "$tmp" gensim==4.4.0 numpy==2.4.6
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import gensim
import numpy as np
from gensim.models import Word2Vec
from gensim.models.callbacks import CallbackAny2Vec


class Losses(CallbackAny2Vec):
    def __init__(self, reset):
        self.kept, self.reset = [], reset

    def on_epoch_end(self, model):
        self.kept.append(float(model.get_latest_training_loss()))
        if self.reset:
            model.running_training_loss = 0.0


print("gensim", gensim.__version__, "numpy", np.__version__)
random = np.random.default_rng(0)
sentences = [[str(word) for word in random.integers(0, 1000, 50)] for _ in range(600)]
seen = {}
options = {"vector_size": 4, "negative": 20, "sg": 1, "workers": 1, "min_count": 1, "seed": 0, "alpha": 1e-7, "min_alpha": 1e-7}
for reset in (True, False):
    losses = Losses(reset)
    Word2Vec(sentences, epochs=12, compute_loss=True, callbacks=[losses], **options)
    seen[reset] = np.array(losses.kept) if reset else np.diff(losses.kept, prepend=0)
    name = "set to 0 after each epoch" if reset else "differences between epochs"
    print(f"{name}, in millions: {[float(f'{loss / 1e6:.2f}') for loss in seen[reset]]}")
print(f"the sum at the end: {losses.kept[-1]:.0f}")
assert np.allclose(seen[True], 2.62e6, rtol=0.02)
assert seen[False][3] < 2e6 and seen[False][4] > 3e6 and (seen[False][7:] == 0).all() and losses.kept[-1] == 2**24
PY
