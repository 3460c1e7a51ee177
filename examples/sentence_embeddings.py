"""Train and measure sentence embeddings with ThermoAdamW in sentence-transformers' own trainer.

Run it: python examples/sentence_embeddings.py [--steps 60] [--seed 0] [--out runs/embeddings]
"""

# A tiny BERT with random weights learns to put sentences about the same thing side by side; the sentences are
# generated, nothing is downloaded.

import argparse
import random
import sys
from pathlib import Path

try:
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
        losses,
    )
    from sentence_transformers import models as parts
except ImportError as error:
    sys.exit(f"This example needs {error.name}, which is not installed: pip install sentence-transformers")

import transformers
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from thermoopt.integrations.huggingface import ThermoCallback, thermo_optimizer

THINGS = "bread rain music iron river garden winter bridge horse paper window letter".split()
SAYINGS = ("they talked about {} all day", "a book on {}", "nothing but {} here", "what we know of {}")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def load_data(seed: int, rows: int = 512) -> Dataset:
    """Pairs of sentences about the same thing."""
    draw = random.Random(seed)
    pairs = [(draw.choice(THINGS), *draw.sample(SAYINGS, 2)) for _ in range(rows)]
    return Dataset.from_dict(
        {"anchor": [a.format(x) for x, a, _ in pairs], "positive": [b.format(x) for x, _, b in pairs]}
    )


def save_bert(folder: Path) -> str:
    """Write a model of 0.1 M random parameters with a tokenizer of the words above."""
    words = sorted({word for saying in SAYINGS for word in saying.split()} | set(THINGS))
    own = Tokenizer(models.WordLevel({w: i for i, w in enumerate((*SPECIAL, *words))}, unk_token="[UNK]"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    own.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(
        zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True)
    )
    transformers.PreTrainedTokenizerFast(tokenizer_object=own, **names).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(SPECIAL) + len(words),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return str(folder)


def main() -> None:
    """Train the embeddings, and say what the run was like."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/embeddings"))
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    transformers.set_seed(options.seed)

    bert = parts.Transformer(save_bert(options.out / "bert"), max_seq_length=16)
    model = SentenceTransformer(modules=[bert, parts.Pooling(64)], device="cpu")
    args = SentenceTransformerTrainingArguments(
        output_dir=str(options.out),
        max_steps=options.steps,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        logging_steps=5,
        save_strategy="no",
        report_to=[],
        seed=options.seed,
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    watch = ThermoCallback(log_every=1)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=args,
        train_dataset=load_data(options.seed),
        loss=losses.MultipleNegativesRankingLoss(model),
        callbacks=[watch],
        optimizer_cls_and_kwargs=thermo_optimizer(args),  # the bits of Trainer's AdamW, and the account
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    found = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    reading = trainer.optimizer.optimizer.reading
    print(f"{'layer':65} {'r':>6} {'turn per step':>13}")
    for name, layer in reading.layers.items():
        print(f"{name:65} {layer.r:6.2f} {layer.angular_step:13.1e}")
    print(f"\nLoss {found[0]:.3f} -> {found[-1]:.3f} in {reading.step} steps. {watch.report.summary}")
    print(f"Pictures, tables and the diagnosis: {options.out}/thermo")


if __name__ == "__main__":
    main()
