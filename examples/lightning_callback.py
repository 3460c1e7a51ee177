"""Train with Lightning and no learning rate: ThermoAdamW sets it, ThermoCallback logs and diagnoses.

Run it: python examples/lightning_callback.py [--steps 300] [--seed 0] [--out runs/lightning_callback]
"""

import argparse
import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from small_task import next_byte_loss, small_gpt, training_batches, validation_loss

from thermoopt import ThermoAdamW, autotune, diagnose, make_param_groups
from thermoopt.integrations.lightning import ThermoCallback


class Batches:
    """What a DataLoader is to Lightning: it can be gone through, as often as one likes."""

    def __init__(self, steps: int, seed: int) -> None:
        self.steps, self.seed = steps, seed

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return islice(training_batches(self.seed), self.steps)

    def __len__(self) -> int:
        return self.steps


class NextByte(LightningModule):
    """The small GPT with an optimizer that needs the length of the run, and no learning rate."""

    def __init__(self, steps: int, seed: int) -> None:
        super().__init__()
        self.gpt, self.steps = small_gpt(seed), steps

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        """Return the loss of one batch."""
        loss = next_byte_loss(self.gpt, *batch)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> ThermoAdamW:
        """Make groups that carry names, which LearningRateMonitor shows."""
        groups = make_param_groups(self, weight_decay=0.1)
        return ThermoAdamW(groups, controller=autotune(total_steps=self.steps))


def main() -> None:
    """Train, print what was logged, and say where the picture and the diagnosis are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and batches")
    parser.add_argument("--out", type=Path, default=Path("runs/lightning_callback"), help="folder for logs")
    args = parser.parse_args()

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its tips and list of devices
    thermo = ThermoCallback(prog_bar=("r", "lr_eff"))
    # LearningRateMonitor shows group["lr"], which a controller leaves alone; thermo/lr_eff is in force
    trainer = Trainer(
        accelerator="cpu",
        max_steps=args.steps,
        default_root_dir=args.out,
        logger=CSVLogger(args.out),
        callbacks=[thermo, LearningRateMonitor("step")],
        log_every_n_steps=10,
        gradient_clip_val=1.0,
    )
    module = NextByte(args.steps, args.seed)
    trainer.fit(module, Batches(args.steps, args.seed))

    for name, value in sorted(trainer.logged_metrics.items()):
        if name.startswith("thermo/"):
            print(f"{name:28} {float(value):10.3g}")
    print(diagnose(thermo.observers[0]).summary)
    print(f"Validation loss {validation_loss(module.gpt):.3f}. Written:")
    print(*thermo.written, sep="\n")


if __name__ == "__main__":
    main()
