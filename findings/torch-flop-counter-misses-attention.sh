#!/usr/bin/env bash
# torch 2.13.0: FlopCounterMode counts no attention on CPU, no LSTM, and nothing at all of a transformer in eval().
#
# It sees every operator that runs, so one would guess that matrix products are counted wherever they are. Seen: it has
# formulas for some operators and takes all others for free without a word. scaled_dot_product_attention on CPU is one operator
# without formula: 0, where the same written out by matmul is counted. An LSTM costs 0 (a GRU does not), so do matrix times vector and an
# EmbeddingBag. TransformerEncoder and MultiheadAttention take one fused operator under eval() and no_grad: 0 FLOPs for the
# network. A model's "FLOPs per token" then depends on the mode it was counted in.
#
# Exits non-zero if torch does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch; assert torch.__version__.split("+")[0] == "2.13.0"' 2>/dev/null \
  || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

torch.set_num_threads(1)


def flops(function, *inputs, grad=True):
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(grad):
        function(*inputs)
    return counter.get_total_flops()


print("torch", torch.__version__)
q = torch.randn(1, 2, 16, 8)
fused = flops(scaled_dot_product_attention, q, q, q)
written_out = flops(lambda q, k, v: (q @ k.transpose(-1, -2)).softmax(-1) @ v, q, q, q)
print("attention: fused", fused, "written out", written_out)
x = torch.randn(2, 10, 32)
lstm, gru = (flops(cell(32, 32, batch_first=True), x) for cell in (nn.LSTM, nn.GRU))
print("LSTM", lstm, "GRU", gru)
square, vector = torch.randn(32, 32), torch.randn(32)
print("matrix @ vector", flops(torch.mv, square, vector), "nn.Linear of the same", flops(nn.Linear(32, 32, bias=False), vector))
encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2)
train, evaluated = flops(encoder, x), flops(encoder.eval(), x, grad=False)
print("TransformerEncoder: in train()", train, "in eval() and no_grad", evaluated)
assert fused == 0 < written_out and lstm == 0 < gru and evaluated == 0 < train
assert flops(torch.mv, square, vector) == 0 < flops(nn.Linear(32, 32, bias=False), vector)
PY
