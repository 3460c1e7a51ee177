#!/usr/bin/env bash
# optuna 5.0.0: a trial whose loss has become NaN is pruned by MedianPruner, and never by PatientPruner(MedianPruner()).
#
# PatientPruner prunes as the pruner inside it once a trial has not improved for some reports. One would guess that NaN is no
# improvement. Seen: it compares the least of the last reports to the least before, by functions that skip NaN; when all of
# the last are NaN, the comparison is false, and so is should_prune, to the end of training. A loss that climbs is
# pruned. PatientPruner(None), early stopping, goes on likewise. All the hours of a sweep whose runs diverge are paid.
#
# Exits non-zero if optuna does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}

"$python" -m pip install --quiet --target "$tmp" optuna==5.0.0
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import optuna

optuna.logging.set_verbosity(optuna.logging.ERROR)
print("optuna", optuna.__version__)
nan = float("nan")


def pruned_at(pruner, losses):
    study = optuna.create_study(pruner=pruner)
    for offset in range(6):
        trial = study.ask()
        for step in range(20):
            trial.report(1.0 + 0.01 * offset - 0.01 * step, step)
        study.tell(trial, 0.8 + 0.01 * offset)
    trial = study.ask()
    for step in range(20):
        trial.report(losses(step), step)
        if trial.should_prune():
            return step
    return None


seen = {}
for name, build in (
    ("MedianPruner()", lambda: optuna.pruners.MedianPruner()),
    ("PatientPruner(MedianPruner(), 2)", lambda: optuna.pruners.PatientPruner(optuna.pruners.MedianPruner(), 2)),
    ("PatientPruner(None, 2)", lambda: optuna.pruners.PatientPruner(None, 2)),
):
    seen[name] = (
        pruned_at(build(), lambda step: 1.0 if step < 3 else 9.0),
        pruned_at(build(), lambda step: 1.0 if step < 3 else nan),
    )
    print("{}: a loss that jumps to 9 at step 3 is pruned at {}, one that turns NaN there at {}".format(name, *seen[name]))
assert all(climbs is not None for climbs, _ in seen.values())
assert [turns is None for _, turns in seen.values()] == [False, True, True], seen
PY
