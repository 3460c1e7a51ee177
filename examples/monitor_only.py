"""Measure what every layer's step consists of, while ThermoAdamW takes AdamW's step bit for bit.

Run it: python examples/monitor_only.py [--steps 300] [--seed 0] [--out runs/monitor_only]
"""

import argparse
from pathlib import Path

import torch
from small_task import small_gpt, train, validation_loss

from thermoopt import Quantities, ThermoAdamW


def row(name: str, q: Quantities) -> str:
    """Lay out what one layer does."""
    return f"{name:26} {q.r:6.2f} {q.sigma:10.2e} {q.d_eS:10.2e} {q.d_iS:10.2e} {q.wd_balance:8.3f}"


def main() -> None:
    """Train with ThermoAdamW and with AdamW; print the account, export it, compare the weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and batches")
    parser.add_argument("--out", type=Path, default=Path("runs/monitor_only"), help="folder for the history")
    args = parser.parse_args()

    measured, plain = small_gpt(args.seed), small_gpt(args.seed)
    # backend="torch" steps as AdamW does by default on CPU; the native kernel has the bits of fused=True
    optimizer = ThermoAdamW(measured.named_parameters(), lr=1e-3, weight_decay=0.1, backend="torch")
    train(measured, optimizer, args.steps, args.seed)

    reading = optimizer.reading
    if reading is None:
        raise SystemExit("No step was measured: this backend measures one in 10, so train for 10 or more.")
    print(
        f"At step {reading.step}, averaged over the last 50. sigma, work and heat in nats per byte and step."
    )
    print(f"{'layer':26} {'r':>6} {'sigma':>10} {'work':>10} {'heat':>10} {'R_wd':>8}")
    for name, layer in reading.layers.items():
        print(row(name, layer))
    print(row("total", reading.total))
    print("r: 1 in equilibrium, above it coherent drift. R_wd: 1 if decay balances growth, above it")
    print("the norm shrinks. sigma is work plus heat, without the small part of heat that is due to decay.\n")

    args.out.mkdir(parents=True, exist_ok=True)
    optimizer.history.export_jsonl(args.out / "history.jsonl")  # with layers
    optimizer.history.export_csv(args.out / "history.csv")  # total and groups
    print(f"{len(optimizer.history)} readings written to {args.out}/history.jsonl and history.csv")

    train(plain, torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.1), args.steps, args.seed)
    for a, b in zip(measured.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
    print(f"Validation loss {validation_loss(measured):.3f}. All weights are bit-identical to AdamW's.")


if __name__ == "__main__":
    main()
