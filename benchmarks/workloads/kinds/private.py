"""Digits learned from gradients that are clipped for each image and made noisy (differential privacy)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional as F

from thermoopt.benchmarks.workloads.digits import labelled
from thermoopt.benchmarks.workloads.kinds.images import ABOUT
from thermoopt.benchmarks.workloads.supervised import BATCH, arrays_hash
from thermoopt.benchmarks.workloads.task import Build, Task, Workload, seeded_task, with_gradients

__all__ = ["PRIVATE", "PRIVATE_NOISY", "clipped_and_noisy"]

CLIP = 1.0
"""Largest norm of a picture's gradient."""


def clipped_and_noisy(
    each: dict[str, Tensor], clip: float, noise: float, rng: torch.Generator
) -> dict[str, Tensor]:
    r"""Return the mean of clipped gradients with noise.

    .. math:: \frac1n\left(\sum_i g_i \min(1, c/\|g_i\|) + \sigma c\,\xi\right),\quad \xi \sim N(0, 1)

    Args:
        each: gradients of each row, ``[n, ...]`` by parameter; a norm is of all parameters together.
        clip: c.
        noise: σ.
        rng: of the noise.

    References:
        Abadi et al., "Deep learning with differential privacy", arXiv 1607.00133, algorithm 1.
    """
    norms = torch.stack([g.flatten(1).square().sum(dim=1) for g in each.values()]).sum(dim=0).sqrt()
    kept = (clip / norms).clamp(max=1)
    return {
        name: (torch.einsum("n,n...->...", kept, g) + noise * clip * torch.randn(g.shape[1:], generator=rng))
        / len(norms)
        for name, g in each.items()
    }


def _private(noise: float) -> Build:
    def build(seed: int, batch: float = 1.0) -> Task:
        x, y, x_valid, y_valid = labelled()

        def make() -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 10))

        def loss(model: nn.Module, rng: torch.Generator) -> Tensor:
            rows = torch.randint(len(x), (round(BATCH * batch),), generator=rng)

            def error(parameters: dict[str, Tensor], picture: Tensor, label: Tensor) -> Tensor:
                logits = functional_call(model, parameters, (picture[None],))
                return F.cross_entropy(logits, label[None])

            held = {name: p.detach() for name, p in model.named_parameters()}
            each, values = vmap(grad_and_value(error), (None, 0, 0))(held, x[rows], y[rows])
            gradients = clipped_and_noisy(each, CLIP, noise, rng)
            return with_gradients(values.mean(), model.parameters(), gradients.values())

        return seeded_task(make, loss, lambda model: F.cross_entropy(model(x_valid), y_valid), seed)

    return build


_ABOUT = (
    f"{ABOUT}, batch 64, the gradient of every image clipped to a norm of 1, and noise of {{}} times that "
    "added to their sum; a reported loss is that of the batch, without noise; tanh MLP with one hidden "
    "layer of 128; cross-entropy"
)

PRIVATE = Workload(
    "private",
    _ABOUT.format(2),
    (300, 1200),
    _private(2.0),
    arrays_hash(labelled),
    family="private gradients",
)
PRIVATE_NOISY = Workload(
    "private-noisy",
    _ABOUT.format(6),
    (600, 2400),
    _private(6.0),
    arrays_hash(labelled),
    family="private gradients",
)
