#!/usr/bin/env bash
# torchopt 0.7.3: a step writes the update, or the negated gradient, over .grad.
#
# Its optimizers are offered under the names and arguments of torch's, and their weights agree with torch's to rounding. One would guess that a step
# leaves gradients as they are. Seen: the chain of transformations works in place on .grad. After a step of SGD or RMSprop .grad is the update,
# -lr times the gradient for plain SGD, and after one of Adagrad or Adadelta something between; with maximize it has the other sign, with
# weight_decay it holds the decay. A gradient norm that is logged after the step is a hundredth of the true one at lr=0.01, and what a loop
# without zero_grad accumulates is of no use. Adam without these options leaves .grad as it was.
#
# Exits non-zero if it does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-compile --no-deps --target "$tmp" torchopt==0.7.3 optree==0.20.0 graphviz==0.21
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import torch
import torchopt

print("torch", torch.__version__, "torchopt", torchopt.__version__)
torch.manual_seed(0)
start = torch.randn(8, 4)
gradients = [torch.randn(8, 4) for _ in range(3)]


def train(library, name, options):
    weight = torch.nn.Parameter(start.clone())
    optimizer = getattr(library, name)([weight], lr=0.01, **options)
    for gradient in gradients:
        weight.grad = gradient.clone()
        before = weight.detach().clone()
        optimizer.step()
    return weight.detach(), weight.grad, weight.detach() - before


cases = [(name, {}) for name in ("Adam", "AdamW", "Adamax", "SGD", "RMSprop", "Adagrad", "Adadelta")]
cases += [("SGD", {"momentum": 0.9}), ("Adam", {"maximize": True}), ("Adam", {"weight_decay": 0.1}), ("AdamW", {"maximize": True})]
kept = []
for name, options in cases:
    ours, gradient, _ = train(torch.optim, name, options)
    assert torch.equal(gradient, gradients[-1])
    weight, gradient, update = train(torchopt, name, options)
    torch.testing.assert_close(weight, ours, rtol=1e-4, atol=1e-5)
    ratio = gradient / gradients[-1]
    if torch.equal(gradient, gradients[-1]):
        kept.append(name)
    print(f"{name} {options or ''}: after the step .grad is {float(ratio.median()):.3g} times the gradient (median)")
    if name == "SGD" and not options:
        torch.testing.assert_close(gradient, -0.01 * gradients[-1])
    if "maximize" in options:
        assert torch.equal(gradient, -gradients[-1])
    if name in ("SGD", "RMSprop") and "maximize" not in options:
        torch.testing.assert_close(gradient, update, rtol=1e-3, atol=1e-6)
assert kept == ["Adam", "AdamW", "Adamax"]
PY
