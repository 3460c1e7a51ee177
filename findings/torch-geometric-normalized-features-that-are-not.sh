#!/usr/bin/env bash
# torch_geometric 2.8.1: NormalizeFeatures leaves rows whose sum is below 1 as they are, and moves all by the smallest number of the graph.
#
# It says that it normalises rows to sum up to one. One would guess that scaling the features changes nothing, and that a node's features depend on
# its own row. Seen: the smallest entry of the whole graph is taken off first, then rows are divided by their sum or by 1, whichever is greater.
# Features of 0.1 times the size come out as they went in, with sums from 0.1 to 0.23, and one node with a negative entry changes the rows of all others:
# of [1, 0, 0, 0] remains [0.4, 0.2, 0.2, 0.2] beside an entry of -1.
#
# Exits non-zero if it does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-compile --no-deps --target "$tmp" torch-geometric==2.8.1 xxhash==4.1.0 tqdm==4.70.1 psutil==7.2.2 requests==2.34.2 certifi idna urllib3
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import torch
import torch_geometric
from torch_geometric.data import Data
from torch_geometric.transforms import NormalizeFeatures

print("torch", torch.__version__, "torch_geometric", torch_geometric.__version__)
torch.manual_seed(0)
x = torch.rand(5, 4)
x[0, 0] = 0.0


def normalized(x):
    return NormalizeFeatures()(Data(x=x.clone())).x


for scale in (10.0, 0.1):
    rows = normalized(scale * x)
    print(f"features times {scale}: rows add up to {[round(v, 2) for v in rows.sum(1).tolist()]}")
    assert torch.allclose(rows.sum(1), torch.ones(5)) if scale == 10 else torch.equal(rows, scale * x) and rows.sum(1).max() < 0.4
node = torch.tensor([1.0, 0.0, 0.0, 0.0])
for other in (0.0, -1.0):
    row = normalized(torch.stack([node, torch.tensor([1.0, 1.0, 1.0, other])]))[0]
    print(f"{node.tolist()} in a graph whose smallest entry is {other}: {[round(v, 2) for v in row.tolist()]}")
    assert torch.allclose(row, node if other == 0 else torch.tensor([0.4, 0.2, 0.2, 0.2]))
PY
