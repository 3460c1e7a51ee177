"""Fine-tuning of the lower layers of a pre-trained encoder: in full, by LoRA, and unfreezing layer by layer.

Data, head and judgement are those of ``minilm``; what is left out of the model makes a run take seconds.

References:
    Hu et al., "LoRA: low-rank adaptation of large language models", 2021, equation 3; Howard and Ruder,
    "Universal language model fine-tuning for text classification", 2018, section 3.3 (gradual unfreezing).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thermoopt.benchmarks.workloads.minilm import PACKAGE, Classifier, pretrained, tokens, with_weights
from thermoopt.benchmarks.workloads.paragraphs import PARTS, labelled_paragraphs
from thermoopt.benchmarks.workloads.supervised import shuffled_batches
from thermoopt.benchmarks.workloads.task import Task, Workload, data_hash

__all__ = ["FINETUNE", "LORA", "STAGED", "LoRALinear", "unfreeze"]

LAYERS = 2  # of 6
BATCH, LONGEST = 8, 16
TRAINED, JUDGED = 400, 32  # paragraphs of each of the 8 parts
RANK = 8
STEPS = 60
STAGES = (STEPS // 3, 2 * STEPS // 3)  # steps after which one layer more, and then everything, is trained

Split = tuple[Tensor, Tensor, Tensor]


@cache
def _data() -> tuple[Split, Split, Tensor]:
    """Tokens, masks and labels, to train on and to judge by; the tokenizer's number of every token."""
    raw: list[Split] = []
    for examples in labelled_paragraphs(TRAINED, JUDGED):
        texts, labels = zip(*examples, strict=True)
        ids, mask = (part[:, :LONGEST] for part in tokens(list(texts)))
        raw.append((ids, mask, torch.tensor(labels)))
    occurring, inverse = torch.cat([ids for ids, _, _ in raw]).unique(return_inverse=True)
    count = len(raw[0][0])
    train, valid = raw
    return (inverse[:count], *train[1:]), (inverse[count:], *valid[1:]), occurring


@cache
def _body() -> nn.Module:
    """The embeddings of the tokens that occur and the lowest layers."""
    body: Any = pretrained()
    body.encoder.layer = body.encoder.layer[:LAYERS]
    table = body.get_input_embeddings()
    body.set_input_embeddings(nn.Embedding.from_pretrained(table.weight[_data()[2]].detach(), freeze=False))
    return body


class LoRALinear(nn.Module):
    """A frozen layer plus B A x, A drawn as torch draws a layer, B zero."""

    def __init__(self, base: nn.Linear, rank: int = RANK) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layer gives, adapted."""
        return self.base(x) + self.up(self.down(x))


def _with_lora(model: Classifier) -> None:
    """Freeze the body and adapt the queries and values of its attention."""
    model.body.requires_grad_(False)
    for layer in model.body.encoder.layer:
        attention = layer.attention.self
        attention.query, attention.value = LoRALinear(attention.query), LoRALinear(attention.value)


def unfreeze(model: Classifier, step: int) -> None:
    """Unfreeze what is trained from ``step`` on, counted from 0: the head, the last layer, everything."""
    if step == 0:
        model.body.requires_grad_(False)
    elif step == STAGES[0]:
        model.body.encoder.layer[-1].requires_grad_(True)
    elif step == STAGES[1]:
        model.body.requires_grad_(True)


def _task(
    seed: int,
    batch: float,
    prepare: Callable[[Classifier], None] = lambda model: None,
    before: Callable[[Classifier, int], None] = lambda model, step: None,
) -> Task:
    (ids, mask, labels), (ids_valid, mask_valid, labels_valid), _ = _data()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(copy.deepcopy(_body()), len(PARTS)).train()
        prepare(model)
    draws = shuffled_batches(len(ids), round(BATCH * batch), torch.Generator().manual_seed(seed))
    drawn = 0

    def loss() -> Tensor:
        nonlocal drawn
        before(model, drawn)
        drawn += 1
        rows = next(draws)
        return F.cross_entropy(model(ids[rows], mask[rows]), labels[rows])

    @torch.no_grad()
    def evaluate() -> float:
        model.eval()
        value = F.cross_entropy(model(ids_valid, mask_valid), labels_valid).item()
        model.train()
        return value

    before(model, 0)
    return Task(model, loss, evaluate)


def _workload(name: str, words: str, build: Callable[..., Task]) -> Workload:
    return Workload(
        name,
        f"the lowest {LAYERS} layers of all-MiniLM-L6-v2, pre-trained, with the embeddings that occur; "
        f"{words}; classifying which of 8 parts of the standard library a paragraph comes from, split by "
        f"file, at most 400 paragraphs per part for training and 32 for evaluation, first {LONGEST} tokens, "
        "batch 8; cross-entropy",
        (STEPS, 4 * STEPS),
        build,
        _sha256,
        metric="nats",
        optional=PACKAGE,
        family="fine-tuning",
    )


@cache
def _sha256() -> str:
    train, valid, occurring = _data()
    return with_weights(data_hash(*(a.numpy() for a in (*train, *valid, occurring))))


FINETUNE = _workload("finetune", "all parameters fine-tuned", lambda seed, batch=1.0: _task(seed, batch))
LORA = _workload(
    "lora",
    f"frozen, with LoRA of rank {RANK} on queries and values, and a new head",
    lambda seed, batch=1.0: _task(seed, batch, prepare=_with_lora),
)
STAGED = _workload(
    "staged",
    f"the head trained first, the last layer from step {STAGES[0]} on, all layers from step {STAGES[1]} on",
    lambda seed, batch=1.0: _task(seed, batch, before=unfreeze),
)
