#!/usr/bin/env bash
# pytorch-ignite 0.5.5: EarlyStopping never stops a run whose score is NaN, and Checkpoint keeps a NaN as the best for good.
#
# One would guess that NaN is not better than a number. Seen: EarlyStopping counts an epoch as bad if score <= best, which
# is false of NaN; so NaN becomes the best score and puts the counter back, at every epoch after it, and a run that
# has diverged trains to its last epoch, where one that stands still is stopped by patience. Checkpoint(n_saved=1) replaces its file
# if the new score is greater, which no number is of NaN: when the first score is NaN (a correlation of constant
# predictions, say) the untrained weights are what is kept.
#
# Exits non-zero if ignite does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" pytorch-ignite==0.5.5 packaging==26.3
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import logging
import os
import tempfile

import ignite
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, EarlyStopping

logging.disable(logging.INFO)
nan = float("nan")


def epochs(scores):
    trainer, evaluator = Engine(lambda *_: None), Engine(lambda *_: None)
    done = []
    stopper = EarlyStopping(2, lambda _: scores[min(len(done), len(scores) - 1)], trainer)
    evaluator.add_event_handler(Events.COMPLETED, stopper)

    @trainer.on(Events.EPOCH_COMPLETED)
    def evaluate(_):
        evaluator.run([0])
        done.append(1)

    trainer.run([0], max_epochs=50)
    return len(done)


def kept(scores):
    trainer, model, done = Engine(lambda *_: None), torch.nn.Linear(1, 1), []
    with tempfile.TemporaryDirectory() as folder:
        save = Checkpoint(
            {"model": model},
            folder,
            score_function=lambda _: scores[len(done)],
            score_name="score",
            n_saved=1,
            global_step_transform=lambda *_: len(done),
        )

        @trainer.on(Events.EPOCH_COMPLETED)
        def write(engine):
            save(engine)
            done.append(1)

        trainer.run([0], max_epochs=len(scores))
        return os.listdir(folder)


print("ignite", ignite.__version__)
stands, diverged = epochs([0.1, 0.2]), epochs([0.1, 0.2, nan])
print(f"patience 2, 50 epochs: a score that stands stops after {stands}, one that turns NaN after {diverged}")
files = kept([0.1, 0.5, 0.9]), kept([nan, 0.1, 0.5, 0.9])
print("scores 0.1, 0.5, 0.9:", files[0], "the same after a NaN:", files[1])
assert stands < 6 and diverged == 50 and files == (["model_2_score=0.9000.pt"], ["model_0_score=nan.pt"])
PY
