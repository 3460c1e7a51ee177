#!/usr/bin/env bash
# torchsde 0.2.6: the noise of sdeint follows numpy's seed, not torch's.
#
# One would guess that torch.manual_seed fixes the paths of a library that is all torch. Seen: the Brownian motion that sdeint makes for itself is seeded
# by numpy.random. After the same torch.manual_seed two solutions differ, and after the same numpy.random.seed they are one, whatever torch's seed is:
# a script that seeds torch only is not reproducible, and one that seeds numpy with each epoch, to shuffle, trains on the same noise in all of them.
# Its documentation says of entropy=None that it is random.
#
# Exits non-zero if it does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-compile --no-deps --target "$tmp" torchsde==0.2.6 trampoline==0.1.2 scipy==1.17.1
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import numpy as np
import torch
import torchsde


class Noise(torch.nn.Module):
    noise_type, sde_type = "diagonal", "ito"

    def f(self, t, y):
        return -y

    def g(self, t, y):
        return torch.ones_like(y)


def ends(torch_seed, numpy_seed):
    torch.manual_seed(torch_seed)
    np.random.seed(numpy_seed)
    return torchsde.sdeint(Noise(), torch.zeros(3, 1), torch.tensor([0.0, 1.0]), dt=0.1)[-1].flatten()


print("torch", torch.__version__, "torchsde", torchsde.__version__)
seen = {seeds: ends(*seeds) for seeds in ((0, 0), (0, 1), (1, 0))}
for seeds, values in seen.items():
    print("seed of torch {}, of numpy {}: {}".format(*seeds, [round(v, 3) for v in values.tolist()]))
assert not torch.equal(seen[0, 0], seen[0, 1]) and torch.equal(seen[0, 0], seen[1, 0])
PY
