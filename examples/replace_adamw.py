"""Compare AdamW with a cosine at torch's default lr and ThermoAdamW without any learning rate.

Run it: python examples/replace_adamw.py [--steps 600] [--seed 0] [--lr 1e-3]
"""

import argparse
import time

import torch
from small_task import next_byte_loss, small_gpt, training_batches, validation_loss
from torch.optim.lr_scheduler import CosineAnnealingLR

from thermoopt import ThermoAdamW, autotune


def train_adamw(model: torch.nn.Module, steps: int, seed: int, lr: float) -> None:
    """Train the usual way: a learning rate and a schedule."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    scheduler = CosineAnnealingLR(optimizer, T_max=steps)
    batches = training_batches(seed)
    for _ in range(steps):
        inputs, targets = next(batches)
        optimizer.zero_grad()
        next_byte_loss(model, inputs, targets).backward()
        optimizer.step()
        scheduler.step()


def train_autotuned(model: torch.nn.Module, steps: int, seed: int) -> ThermoAdamW:
    """Train without a learning rate: the length of the run is all that is told."""
    controller = autotune(total_steps=steps)
    optimizer = ThermoAdamW(model.named_parameters(), controller=controller)
    batches = training_batches(seed)
    for _ in range(steps):
        inputs, targets = next(batches)
        optimizer.zero_grad()
        next_byte_loss(model, inputs, targets).backward()
        optimizer.step()
    return optimizer


def main() -> None:
    """Train both from the same weights on the same batches, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and batches")
    parser.add_argument("--lr", type=float, default=1e-3, help="lr of AdamW; 1e-3 is torch's default")
    args = parser.parse_args()

    plain, auto = small_gpt(args.seed), small_gpt(args.seed)
    start = time.perf_counter()
    train_adamw(plain, args.steps, args.seed, args.lr)
    middle = time.perf_counter()
    optimizer = train_autotuned(auto, args.steps, args.seed)
    end = time.perf_counter()

    # mean over all parameters; every layer has its own
    found = optimizer.history.total("lr_eff").max(initial=0.0)
    losses = validation_loss(plain), validation_loss(auto)
    print(f"{'':22} {'lr given':>9} {'largest lr':>11} {'validation loss':>16} {'seconds':>8}")
    print(f"{'AdamW, cosine':22} {args.lr:9g} {args.lr:11.2e} {losses[0]:16.3f} {middle - start:8.1f}")
    print(f"{'ThermoAdamW, autotune':22} {'none':>9} {found:11.2e} {losses[1]:16.3f} {end - middle:8.1f}")

    gain = losses[0] - losses[1]
    verdict = "better" if gain > 0 else "worse"
    print(f"\nAutotuned is {abs(gain):.3f} nats per byte {verdict} than AdamW at lr {args.lr:g}.")
    print("One seed and one lr say little: --seed and --lr try others. A well tuned lr may be better.")


if __name__ == "__main__":
    main()
