#!/usr/bin/env bash
# torchdiffeq 0.2.5: odeint_adjoint gives no gradient to what the function holds but does not own, and says nothing.
#
# A conditional neural ODE keeps its condition as an attribute: func.context = encoder(x). With odeint all is
# trained, and `from torchdiffeq import odeint_adjoint as odeint` is the readme's way to less memory. Seen: it differentiates by
# the parameters of func alone; the context counts as a constant. The encoder's gradient is None where that is its only use; where the
# encoder is used elsewhere too, as for the initial state, it is a part of the true one, and the run trains on it. With the
# context in the state (as one more component, whose derivative is 0) it is right.
#
# Exits non-zero if torchdiffeq does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" torchdiffeq==0.2.5 scipy==1.17.1 numpy==2.4.6
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import torch
from torchdiffeq import odeint, odeint_adjoint

torch.set_num_threads(1)


class Conditional(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, t, y):
        return torch.tanh(self.layer(torch.cat([y, self.context], 1)))


class InTheState(Conditional):
    def forward(self, t, state):
        self.context = state[1]
        return super().forward(t, state[0]), torch.zeros_like(state[1])


def gradients(solve, kind=Conditional, start=False):
    torch.manual_seed(0)
    encoder, x = torch.nn.Linear(3, 2), torch.randn(16, 3)
    func, context = kind(), encoder(x)
    y0 = context if start else torch.zeros(16, 2)
    if kind is Conditional:
        func.context = context
        end = solve(func, y0, torch.tensor([0.0, 1.0]), rtol=1e-6, atol=1e-6)[-1]
    else:
        end = solve(func, (y0, context), torch.tensor([0.0, 1.0]), rtol=1e-6, atol=1e-6)[0][-1]
    (end - 1).square().mean().backward()
    return encoder.weight.grad, func.layer.weight.grad


print("torchdiffeq 0.2.5, torch", torch.__version__)
for start in (False, True):
    (true, own), (got, own_got), (in_state, _) = (
        gradients(odeint, start=start), gradients(odeint_adjoint, start=start), gradients(odeint_adjoint, InTheState, start)
    )
    print("encoder also makes the initial state:" if start else "encoder makes the context:")
    print("  odeint        ", true[0].tolist())
    print("  odeint_adjoint", None if got is None else got[0].tolist())
    print("  as a state    ", in_state[0].tolist())
    assert torch.allclose(own, own_got, atol=1e-4) and torch.allclose(true, in_state, atol=1e-4)
    assert got is None if not start else (got - true).norm() > 0.1 * true.norm()
PY
