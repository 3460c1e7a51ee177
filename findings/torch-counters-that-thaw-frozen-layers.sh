#!/usr/bin/env bash
# torchinfo 1.8.0, thop 0.1.1, ptflops 0.7.5, tensorboard with torch 2.13.0: a summary or a FLOP count in mid-run thaws frozen batch norm.
#
# Batch norm is frozen by eval() on its layers alone; the model stays in train(). One would guess that whatever counts parameters or draws the
# graph leaves that as it is. Seen: they note the mode of the whole model, call eval() and then train(): from there on every
# frozen layer normalises by the batch and its running statistics move. torchinfo.summary with an input size, thop.profile
# and SummaryWriter.add_graph do so, and ptflops leaves the whole model in eval(), without dropout. thop also leaves buffers, "total_ops" and
# "total_params", in layers without parameters: the next checkpoint does not load into a fresh model.
#
# Exits non-zero if one of them does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch; assert torch.__version__.split("+")[0] == "2.13.0"' 2>/dev/null \
  || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" torchinfo==1.8.0 thop==0.1.1.post2209072238 ptflops==0.7.5
"$python" -m pip install --quiet --target "$tmp" tensorboard==2.21.0
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import tempfile

import ptflops
import thop
import torch
import torchinfo
from torch import nn
from torch.utils.tensorboard import SummaryWriter

torch.set_num_threads(1)
images = torch.randn(2, 3, 8, 8)


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 2))


def graph(model):
    with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        writer.add_graph(model, images)


print("torchinfo", torchinfo.__version__, "thop", thop.__version__, "ptflops 0.7.5, torch", torch.__version__)
counters = {
    "nothing": lambda model: None,
    "torchinfo.summary": lambda model: torchinfo.summary(model, input_size=(2, 3, 8, 8), verbose=0),
    "thop.profile": lambda model: thop.profile(model, inputs=(images,), verbose=False),
    "SummaryWriter.add_graph": graph,
    "ptflops": lambda model: ptflops.get_model_complexity_info(
        model, (3, 8, 8), print_per_layer_stat=False, verbose=False, backend="pytorch"
    ),
}
seen = {}
for name, count in counters.items():
    model = network().train()
    model[1].eval()
    count(model)
    statistics = model[1].running_mean.clone()
    model(torch.randn(8, 3, 8, 8))
    moved = not torch.equal(statistics, model[1].running_mean)
    extra = sorted(set(model.state_dict()) - set(network().state_dict()))
    seen[name] = (model.training, moved, len(extra))
    print(f"{name}: model in train() {model.training}, frozen batch norm moves {moved}, new in its state_dict {extra}")
assert seen["nothing"] == (True, False, 0) and seen["ptflops"] == (False, False, 0)
assert seen["torchinfo.summary"] == seen["SummaryWriter.add_graph"] == (True, True, 0)
assert seen["thop.profile"][:2] == (True, True) and seen["thop.profile"][2] > 0
PY
