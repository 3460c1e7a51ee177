"""Measure TRL's SFTTrainer with LoRA: which adapters drift, and which are in equilibrium.

Run it: python examples/trl_lora.py [--steps 60] [--seed 0] [--lr 2e-3] [--out runs/trl]
"""

# A tiny Llama with random weights learns to add from generated sentences; nothing is downloaded.

import argparse
import random
import sys
from pathlib import Path

try:
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer
except ImportError as error:
    sys.exit(f"This example needs {error.name}, which is not installed: pip install trl peft")

import transformers
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from thermoopt.integrations.huggingface import ThermoCallback, thermo_optimizer


def load_data(seed: int, rows: int = 512) -> Dataset:
    """Sentences that add two numbers."""
    draw = random.Random(seed)
    pairs = [(draw.randrange(50), draw.randrange(50)) for _ in range(rows)]
    return Dataset.from_dict({"text": [f"{a} plus {b} is {a + b}." for a, b in pairs]})


def byte_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    own = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    own.pre_tokenizer, own.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=own, eos_token="</s>", pad_token="<pad>")


def main() -> None:
    """Fine-tune the adapters, and say what the run was like."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--out", type=Path, default=Path("runs/trl"))
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.set_seed(options.seed)

    tokenizer = byte_tokenizer()
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    args = SFTConfig(
        output_dir=str(options.out),
        max_steps=options.steps,
        per_device_train_batch_size=8,
        learning_rate=options.lr,
        max_length=32,
        logging_steps=5,
        save_strategy="no",
        report_to=[],
        seed=options.seed,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    watch = ThermoCallback(log_every=1)
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=load_data(options.seed),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=8, target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM"),
        callbacks=[watch],
        optimizer_cls_and_kwargs=thermo_optimizer(args),  # the bits of Trainer's AdamW, and the account
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    reading = trainer.optimizer.optimizer.reading
    print(f"{'adapter':75} {'r':>6} {'turn per step':>13}")
    for name, layer in reading.layers.items():
        print(f"{name:75} {layer.r:6.2f} {layer.angular_step:13.1e}")
    print(f"\nLoss {losses[0]:.3f} -> {losses[-1]:.3f} in {reading.step} steps. {watch.report.summary}")
    print(f"Pictures, tables and the diagnosis: {options.out}/thermo")


if __name__ == "__main__":
    main()
