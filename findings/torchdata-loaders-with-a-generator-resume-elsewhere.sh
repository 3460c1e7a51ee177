#!/usr/bin/env bash
# torchdata 0.11.0: a StatefulDataLoader with a generator of its own and without workers resumes into other epochs.
#
# Its state is there for a run to go on as if it had not stopped, and a generator is how one makes shuffling one's own. Seen: the state does not
# hold where the generator stands. What is left of the epoch comes as it should; from the next epoch on all orders are other
# ones than in the run that went on, and of a state that was saved at the end of an epoch already the first. With workers, or without a generator and
# the global random numbers restored, every epoch is right.
#
# Exits non-zero if torchdata does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" torchdata==0.11.0 requests==2.34.2 urllib3==2.8.0 idna==3.20 certifi charset-normalizer==3.5.3
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from torchdata.stateful_dataloader import StatefulDataLoader

EPOCHS = 4


def loader(workers, own):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0) if own else None
    return StatefulDataLoader(list(range(24)), batch_size=4, shuffle=True, generator=generator, num_workers=workers)


def epochs(data, count):
    return [[batch.tolist() for batch in data] for _ in range(count)]


def same(workers, own, batches):
    """Of what is left after so many batches of the second epoch: is each epoch as in the run that went on?"""
    whole = epochs(loader(workers, own), EPOCHS)
    stopped = loader(workers, own)
    epochs(stopped, 1)
    running = iter(stopped)
    for _ in range(batches):
        next(running)
    ended = batches == 6 and list(running) == []
    state, numbers = stopped.state_dict(), torch.get_rng_state()
    resumed = loader(workers, own)
    resumed.load_state_dict(state)
    torch.set_rng_state(numbers)
    left = ([] if ended else [whole[1][batches:]]) + whole[2:]
    return [a == b for a, b in zip(epochs(resumed, len(left)), left)]


print("torchdata", version("torchdata"))
seen = {}
for workers in (0, 2):
    for own in (True, False):
        seen[workers, own] = same(workers, own, 2), same(workers, own, 6)
        print(f"{workers} workers, {'a generator' if own else 'global numbers'}: epochs as they were when resumed in the second", end=" ")
        print(f"{seen[workers, own][0]}, after it {seen[workers, own][1]}")
assert seen.pop((0, True)) == ([True, False, False], [False, False])
assert all(all(inside) and all(after) for inside, after in seen.values())
PY
