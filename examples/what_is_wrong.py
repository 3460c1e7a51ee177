"""Diagnose AdamW at a good learning rate, at 100 times that rate, and with far too much decay.

Run it: python examples/what_is_wrong.py [--steps 200] [--seed 0]
"""

import argparse

import torch
from small_task import small_gpt, train

from thermoopt import Observer, diagnose


def main() -> None:
    """Train three times with an Observer beside the optimizer; print what diagnose makes of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and batches")
    args = parser.parse_args()

    for about, lr, decay in (("lr 2e-3", 2e-3, 0.01), ("lr 0.2", 0.2, 0.01), ("decay 20", 2e-3, 20.0)):
        model = small_gpt(args.seed)
        optimizer = torch.optim.AdamW(model.named_parameters(), lr=lr, weight_decay=decay)
        observer = Observer(model, optimizer)  # measures one step in 10; no loss is needed, but it helps
        train(model, optimizer, args.steps, args.seed, report=observer.report_loss)
        report = diagnose(observer)
        print(f"== {about}: {'healthy' if report.healthy else 'not healthy'}")
        print(report, "\n")


if __name__ == "__main__":
    main()
