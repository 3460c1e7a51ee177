"""A small GPT over bytes: pre-norm blocks, causal self-attention, an untied head."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["GPT", "GPTConfig"]

VOCABULARY = 256  # bytes


@dataclass(frozen=True)
class GPTConfig:
    """Shape of a :class:`GPT`.

    Attributes:
        depth: number of blocks.
        width: size of the residual stream.
        heads: attention heads; divides ``width``.
        context: longest input in bytes.
    """

    depth: int = 4
    width: int = 128
    heads: int = 4
    context: int = 64


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, config: GPTConfig) -> None:
        """Make the two projections.

        Args:
            config: shape of the model.
        """
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.proj = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix every position with those before it."""
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(batch, length, width))


class MLP(nn.Module):
    """Two linear maps with a GELU between."""

    def __init__(self, config: GPTConfig) -> None:
        """Make the two maps.

        Args:
            config: shape of the model.
        """
        super().__init__()
        self.up = nn.Linear(config.width, 4 * config.width, bias=False)
        self.down = nn.Linear(4 * config.width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform every position by itself."""
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    """Attention, then the MLP, each added to the residual stream."""

    def __init__(self, config: GPTConfig) -> None:
        """Make the parts.

        Args:
            config: shape of the model.
        """
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, bias=False)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, bias=False)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """Add both parts to ``x``."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Byte-level language model.

    Linear and embedding weights start from N(0, 0.02²); the maps that write into the residual stream
    are scaled down by √(2·depth), so that its variance does not grow with depth.

    References:
        Radford et al., "Language models are unsupervised multitask learners", 2019, section 2.3.
    """

    def __init__(self, config: GPTConfig) -> None:
        """Build the model from torch's global generator.

        Args:
            config: its shape.

        Raises:
            ValueError: ``heads`` does not divide ``width``.
        """
        if config.width % config.heads:
            raise ValueError(f"width {config.width} is not a multiple of heads {config.heads}")
        super().__init__()
        self.config = config
        self.bytes = nn.Embedding(VOCABULARY, config.width)
        self.positions = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, bias=False)
        self.head = nn.Linear(config.width, VOCABULARY, bias=False)
        self._initialise()

    def forward(self, idx: Tensor) -> Tensor:
        """Predict the next byte at every position.

        Args:
            idx: bytes ``[batch, length]``, int64, ``length`` at most ``context``.

        Returns:
            Logits ``[batch, length, 256]``.

        Raises:
            ValueError: ``length`` exceeds the context.
        """
        length = idx.shape[1]
        if length > self.config.context:
            raise ValueError(f"input of {length} bytes is longer than the context of {self.config.context}")
        x = self.bytes(idx) + self.positions(torch.arange(length, device=idx.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    @torch.no_grad()
    def _initialise(self) -> None:
        residual = 0.02 / math.sqrt(2 * self.config.depth)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                p.normal_(std=residual if name.endswith(("proj.weight", "down.weight")) else 0.02)
