#!/usr/bin/env bash
# lightning 2.6.6: a run with BaseFinetuning that is resumed after its layers were unfrozen trains without them.
#
# One would guess that a run resumed from a checkpoint of epoch 3 is the uninterrupted one. Seen: the layers that
# finetune_function() unfroze at epoch 2 are back in the optimizer, with their group and lr, but requires_grad is False
# again (setup() freezes them on every fit, and only the groups are restored): they get no gradient and never move.
# Lightning says nothing. Reported upstream as Lightning-AI/pytorch-lightning issue 21901.
#
# Exits non-zero if lightning does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --target "$tmp" --no-deps \
  lightning==2.6.6 pytorch-lightning==2.6.6 torchmetrics==1.9.0 lightning-utilities==0.15.3 fsspec==2026.9.0 \
  PyYAML==6.0.4 packaging==26.3 tqdm==4.70.1 typing_extensions==4.16.0
PYTHONPATH=$tmp CHECKPOINTS=$tmp/checkpoints "$python" -W ignore - <<'PY'
import logging
import os

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import BaseFinetuning, ModelCheckpoint

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x[:, :1]), batch_size=16)


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = torch.nn.Linear(8, 4), torch.nn.Linear(4, 1)

    def training_step(self, batch, index):
        return (self.head(self.body(batch[0])) - batch[1]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD((p for p in self.parameters() if p.requires_grad), lr=0.1)


class Unfreeze(BaseFinetuning):
    def freeze_before_training(self, module):
        self.freeze(module.body)

    def finetune_function(self, module, epoch, optimizer):
        if epoch == 2:
            self.unfreeze_and_add_param_group(module.body, optimizer, lr=0.1)


def fit(checkpoint=None):
    folder = os.environ["CHECKPOINTS"]
    save = ModelCheckpoint(folder, filename="{epoch}", every_n_epochs=1, save_top_k=-1)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    net, trainer = Net(), pl.Trainer(max_epochs=6, callbacks=[Unfreeze(), save], **quiet)
    trainer.fit(net, loader, ckpt_path=checkpoint and f"{folder}/{checkpoint}")
    groups = [len(group["params"]) for group in trainer.optimizers[0].param_groups]
    print(f"{checkpoint or 'uninterrupted'}: groups of {groups}, body trained: {net.body.weight.requires_grad}")
    return net.body.weight


print("torch", torch.__version__, "lightning", pl.__version__)
whole, resumed = fit(), fit("epoch=3.ckpt")
assert whole.requires_grad and not resumed.requires_grad
assert not torch.allclose(whole, resumed)
PY
