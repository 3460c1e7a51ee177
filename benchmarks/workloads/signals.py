"""mnist1d: signals of 40 points in 10 classes, generated; a convolution net and an MLP."""

from __future__ import annotations

import random
from functools import cache

import numpy as np
from torch import nn

from thermoopt.benchmarks.workloads.supervised import Arrays, arrays_hash, supervised_task, tensors
from thermoopt.benchmarks.workloads.task import Workload, require

__all__ = ["CNN_MNIST1D", "MLP_MNIST1D"]

SIGNALS = 10_000  # mnist1d's usual 5,000 twice, 8,000 to train on: networks interpolate later


@cache
def _mnist1d() -> Arrays:
    data = require("mnist1d.data", "mnist1d")
    states = np.random.get_state(), random.getstate()  # noqa: NPY002 - make_dataset seeds both, globally
    try:
        args = data.get_dataset_args()
        args.num_samples = SIGNALS
        made = data.make_dataset(args)
    finally:
        np.random.set_state(states[0])  # noqa: NPY002
        random.setstate(states[1])
    return tensors(made["x"], made["y"], made["x_test"], made["y_test"])


def _conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 40)),
        nn.Conv1d(1, 25, 5, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv1d(25, 25, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv1d(25, 25, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(125, 10),
    )


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(40, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


_ABOUT = "mnist1d, 8,000 signals for training and 2,000 for evaluation, batch 64; cross-entropy"

CNN_MNIST1D = Workload(
    "cnn",
    f"{_ABOUT}; 3 convolutions with 25 channels",
    (500, 2000),
    lambda seed, batch=1.0: supervised_task(_mnist1d(), _conv1d, seed, batch),
    arrays_hash(_mnist1d),
    family="convolution",
    metric="nats",
)
MLP_MNIST1D = Workload(
    "mlp",
    f"{_ABOUT}; 2 hidden layers of 128",
    (500, 2000),
    lambda seed, batch=1.0: supervised_task(_mnist1d(), _mlp, seed, batch),
    arrays_hash(_mnist1d),
    family="perceptrons",
    metric="nats",
)
