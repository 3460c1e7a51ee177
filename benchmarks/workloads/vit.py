"""A small vision transformer on scikit-learn's digits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thermoopt.benchmarks.workloads.digits import ABOUT, digits_hash, digits_task
from thermoopt.benchmarks.workloads.task import Workload

__all__ = ["VIT_DIGITS", "ViT"]


class ViT(nn.Module):
    """Patches of 2 x 2, two pre-norm encoder layers, mean over patches, head."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.positions = nn.Parameter(0.02 * torch.randn(16, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[batch, 10]`` of pictures ``[batch, 1, 8, 8]``."""
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(dim=1))


VIT_DIGITS = Workload(
    "vit",
    f"{ABOUT}; vision transformer with 2 layers, width 48",
    (300, 1200),
    lambda seed, batch=1.0: digits_task(ViT, seed, batch),
    digits_hash,
    family="patches",
    metric="nats",
)
