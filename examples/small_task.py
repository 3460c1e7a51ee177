"""The task that the examples share: a small GPT predicts the next byte of Python's own source code.

The text is the standard library of the Python that runs it, so nothing is downloaded. Losses are in nats per
byte.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thermoopt.demo import GPT, GPTConfig, batches, load_corpus, windows

CONTEXT = 64
TEXT = load_corpus()


def small_gpt(seed: int) -> GPT:
    """Build the model, 0.14 M parameters: the same weights for the same seed."""
    torch.manual_seed(seed)
    return GPT(GPTConfig(depth=2, width=64, heads=4, context=CONTEXT))


def training_batches(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw batches of 8 windows for ever: the same ones for the same seed."""
    return batches(TEXT.train, 8, CONTEXT, seed)


def next_byte_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of the next byte."""
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


@torch.no_grad()
def validation_loss(model: nn.Module) -> float:
    """Return the loss on 16,384 bytes of files that are not trained on."""
    return next_byte_loss(model, *windows(TEXT.valid, 256, CONTEXT)).item()


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
    seed: int,
    report: Callable[[Tensor], object] | None = None,
) -> None:
    """Train as with any torch optimizer; ``report`` is told every loss."""
    batches = training_batches(seed)
    for _ in range(steps):
        inputs, targets = next(batches)
        optimizer.zero_grad()
        loss = next_byte_loss(model, inputs, targets)
        loss.backward()
        optimizer.step()
        if report is not None:
            report(loss)
