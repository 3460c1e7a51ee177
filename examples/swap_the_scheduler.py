"""Replace SGD's CosineAnnealingLR by a ThermoScheduler, without and with a controller.

Run it: python examples/swap_the_scheduler.py [--steps 400] [--seed 0] [--lr 0.1]
"""

import argparse
import math
from collections.abc import Callable

import torch
from small_task import next_byte_loss, training_batches, validation_loss
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from thermoopt import ThermoScheduler, autotune
from thermoopt.controllers import Thermostat


class ByteGRU(nn.Module):
    """Embedding, one GRU, head: logits of the next byte."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, 256)

    def forward(self, idx: Tensor) -> Tensor:
        """Turn bytes ``[batch, length]`` into logits ``[batch, length, 256]``."""
        return self.head(self.gru(self.bytes(idx))[0])


def train(
    schedule: Callable[[Optimizer], LRScheduler], steps: int, seed: int, lr: float
) -> tuple[float, float]:
    """Train a new model; return the validation loss and the largest lr that the schedule set."""
    torch.manual_seed(seed)
    model = ByteGRU()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    scheduler = schedule(optimizer)
    batches = training_batches(seed)
    largest = 0.0
    for _ in range(steps):
        inputs, targets = next(batches)
        optimizer.zero_grad()
        next_byte_loss(model, inputs, targets).backward()
        largest = max(largest, optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return validation_loss(model), largest


def main() -> None:
    """Train under five schedules from the same weights on the same batches, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and batches")
    parser.add_argument("--lr", type=float, default=0.1, help="lr of SGD")
    args = parser.parse_args()
    steps = args.steps

    def cosine(sgd: Optimizer) -> LRScheduler:
        return CosineAnnealingLR(sgd, T_max=steps)

    def plain(sgd: Optimizer) -> LRScheduler:  # torch's schedule to the last bit
        return ThermoScheduler(sgd, total_steps=steps, shape="cosine")

    def thermostat(sgd: Optimizer) -> LRScheduler:  # the shape is the scheduler's, the amplitude measured
        controller = Thermostat("diffusion", total_steps=steps)
        return ThermoScheduler(sgd, steps, warmup_steps=steps // 20, shape="cosine", controller=controller)

    def auto(sgd: Optimizer) -> LRScheduler:  # brings warm-up and cooling: the scheduler's shape is constant
        return ThermoScheduler(sgd, steps, shape="constant", controller=autotune(total_steps=steps))

    print(f"{'SGD, momentum 0.9':28} {'lr given':>9} {'largest lr':>11} {'validation loss':>16}")

    def report(name: str, schedule: Callable[[Optimizer], LRScheduler], lr: float) -> float:
        loss, largest = train(schedule, steps, args.seed, lr)
        print(f"{name:28} {lr:9g} {largest:11.3g} {loss:16.3f}", flush=True)
        return loss

    cosines = [report("CosineAnnealingLR", cosine, lr) for lr in (args.lr, 10 * args.lr)]
    report("ThermoScheduler", plain, args.lr)
    report("ThermoScheduler, Thermostat", thermostat, args.lr)
    tuned = report("ThermoScheduler, autotune", auto, args.lr)

    gain = min(filter(math.isfinite, cosines), default=math.inf) - tuned
    verdict = "better" if gain > 0 else "worse"
    print(f"\nAutotuned is {abs(gain):.3f} nats per byte {verdict} than the better of the two cosines.")
    print("One seed says little: --seed and --lr try others. A well tuned lr may be better.")


if __name__ == "__main__":
    main()
