r"""A variational autoencoder on scikit-learn's digits.

.. math:: L = -\sum_i [x_i\ln p_i + (1-x_i)\ln(1-p_i)] + \tfrac12\sum_j(\mu_j^2 + s_j^2 - \ln s_j^2 - 1)

References:
    Kingma and Welling, "Auto-encoding variational Bayes", 2014, equation 10 and appendix C.1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thermoopt.benchmarks.workloads.digits import pictures
from thermoopt.benchmarks.workloads.task import Task, Workload, data_hash, seeded_task

__all__ = ["VAE", "VAE_DIGITS"]

BATCH = 64
LATENT = 8


class VAE(nn.Module):
    """Encoder and decoder with one hidden layer each."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 2 * LATENT))
        self.decoder = nn.Sequential(nn.Linear(LATENT, width), nn.ReLU(), nn.Linear(width, 64))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """Negative evidence lower bound, mean over ``x`` (``[batch, 64]`` in 0 to 1), nats a picture."""
        mean, log_var = self.encoder(x).chunk(2, dim=1)
        logits = self.decoder(mean + (log_var / 2).exp() * noise)
        rebuilt = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        divergence = (mean.square() + log_var.exp() - log_var - 1).sum() / 2
        return (rebuilt + divergence) / len(x)


def _task(seed: int, batch: float = 1.0) -> Task:
    train, valid = (part.flatten(1) for part in pictures())
    judged = torch.randn(len(valid), LATENT, generator=torch.Generator().manual_seed(0))

    def loss(model: nn.Module, rng: torch.Generator) -> Tensor:
        rows = torch.randint(len(train), (round(BATCH * batch),), generator=rng)
        return model(train[rows], torch.randn(len(rows), LATENT, generator=rng))

    return seeded_task(VAE, loss, lambda model: model(valid, judged), seed)


VAE_DIGITS = Workload(
    "vae",
    "scikit-learn's digits, 1,200 images for training and 597 for evaluation, batch 64; variational "
    "autoencoder with 8 latent variables and hidden layers of 128; negative evidence lower bound with one "
    "sample",
    (600, 2400),
    _task,
    lambda: data_hash(*(part.numpy() for part in pictures())),
    metric="nats per image",
    family="autoencoders",
)
