"""Set weight decay 30 times too high: AdamW's weights collapse; a Barostat notices and lowers the decay.

Run it: python examples/weight_decay_rescued.py [--steps 500] [--seed 0] [--times 30]
"""

import argparse
import textwrap

import torch
from small_task import small_gpt, train, validation_loss

from thermoopt import ThermoAdamW
from thermoopt.controllers import Barostat


def matrix_norms(model: torch.nn.Module) -> torch.Tensor:
    """Return the norms of all weight matrices."""
    return torch.stack([p.detach().norm() for p in model.parameters() if p.ndim >= 2])


def main() -> None:
    """Train with the usual decay, with far too much, and with far too much under a Barostat."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and batches")
    parser.add_argument("--times", type=float, default=30.0, help="factor by which decay is too high")
    args = parser.parse_args()
    usual, high = 0.1, 0.1 * args.times

    start = matrix_norms(small_gpt(args.seed))
    print(f"{'':24} {'decay given':>12} {'at the end':>11} {'smallest norm':>14} {'validation loss':>16}")

    def report(name: str, model: torch.nn.Module, given: float, end: float) -> float:
        smallest = (matrix_norms(model) / start).min().item()  # of all matrices, 1 at the start
        loss = validation_loss(model)
        print(f"{name:24} {given:12.2f} {end:11.3f} {smallest:14.2f} {loss:16.3f}", flush=True)
        return loss

    model = small_gpt(args.seed)
    train(model, torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=usual), args.steps, args.seed)
    good = report("AdamW", model, usual, usual)

    model = small_gpt(args.seed)
    train(model, torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=high), args.steps, args.seed)
    collapsed = report("AdamW", model, high, high)

    model = small_gpt(args.seed)
    barostat = Barostat()
    optimizer = ThermoAdamW(model.named_parameters(), lr=1e-3, weight_decay=high, controller=barostat)
    train(model, optimizer, args.steps, args.seed)
    end = optimizer.reading.total.wd_eff if optimizer.reading else high
    rescued = report("ThermoAdamW, Barostat", model, high, end)

    print(f"\nThe Barostat's actions: {len(barostat.log)}")
    for action in barostat.log:
        print(f"step {action.step}: decay {action.old * high:.3g} -> {action.new * high:.3g}")
        print(textwrap.fill(action.reason, 100, initial_indent="    ", subsequent_indent="    "))

    cost = collapsed - good
    print(f"\nToo much decay costs AdamW {cost:.3f} nats per byte.")
    if cost > 0:
        print(f"The Barostat wins back {(collapsed - rescued) / cost:.0%} of that.")


if __name__ == "__main__":
    main()
