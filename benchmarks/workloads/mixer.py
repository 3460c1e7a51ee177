"""A small MLP-Mixer on scikit-learn's digits."""

from __future__ import annotations

from torch import Tensor, nn

from thermoopt.benchmarks.workloads.digits import ABOUT, digits_hash, digits_task
from thermoopt.benchmarks.workloads.task import Workload

__all__ = ["MIXER_DIGITS", "Mixer"]


def _mlp(size: int, hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(size, hidden), nn.GELU(), nn.Linear(hidden, size))


class _Block(nn.Module):
    """An MLP across patches, then one across channels, each after LayerNorm and with a residual."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.norm1, self.across_patches = nn.LayerNorm(width), _mlp(patches, 2 * patches)
        self.norm2, self.across_channels = nn.LayerNorm(width), _mlp(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across_patches(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.across_channels(self.norm2(x))


class Mixer(nn.Module):
    """Patches of 2 x 2, two blocks, mean over patches, head (arXiv 2105.01601)."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.blocks = nn.Sequential(*(_Block(16, width) for _ in range(2)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[batch, 10]`` of pictures ``[batch, 1, 8, 8]``."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.blocks(x).mean(dim=1))


MIXER_DIGITS = Workload(
    "mixer",
    f"{ABOUT}; MLP-Mixer with 2 blocks, width 48",
    (200, 800),
    lambda seed, batch=1.0: digits_task(Mixer, seed, batch),
    digits_hash,
    metric="nats",
    family="patches",
)
