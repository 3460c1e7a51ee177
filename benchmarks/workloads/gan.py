"""A generative adversarial network on scikit-learn's digits, judged by a distance: its losses say nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from thermoopt.benchmarks.workloads.digits import pictures
from thermoopt.benchmarks.workloads.task import Task, Workload, data_hash

__all__ = ["GAN", "GAN_DIGITS", "energy_distance"]

BATCH, LATENT, DRAWN = 64, 16, 1000
PENALTY = 1.0  # γ of the gradient penalty


def energy_distance(x: Tensor, y: Tensor) -> float:
    r"""Return the squared energy distance between two samples, 0 only for equal distributions.

    .. math:: 2\,E\|X-Y\| - E\|X-X'\| - E\|Y-Y'\|

    Args:
        x, y: samples ``[n, d]`` and ``[m, d]``; pairs within a sample leave out a point and itself.

    References:
        Székely and Rizzo, "Energy statistics", 2013, equation 5.
    """

    def within(a: Tensor) -> Tensor:
        return torch.cdist(a, a).sum() / (len(a) * (len(a) - 1))

    return (2 * torch.cdist(x, y).mean() - within(x) - within(y)).item()


class GAN(nn.Module):
    """Generator with BatchNorm and discriminator, two hidden layers of either."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()

        def hidden(inputs: int) -> list[nn.Module]:
            return [nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU()]

        self.generator = nn.Sequential(*hidden(LATENT), *hidden(width), nn.Linear(width, 64), nn.Sigmoid())
        self.discriminator = nn.Sequential(
            nn.Linear(64, width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, 1),
        )

    def forward(self, real: Tensor, latent: Tensor) -> Tensor:
        """Sum of both players' losses; either has gradients in its own parameters only.

        The discriminator's: −ln D(x) − ln(1 − D(G(z))) + ½ ‖∇_x logit D(x)‖²; the generator's: −ln D(G(z)).

        References:
            Goodfellow et al., arXiv 1406.2661, section 3; Mescheder, Geiger and Nowozin, arXiv 1801.04406,
            equation 9 (the penalty, without which the players circle each other).
        """
        made = self.generator(latent)
        real = real.requires_grad_()
        judged_real, judged_made = self.discriminator(real), self.discriminator(made.detach())
        held = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        fooled = functional_call(self.discriminator, held, (made,))
        (slope,) = torch.autograd.grad(judged_real.sum(), real, create_graph=True)
        discriminator = F.softplus(-judged_real).mean() + F.softplus(judged_made).mean()
        return discriminator + PENALTY / 2 * slope.square().sum(dim=1).mean() + F.softplus(-fooled).mean()


def _task(seed: int, batch: float = 1.0) -> Task:
    train, valid = (part.flatten(1) for part in pictures())
    latent_valid = torch.randn(DRAWN, LATENT, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GAN()
    rng = torch.Generator().manual_seed(seed)

    def loss() -> Tensor:
        rows = torch.randint(len(train), (round(BATCH * batch),), generator=rng)
        return model(train[rows], torch.randn(len(rows), LATENT, generator=rng))

    @torch.no_grad()
    def evaluate() -> float:
        model.eval()
        distance = energy_distance(model.generator(latent_valid), valid)
        model.train()
        return max(0.0, distance)

    return Task(model, loss, evaluate)


GAN_DIGITS = Workload(
    "gan",
    "scikit-learn's digits, 1,200 images for training, batch 64; generator and discriminator with 2 hidden "
    "layers of 128, both updated in every step, gradient penalty; evaluated by the squared energy distance "
    "between 1,000 generated images and 597 others",
    (400, 1600),
    _task,
    lambda: data_hash(*(part.numpy() for part in pictures())),
    metric="squared energy distance",
    family="adversarial",
)
