"""How a Triton plan cuts tensors into chunks: a map that gives each program its tensor and chunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = ["BLOCK", "ChunkMap", "LaunchPart", "blocks_of_a_chunk"]

BLOCK = 512
"""Elements that a program handles at a time: with 4 warps a thread moves 16 bytes of float32 (unmeasured)."""

MANY = 1 << 24
"""Elements from which on chunks are longer: more than 2,000 of them, three for each program that an H100 runs
at a time. The end of a program, a tenth of its instructions, then comes half as often."""


def blocks_of_a_chunk(elements: int) -> int:
    """Blocks that a program loops over with its sums in registers, for this many elements in all.

    Chunks of 4,096 elements cut 5 M elements into more than 1,000 programs, so that no multiprocessor of a
    large GPU idles (unmeasured).
    """
    return 16 if elements >= MANY else 8


@dataclass
class LaunchPart:
    """Tensors of one dtype, with or without amsgrad: one launch."""

    dtype: torch.dtype
    amsgrad: bool
    members: list[int]
    first: int = 0
    count: int = 0
    aligned: bool = False


class ChunkMap:
    """The chunks of ``n`` tensors; those of a tensor, and of a part, are consecutive.

    Args:
        kinds: dtype of each tensor, and whether it has amsgrad.
        numels: its elements.
        chunk: elements per chunk.
        device: that holds the map.

    Attributes:
        parts: the tensors by launch.
        count: number of chunks.
        map: elements of each tensor, ``[n]``; tensor of each chunk, and its number in that, ``[count]``.
        ends: first chunk of each tensor, and that after its last, ``[n]``.
    """

    def __init__(
        self,
        kinds: Sequence[tuple[torch.dtype, bool]],
        numels: Sequence[int],
        chunk: int,
        device: torch.device,
    ) -> None:
        self.parts = [
            LaunchPart(*kind, [i for i, other in enumerate(kinds) if other == kind])
            for kind in dict.fromkeys(kinds)
        ]
        counts = [-(-numel // chunk) for numel in numels]
        starts = [0] * len(counts)
        self.count = 0
        for part in self.parts:
            part.first = self.count
            for i in part.members:
                starts[i] = self.count
                self.count += counts[i]
            part.count = self.count - part.first
        order = torch.tensor([i for part in self.parts for i in part.members], device="cpu")
        begin, count = torch.tensor(starts, device="cpu"), torch.tensor(counts, device="cpu")
        owner = torch.repeat_interleave(order, count[order])
        self.map = (
            torch.tensor(numels, dtype=torch.int64, device=device),
            owner.to(device, torch.int32),
            (torch.arange(self.count, device="cpu") - begin[owner]).to(device, torch.int32),
        )
        self.ends = begin.to(device), (begin + count).to(device)
