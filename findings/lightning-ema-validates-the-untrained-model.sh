#!/usr/bin/env bash
# lightning 2.6.6: until EMAWeightAveraging starts, the untrained network is validated, and is what a short run ends with.
#
# Averages are started late, to leave the first steps out. One would guess that until then validation sees the weights in training.
# Seen: with update_starting_at_step=100 it sees those of before the first step at every validation up to there, a loss that does not move
# (what EarlyStopping and ModelCheckpoint go by), and a run that ends before step 100 leaves them in the model: all training is lost,
# without a word. update_starting_at_epoch does the same. Upstream: Lightning-AI/pytorch-lightning issue 21724 (the validation).
#
# Exits non-zero if it does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --target "$tmp" --no-deps \
  lightning==2.6.6 pytorch-lightning==2.6.6 torchmetrics==1.9.0 lightning-utilities==0.15.3 fsspec==2026.9.0 \
  PyYAML==6.0.4 packaging==26.3 tqdm==4.70.1 typing_extensions==4.16.0
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import logging

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
x = torch.randn(160, 1, generator=torch.Generator().manual_seed(0))
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, 3 * x + 1), batch_size=16)


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.linear, self.losses = torch.nn.Linear(1, 1), []
        torch.nn.init.zeros_(self.linear.weight)

    def loss(self, batch):
        return (self.linear(batch[0]) - batch[1]).square().mean()

    def training_step(self, batch):
        return self.loss(batch)

    def validation_step(self, batch, index):
        if index == 0:
            self.losses.append(round(float(self.loss(batch)), 4))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(epochs, **options):
    torch.manual_seed(0)
    net = Net()
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    callbacks = [EMAWeightAveraging(decay=0.9, **options)]
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", num_sanity_val_steps=0, callbacks=callbacks, **quiet)
    trainer.fit(net, loader, loader)
    return net.losses, float(net.linear.weight)


print("torch", torch.__version__, "lightning", pl.__version__)
at_once, late, never = train(8), train(8, update_starting_at_step=40), train(8, update_starting_at_step=100)
for name, (losses, weight) in (("at once", at_once), ("after 40 steps", late), ("after 100 steps", never)):
    print(f"averages {name}: validation {losses}, weight in the end {weight:.3f} (right: 3)")
assert at_once[0][3] < 0.5 * at_once[0][0] and abs(at_once[1] - 3) < 0.1 and abs(late[1] - 3) < 0.1
assert len(set(late[0][:4])) == 1 and late[0][0] > 1 > late[0][4]
assert len(set(never[0])) == 1 and never[1] == 0
PY
