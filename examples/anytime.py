"""Train without a known end: hold the rate, cool whenever a good model is needed, and continue hot.

Run it: python examples/anytime.py [--steps 300] [--seed 0] [--out runs/anytime]
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from small_task import next_byte_loss, small_gpt, training_batches, validation_loss
from torch import Tensor

from thermoopt import ThermoAdamW, autotune


def build(seed: int) -> tuple[torch.nn.Module, ThermoAdamW]:
    """Make model and optimizer; neither is told a learning rate or the length of the run."""
    model = small_gpt(seed)
    return model, ThermoAdamW(model.named_parameters(), controller=autotune(total_steps=None))


def train(
    model: torch.nn.Module, optimizer: ThermoAdamW, batches: Iterator[tuple[Tensor, Tensor]], steps: int
) -> None:
    """Take so many steps more."""
    for _ in range(steps):
        inputs, targets = next(batches)
        optimizer.zero_grad()
        next_byte_loss(model, inputs, targets).backward()
        optimizer.step()


def main() -> None:
    """Train hot, save, quench; then go on from the checkpoint, still hot, and quench later."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300, help="steps before the quench, and again after it")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and batches")
    parser.add_argument("--out", type=Path, default=Path("runs/anytime"), help="folder for the checkpoint")
    args = parser.parse_args()
    quench = max(1, args.steps // 4)
    batches = training_batches(args.seed)

    print(f"{'':28} {'step':>5} {'lr_eff':>9} {'validation loss':>16}")

    def report(name: str, step: int) -> float:
        loss = validation_loss(model)
        lr = optimizer.reading.total.lr_eff if optimizer.reading else float("nan")
        print(f"{name:28} {step:5} {lr:9.1e} {loss:16.3f}", flush=True)
        return loss

    model, optimizer = build(args.seed)
    train(model, optimizer, batches, args.steps)
    hot = report("held", args.steps)

    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint = args.out / "before_quench.pt"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, checkpoint)

    optimizer.controller.cool_now(quench)
    train(model, optimizer, batches, quench)
    cold = report("quenched", args.steps + quench)

    # the quenched model is done; the run goes on from before, with the rate the controller had found
    model, optimizer = build(args.seed)
    saved = torch.load(checkpoint, weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    report("back to the checkpoint", args.steps)
    train(model, optimizer, batches, args.steps)
    hot_later = report("held", 2 * args.steps)

    optimizer.controller.cool_now(quench)
    train(model, optimizer, batches, quench)
    cold_later = report("quenched", 2 * args.steps + quench)

    print(f"\nThe quench of {quench} steps lowers the loss by {hot - cold:.3f} nats per byte;")
    print(f"after {args.steps} more steps, by {hot_later - cold_later:.3f}. The checkpoint is {checkpoint}")


if __name__ == "__main__":
    main()
