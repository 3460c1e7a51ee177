"""Parameter sets with the shapes of GPT-2, and the bytes that a step over them must move."""

from __future__ import annotations

Shapes = list[tuple[int, ...]]

BYTES_PER_ELEMENT = 28
"""A float32 AdamW step reads parameter, gradient and two moments and writes all but the gradient."""


def gpt_shapes(width: int, depth: int, vocabulary: int, context: int) -> Shapes:
    """Shapes of a GPT-2 with tied embeddings, biases and two norms per block."""
    block: Shapes = [(width,)] * 4 + [(3 * width, width), (3 * width,), (width, width), (width,)]
    block += [(4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    return [(vocabulary, width), (context, width), *block * depth, (width,), (width,)]


GPT_SETS: dict[str, Shapes] = {
    "GPT 0.1 M": gpt_shapes(48, 2, 256, 64),
    "GPT 5 M": gpt_shapes(192, 10, 2_048, 512),
    "GPT 27 M": gpt_shapes(512, 7, 9_000, 512),
    "GPT 124 M": gpt_shapes(768, 12, 50_257, 1_024),
    "GPT 350 M": gpt_shapes(1_024, 24, 50_257, 1_024),
}
