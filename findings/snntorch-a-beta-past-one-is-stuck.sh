#!/usr/bin/env bash
# snntorch 1.0.0: a learned decay rate that a step carries past 1 never learns again.
#
# Leaky(learn_beta=True) trains beta, which is documented as clipped to 0..1: one would guess that it comes back when the
# data ask for less. Seen: it is clipped where it is used, and clamp has no gradient outside. A beta of 1.0001, one step of
# Adam too far, has a gradient of exactly 0 from then on: it stays where momentum left it, a neuron that forgets nothing, and nothing
# is said. Synaptic's alpha is treated alike. Clamping the parameter itself after each step helps.
#
# Exits non-zero if snntorch does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" snntorch==1.0.0 numpy==2.4.6
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import snntorch
import torch

torch.set_num_threads(1)


def potentials(neuron, inputs):
    potential, seen = neuron.init_leaky(), []
    for x in inputs:
        _, potential = neuron(x, potential)
        seen.append(potential)
    return torch.stack(seen)


def learned(stages, clamp=False):
    """Train beta on what neurons of some betas do, one after the other; return beta after each."""
    neuron = snntorch.Leaky(beta=0.9, learn_beta=True, threshold=1e9)
    optimizer = torch.optim.Adam([neuron.beta], lr=0.02)
    after = []
    for beta, steps in stages:
        teacher = snntorch.Leaky(beta=beta, threshold=1e9)
        for step in range(steps):
            inputs = torch.rand(10, 32, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(potentials(neuron, inputs), potentials(teacher, inputs))
            loss.backward()
            optimizer.step()
            if clamp:
                neuron.beta.data.clamp_(0, 1)
        after.append(round(float(neuron.beta), 3))
    return after, float(neuron.beta.grad), float(loss)


print("snntorch", snntorch.__version__, "torch", torch.__version__)
alone, _, _ = learned([(0.5, 400)])
stuck, gradient, loss = learned([(1.0, 40), (0.5, 400)])
clamped, _, _ = learned([(1.0, 40), (0.5, 400)], clamp=True)
print("taught 0.5 from 0.9:", alone)
print(f"taught 1, then 0.5: {stuck}, gradient {gradient}, loss {loss:.2f}")
print("the same, the parameter clamped after each step:", clamped)
assert abs(alone[-1] - 0.5) < 0.02 and abs(clamped[-1] - 0.5) < 0.02
assert stuck[0] > 1 and stuck[1] > 1 and gradient == 0 and loss > 1
PY
