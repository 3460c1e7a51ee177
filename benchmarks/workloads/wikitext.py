"""Causal language models of GPT-2's and Pythia's shape on WikiText-103, for a GPU and the internet.

Data come through ``datasets``, models from ``transformers``' configurations, with fresh weights; pieces are
learned from the training split, so that nothing but the data is downloaded. The data are
``Salesforce/wikitext`` on the Hub, or what ``THERMOOPT_WIKITEXT`` names: another repository, or a folder of
the same format (a clone of that repository: ``README.md`` that lists the configurations, and
``wikitext-103-raw-v1/{train,validation,test}-*.parquet``).

References:
    Merity et al., "Pointer sentinel mixture models", 2016 (WikiText-103); Radford et al., 2019 (GPT-2);
    Biderman et al., "Pythia: a suite for analyzing large language models", 2023.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thermoopt.benchmarks.workloads.pieces import encode, piece_lengths, train_tokenizer
from thermoopt.benchmarks.workloads.task import Task, Workload, data_hash, require
from thermoopt.demo import batches, windows

__all__ = [
    "CONFIGURATION",
    "SHAPES",
    "SOURCE",
    "VARIABLE",
    "WIKITEXT",
    "WIKITEXT_PYTHIA",
    "Shape",
    "wikitext",
]

SOURCE = "Salesforce/wikitext"
CONFIGURATION = "wikitext-103-raw-v1"
VARIABLE = "THERMOOPT_WIKITEXT"

LEARNED_FROM = 100_000  # first lines of the training split that pieces are learned from, of 1.8 million
ENCODED_AT_ONCE = 10_000  # lines, a few MB of text


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and of its batches.

    Attributes:
        kind: ``model_type`` of transformers.
        sizes: arguments of that configuration but vocabulary and dropout.
        pieces: size of the vocabulary.
        batch, context: windows per batch, pieces per window.
        judged: validation pieces for evaluation.
        horizons: optimizer steps of the short and of the long run.
    """

    kind: str
    sizes: dict[str, Any] = field(hash=False)
    pieces: int = 32_000
    batch: int = 16
    context: int = 512
    judged: int = 131_072
    horizons: tuple[int, int] = (2000, 8000)


SHAPES = {
    "gpt2": Shape("gpt2", {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024}),
    "pythia-70m": Shape(
        "gpt_neox",
        {
            "num_hidden_layers": 6,
            "num_attention_heads": 8,
            "hidden_size": 512,
            "intermediate_size": 2048,
            "max_position_embeddings": 2048,
        },
    ),
}
"""Layers, heads and widths of the smallest GPT-2 and of Pythia-70m."""

_NO_DROPOUT = {
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "gpt_neox": {"hidden_dropout": 0.0, "attention_dropout": 0.0},
}
"""No epoch is completed, and everything depends only on the seed."""


def _source() -> str:
    return os.environ.get(VARIABLE) or SOURCE


@cache
def _data(source: str, pieces: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pieces of the training and of the validation split, and the bytes each stands for."""
    library = require("datasets", "datasets")
    try:
        train, valid = library.load_dataset(source, CONFIGURATION, split=["train", "validation"])
    except (OSError, ValueError, RuntimeError) as error:  # no such folder, no such split, no network
        raise OSError(
            f"{CONFIGURATION} cannot be loaded from {source!r} ({type(error).__name__}: {error}); "
            f"set {VARIABLE} to a folder of the format of {SOURCE}"
        ) from error
    first = train.select(range(min(LEARNED_FROM, len(train))))
    tokenizer = train_tokenizer((line["text"] for line in first), pieces)

    def encoded(split: Any) -> Tensor:
        return torch.cat([encode(tokenizer, rows["text"]) for rows in split.iter(ENCODED_AT_ONCE)])

    return encoded(train), encoded(valid), piece_lengths(tokenizer)


def _model(shape: Shape) -> nn.Module:
    transformers = require("transformers", "transformers")
    config = transformers.AutoConfig.for_model(
        shape.kind,
        vocab_size=shape.pieces,
        bos_token_id=None,  # no piece begins or ends a text here
        eos_token_id=None,
        use_cache=False,
        **shape.sizes,
        **_NO_DROPOUT[shape.kind],
    )
    return transformers.AutoModelForCausalLM.from_config(config)


def _task(shape: Shape, source: str, seed: int, batch: float) -> Task:
    train, valid, lengths = _data(source, shape.pieces)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _model(shape).to(device).train()
    size = round(shape.batch * batch)
    draws = batches(train, size, shape.context, seed)
    inputs_valid, targets_valid = windows(valid, shape.judged // shape.context, shape.context)
    bytes_judged = lengths[targets_valid].sum().item()

    def nats(inputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
        logits = model(input_ids=inputs.to(device)).logits
        return F.cross_entropy(logits.flatten(0, 1), targets.to(device).flatten(), reduction=reduction)

    @torch.no_grad()
    def evaluate() -> float:
        parts = zip(inputs_valid.split(size), targets_valid.split(size), strict=True)
        return sum(nats(*part, reduction="sum").item() for part in parts) / bytes_judged

    return Task(model, lambda: nats(*next(draws), reduction="mean"), evaluate)


def wikitext(name: str, shape: Shape, source: Callable[[], str] = _source) -> Workload:
    """Make a workload on WikiText-103.

    Args:
        name: what tables call it.
        shape: of the model and its batches.
        source: returns the repository or folder when the data are first needed.

    Returns:
        The workload; it runs on the GPU where there is one, in float32.
    """
    return Workload(
        name,
        f"WikiText-103 with its own splits, {shape.pieces:,} byte-pair tokens learned from the training "
        f"split, {shape.batch} x {shape.context} tokens per batch; trained on nats per token, evaluated in "
        f"nats per byte; {shape.kind}-shaped model with new weights",
        shape.horizons,
        lambda seed, batch=1.0: _task(shape, source(), seed, batch),
        lambda: data_hash(*(part.numpy() for part in _data(source(), shape.pieces)[:2])),
        family="language transformers",
        metric="nats per byte",
        optional="datasets",
    )


WIKITEXT = wikitext("wikitext", SHAPES["gpt2"])
WIKITEXT_PYTHIA = wikitext("wikitext-pythia", SHAPES["pythia-70m"])
