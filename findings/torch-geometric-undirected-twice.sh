#!/usr/bin/env bash
# torch_geometric 2.8.1: ToUndirected doubles the edge weights of a graph that is undirected already, at every call.
#
# One would guess that it leaves such a graph alone, as it leaves its edges. Seen: the reverse of every edge is added and the doubles are merged by "add",
# so that weights are twice what they were, four times after a second call, and eight times after a third. In a data set with graphs of both
# kinds those that hold both directions come out with twice the weight of the others; a graph with the one edge 0-1 and weight 1 in both directions
# has weight 2 in each, where the graph that lists it once has 1. reduce="mean" gives 1 for both.
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
from torch_geometric.transforms import ToUndirected

print("torch", torch.__version__, "torch_geometric", torch_geometric.__version__)
graphs = {
    "one direction": Data(edge_index=torch.tensor([[0], [1]]), edge_weight=torch.ones(1), num_nodes=2),
    "both directions": Data(edge_index=torch.tensor([[0, 1], [1, 0]]), edge_weight=torch.ones(2), num_nodes=2),
}
weights = {}
for name, graph in graphs.items():
    mean = ToUndirected(reduce="mean")(graph.clone())
    weights[name] = []
    was = graph.is_undirected()
    for _ in range(3):
        graph = ToUndirected()(graph)
        weights[name].append(graph.edge_weight.tolist())
    print(f"{name}, undirected: {was}: weights after one, two and three calls {weights[name]}, by the mean {mean.edge_weight.tolist()}")
    assert graph.is_undirected() and graph.edge_index.tolist() == [[0, 1], [1, 0]] and mean.edge_weight.tolist() == [1, 1]
assert weights == {"one direction": [[1, 1], [2, 2], [4, 4]], "both directions": [[2, 2], [4, 4], [8, 8]]}
PY
