"""Three ways to train the same model, step by step beside each other."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from thermoopt.adamw import ThermoAdamW
from thermoopt.controllers import Action, autotune
from thermoopt.demo.corpus import Corpus, batches, windows
from thermoopt.demo.gpt import GPT
from thermoopt.plots import LossCurve

__all__ = ["CLIP", "REFRESH", "WARMUP", "WEIGHT_DECAY", "Way", "three_ways", "train"]

USUAL_LR = 1e-3
"""The learning rate AdamW has by default in torch."""

HIGH_LR = 1e-2
"""Ten times that."""

WEIGHT_DECAY = 0.1
"""The usual one of small GPTs (Brown et al., arXiv 2005.14165, appendix B), as is :data:`CLIP`."""

CLIP = 1.0
"""Largest norm of a gradient."""

WARMUP = 0.05
"""Fraction of the run, the default of :class:`thermoopt.controllers.Cooling`."""

EVALUATIONS = 12
"""Validations a run: enough for a curve, and less than a tenth of the time."""

JUDGES = 256
"""Windows a validation takes at most: 16,384 bytes of the default context."""

FEW_STEPS = 200
"""A shorter run measures every step, or its pictures would hold few points."""

REFRESH = 10
"""Steps between two looks at the progress."""


@dataclass
class Way:
    """One way of training: a model, its optimizer, and the results.

    Attributes:
        name: short name in words.
        folder: name of its results folder.
        lr: the given learning rate; None if none was given.
        model, optimizer: its model and optimizer.
        schedule: torch's scheduler of the optimizer; None if a controller sets the rates.
        losses: losses of every step and every validation.
    """

    name: str
    folder: str
    lr: float | None
    model: GPT
    optimizer: ThermoAdamW
    schedule: LambdaLR | None = None
    losses: LossCurve = field(default_factory=LossCurve)

    def step(self, inputs: Tensor, targets: Tensor) -> None:
        """Take one optimizer step.

        Args:
            inputs, targets: bytes ``[batch, context]``, int64.
        """
        loss = F.cross_entropy(self.model(inputs).flatten(0, 1), targets.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
        self.losses.train_steps.append(len(self.losses.train) + 1)
        self.losses.train.append(loss.item())

    @torch.no_grad()
    def judge(self, inputs: Tensor, targets: Tensor) -> None:
        """Record the validation loss after the last step.

        Args:
            inputs, targets: bytes ``[windows, context]``, int64.
        """
        total = 0.0
        for x, y in zip(inputs.split(128), targets.split(128), strict=True):
            total += F.cross_entropy(self.model(x).flatten(0, 1), y.flatten(), reduction="sum").item()
        self.losses.valid_steps.append(len(self.losses.train))
        self.losses.valid.append(total / targets.numel())

    def rewind(self, step: int) -> None:
        """Forget losses and readings after ``step``."""
        losses = self.losses
        del losses.train_steps[step:], losses.train[step:]
        kept = sum(s <= step for s in losses.valid_steps)
        del losses.valid_steps[kept:], losses.valid[kept:]
        self.optimizer.history.rewind(step)

    @property
    def actions(self) -> list[Action]:
        """The controller's actions in the recorded steps, oldest first."""
        controller = self.optimizer.controller
        if controller is None:
            return []
        return [action for action in controller.log if action.step <= len(self.losses.train)]

    @property
    def group_names(self) -> list[str]:
        """Names of the parameter groups, in the order of the history."""
        reading = self.optimizer.reading
        return list(reading.group_names) if reading else []


def three_ways(model: GPT, steps: int) -> list[Way]:
    """Set up AdamW at two learning rates with a cosine to 0, and ThermoAdamW that is given none.

    All three start from the same weights and decay them alike. The AdamW ways are measured: ThermoAdamW
    without a controller takes AdamW's step, and a monitor changes no bit of it.

    Args:
        model: trained in the last way; the others train copies.
        steps: length of the run.

    Returns:
        The ways, in that order.
    """
    controller = autotune(total_steps=steps)
    every = 1 if steps < FEW_STEPS else None
    ways = []
    for text, lr in (("1e-3", USUAL_LR), ("1e-2", HIGH_LR)):
        own = copy.deepcopy(model)
        # average over as many steps as the controller needs, so that the three histories are comparable
        optimizer = ThermoAdamW(
            own.named_parameters(),
            lr=lr,
            weight_decay=WEIGHT_DECAY,
            measure_every=every,
            ema_steps=controller.ema_steps,
        )
        schedule = LambdaLR(optimizer, lambda step: _cosine(step, steps))
        ways.append(Way(f"AdamW lr {text}", f"adamw-{text}", lr, own, optimizer, schedule))
    optimizer = ThermoAdamW(
        model.named_parameters(), weight_decay=WEIGHT_DECAY, controller=controller, measure_every=every
    )
    return [*ways, Way("autotuned", "autotuned", None, model, optimizer)]


def train(
    ways: Sequence[Way],
    corpus: Corpus,
    steps: int,
    batch: int,
    seed: int,
    advance: Callable[[int, Sequence[float]], None],
) -> None:
    """Train all ways, one step of each in turn on the same batch.

    Args:
        ways: from :func:`three_ways`; they record the losses.
        corpus: the text.
        steps: number of rounds, at least 1.
        batch: windows per step.
        seed: seed of the batches.
        advance: called with the round and the ways' training losses every :data:`REFRESH` rounds and at the
            end.

    Raises:
        KeyboardInterrupt: re-raised when stopped; the ways then hold the rounds that all of them finished.
    """
    context = ways[0].model.config.context
    draws = batches(corpus.train, batch, context, seed)
    # as many windows as do not overlap
    judges = windows(corpus.valid, max(1, min(JUDGES, len(corpus.valid) // context)), context)
    every = max(1, steps // EVALUATIONS)
    done = 0
    try:
        for step in range(1, steps + 1):
            pair = next(draws)
            for way in ways:
                way.step(*pair)
            if step % every == 0 or step == steps:
                for way in ways:
                    way.judge(*judges)
            done = step
            if step % REFRESH == 0 or step == steps:
                advance(step, [way.losses.train[-1] for way in ways])
    except KeyboardInterrupt:
        for way in ways:
            way.rewind(done)
        raise


def _cosine(step: int, steps: int) -> float:
    """Warm up linearly, then half a cosine from 1 to 0."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return (1 + math.cos(math.pi * done)) / 2
