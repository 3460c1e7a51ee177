"""Use ThermoAdamW under Accelerate: one script for one or several processes, with a checkpoint half way.

Run it: python examples/accelerate_ddp.py [--steps 200] [--seed 0] [--out runs/accelerate_ddp]
"""
# on two processes: torchrun --nproc_per_node 2 examples/accelerate_ddp.py

import argparse
from pathlib import Path

from accelerate import Accelerator
from small_task import next_byte_loss, small_gpt, training_batches, validation_loss

from thermoopt import JSONLSink, ThermoAdamW, autotune


def main() -> None:
    """Train half of the run, save, and go on from what was saved."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and batches")
    parser.add_argument("--out", type=Path, default=Path("runs/accelerate_ddp"), help="folder for files")
    args = parser.parse_args()

    accelerator = Accelerator(cpu=True)
    gpt = small_gpt(args.seed)
    # every rank measures the averaged gradients, so all decide alike; one of them writes
    sinks = [JSONLSink(args.out / "run.jsonl")] if accelerator.is_main_process else []
    optimizer = ThermoAdamW(
        gpt.named_parameters(), weight_decay=0.1, controller=autotune(args.steps), sinks=sinks
    )
    model, prepared = accelerator.prepare(gpt, optimizer)  # `optimizer` stays the one to read from

    batches = training_batches(args.seed + accelerator.process_index)
    for step in range(args.steps):
        if step == args.steps // 2:
            accelerator.save_state(str(args.out / "half"))
            accelerator.wait_for_everyone()
            accelerator.load_state(str(args.out / "half"))  # averages, scales and controller with the rest
        inputs, targets = next(batches)
        prepared.zero_grad()
        accelerator.backward(next_byte_loss(model, inputs, targets))
        prepared.step()

    reading, thermo = optimizer.reading, optimizer.param_groups[0]["thermo"]
    if accelerator.is_main_process and reading is not None:
        total = reading.total
        print(f"{accelerator.num_processes} process(es), {optimizer.steps} steps.")
        print(f"{'':6} {'r':>8} {'sigma':>10} {'lr_scale':>10} {'loss':>8}")
        print(f"{'total':6} {total.r:8.2f} {total.sigma:10.2e} {thermo['lr_scale']:10.2e}", end=" ")
        print(f"{validation_loss(gpt):8.3f}")
    model, prepared = accelerator.free_memory(model, prepared)  # DDP goes before its process group
    accelerator.end_training()


if __name__ == "__main__":
    main()
