"""Soft targets: a forest's probabilities, and smoothed labels of few images."""

from __future__ import annotations

from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thermoopt.benchmarks.workloads.digits import labelled
from thermoopt.benchmarks.workloads.kinds.images import ABOUT
from thermoopt.benchmarks.workloads.supervised import Arrays, arrays_hash, supervised_task
from thermoopt.benchmarks.workloads.task import Workload, require

__all__ = ["DISTILLED", "FEW", "divergence"]

TAUGHT = 600  # pictures that the forest has seen: half of those to train on
TREES = 60


@cache
def _taught() -> Arrays:
    """Pictures and the probabilities ``[n, 10]`` that a random forest gives them."""
    ensemble = require("sklearn.ensemble", "scikit-learn")
    x, y, x_valid, _ = labelled()
    forest = ensemble.RandomForestClassifier(TREES, min_samples_leaf=2, random_state=0)
    forest.fit(x[:TAUGHT].flatten(1).numpy(), y[:TAUGHT].numpy())

    def judged(pictures: Tensor) -> Tensor:
        return torch.tensor(forest.predict_proba(pictures.flatten(1).numpy()), dtype=torch.float32)

    return x, judged(x), x_valid, judged(x_valid)


def divergence(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean of KL(target ‖ softmax(logits)), in nats."""
    return F.kl_div(logits.log_softmax(dim=1), target, reduction="batchmean")


def _student() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))


DISTILLED = Workload(
    "distilled",
    f"{ABOUT}, with the probabilities of a random forest of {TREES} trees that saw half of the training "
    "images, batch 32; one hidden layer of 24; divergence from the forest's probabilities",
    (500, 2000),
    lambda seed, batch=1.0: supervised_task(_taught(), _student, seed, batch, criterion=divergence, size=32),
    arrays_hash(_taught),
    family="distillation",
)

FEW_PICTURES = 200
SMOOTHING = 0.1


@cache
def _few() -> Arrays:
    x, y, x_valid, y_valid = labelled()
    return x[:FEW_PICTURES], y[:FEW_PICTURES], x_valid, y_valid


def _wide(width: int = 512) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, 10),
    )


FEW = Workload(
    "few",
    f"scikit-learn's digits, unaltered, {FEW_PICTURES} for training and 597 for evaluation, labels smoothed "
    "by 0.1, batch 32; 2 hidden layers of 512, which memorise the training images; cross-entropy with the "
    "labels",
    (300, 1200),
    lambda seed, batch=1.0: supervised_task(
        _few(),
        _wide,
        seed,
        batch,
        criterion=partial(F.cross_entropy, label_smoothing=SMOOTHING),
        size=32,
        judge=F.cross_entropy,
    ),
    arrays_hash(_few),
    family="perceptrons",
)
