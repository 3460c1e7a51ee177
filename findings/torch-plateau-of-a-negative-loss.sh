#!/usr/bin/env bash
# torch 2.13.0: ReduceLROnPlateau never lowers the learning rate of a loss that is negative.
#
# Its default threshold is relative: better means below best * (1 - 1e-4). Below zero that product lies above best, so a
# loss that stands still is an improvement at every epoch, and so is one that climbs slowly, which then becomes the best.
# One would guess that a plateau is one wherever zero lies: a log-likelihood, an ELBO or the loss of a flow is negative
# in its better half. Seen over 200 epochs: at 100 the lr goes to its floor, at -100 it stays; mode="max" fails likewise.
# threshold_mode="abs" does what was meant.
#
# Exits non-zero if torch does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch; assert torch.__version__.split("+")[0] == "2.13.0"' 2>/dev/null \
  || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import torch


def final(loss, **options):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=10, **options)
    for epoch in range(200):
        optimizer.step()
        scheduler.step(loss(epoch))
    return optimizer.param_groups[0]["lr"], scheduler.best


print("torch", torch.__version__)
cases = {
    "stands at 100": final(lambda _: 100.0),
    "stands at -100": final(lambda _: -100.0),
    "climbs from -100 to -99": final(lambda epoch: -100.0 + 0.005 * epoch),
    'log-likelihood stands at -100, mode="max"': final(lambda _: -100.0, mode="max"),
    'stands at -100, threshold_mode="abs"': final(lambda _: -100.0, threshold_mode="abs"),
}
for name, (lr, best) in cases.items():
    print(f"{name}: lr 0.1 ends at {lr:.0e}, best {best:.2f}")
lowered = [lr < 1e-6 for lr, _ in cases.values()]
assert lowered == [True, False, False, False, True], cases
PY
