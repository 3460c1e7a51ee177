"""One optimizer through everything: bits, step count, readings, schedule, diagnosis."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from thermoopt import CollapseDetector, EntropySplit, Observer, ThermoScheduler, diagnose
from thermoopt.benchmarks.others.account import MEASURED, Account, same
from thermoopt.benchmarks.others.problem import Run, train

__all__ = ["EXACT", "STEPS", "Case", "Row", "check", "tuned"]

STEPS = 200
"""Steps of a run."""

COMPARED = 20
"""Length of the run in which every step is measured and compared with the float64 account."""

EXACT = 2e-3
"""Largest relative error of a reading in float32: theta' - theta of a step of 1e-4 of the weight is known to
6e-8 / 1e-4 from float32 weights, and sums of a thousand elements add their own."""

LRS = (3e-4, 3e-3, 3e-2, 0.3)
"""Learning rates of the search for an optimizer's own."""

SURE = ("HIGH", "MEDIUM")

TRAINED = 0.75
"""Share of its first loss that a run must end below to count as healthy. At the lr best after a quarter of
it 243 of 249 optimizers ended below 0.62 and six above 0.93: nothing lay between."""


@dataclass(frozen=True)
class Case:
    """One optimizer.

    Attributes:
        package, name: where it comes from and what it is called there.
        make: makes it, of a model and a learning rate (None for the optimizer's default).
        lr: learning rate to use where none is searched for.
        closure: whether its step needs one.
        create_graph: whether its step differentiates the gradients.
        distributed: whether it wants a process group; one of one process is made.
    """

    package: str
    name: str
    make: Callable[[nn.Module, float | None], Optimizer]
    lr: float | None = None
    closure: bool = False
    create_graph: bool = False
    distributed: bool = False

    def train(self, lr: float | None, steps: int, **hooks: Any) -> Run:
        """Train the network with it."""
        return train(
            lambda model: self.make(model, lr),
            steps,
            closure=self.closure,
            create_graph=self.create_graph,
            **hooks,
        )


@dataclass
class Row:
    """The result for one optimizer; ``wrong`` describes every fault.

    Attributes:
        refused: the message of an Observer that refused, else "".
        unusable: why the optimizer cannot train alone here, else "".
        trained: whether the run is a healthy one, which must have no finding (:data:`TRAINED`).
        rewrites: whether it writes its groups' lr inside its step: no schedule is compared then.
        moments: whether readings came from Adam's moments.
        unavailable: quantities that are NaN for it.
        skipped: measured steps skipped, by cause.
        errors: worst relative error by quantity.
        scheduled: whether a cosine ThermoScheduler gave the bits of torch's.
    """

    package: str
    name: str
    lr: float | None = None
    loss: tuple[float, float] = (math.nan, math.nan)
    refused: str = ""
    unusable: str = ""
    trained: bool = True
    rewrites: bool = False
    moments: bool = False
    unavailable: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    scheduled: bool = False
    wrong: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


def tuned(case: Case, steps: int = STEPS) -> list[float | None]:
    """Order learning rates by the loss after a quarter of the run, lowest first; None is the default.

    Args:
        case: the optimizer; its default (some, like D-adaptation, mean lr = 1) is one candidate more than
            :data:`LRS`.
        steps: of the whole run.

    Raises:
        Exception: the optimizer's own, if it runs at none of them.
    """
    found: list[tuple[float, float | None]] = []
    failed: Exception | None = None
    for lr in (case.lr, *LRS):
        try:
            loss = case.train(lr, steps // 4).final
        except (
            ArithmeticError,
            RuntimeError,
            ValueError,
        ) as error:  # an lr that this optimizer does not take
            failed = error
            continue
        found.append((loss if math.isfinite(loss) else math.inf, lr))
    if not found and failed is not None:
        raise failed
    return [lr for _, lr in sorted(found, key=lambda x: x[0])]


def check(case: Case, lrs: Sequence[float | None], steps: int = STEPS) -> Row:
    """Train with and without thermoopt, and say what differs or is wrong.

    Args:
        case: the optimizer.
        lrs: learning rates to try: the first at which it trains is taken, or else the first.
        steps: of the whole run.
    """
    for k, lr in enumerate([*lrs, lrs[0]]):
        row = Row(case.package, case.name, lr)
        try:
            bare = case.train(lr, steps)
        except Exception as error:
            row.unusable = f"{type(error).__name__}: {error}".split("\n")[0]
            return row
        row.loss = (bare.losses[0], bare.final)
        row.trained = bare.final < TRAINED * bare.losses[0]
        if row.trained or k == len(lrs):
            break
    row.rewrites = bare.rewrites
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for part in (_observed, _diagnosed, _scheduled):
            try:
                part(case, row, bare, lr, steps)
            except _Refused as refusal:
                row.refused = str(refusal)
                break
            except Exception as error:
                row.wrong.append(f"{part.__name__[1:]}: {type(error).__name__}: {error}".split("\n")[0])
    ours = {str(w.message) for w in caught if "thermoopt" in w.filename.replace("\\", "/").split("/")}
    row.wrong += [f"warning: {text}" for text in sorted(ours)]
    return row


class _Refused(Exception):
    """An Observer that says it cannot be."""


def _attach(model: nn.Module, optimizer: Optimizer, **options: Any) -> Observer:
    try:
        return Observer(model, optimizer, **options)
    except (TypeError, ValueError) as error:
        for hooks in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"):
            if getattr(optimizer, hooks, None):
                raise RuntimeError(f"refused ({error}) and left {hooks} behind") from error
        raise _Refused(str(error)) from error


def _observed(case: Case, row: Row, bare: Run, lr: float | None, steps: int) -> None:
    """Measure every step: bits and step count as without, readings as in the account."""
    account, steps = Account(), min(steps, COMPARED)
    bare = case.train(lr, steps)
    run = case.train(
        lr,
        steps,
        attach=lambda m, o: _attach(m, o, log_every=1, ema_steps=1, track=("rho", "distance")),
        before=account.before,
        after=lambda run, t, loss: account.after(run, run.extra),
    )
    observer: Observer = run.extra
    if observer.steps != steps:
        row.wrong.append(f"{observer.steps} steps counted of {steps}")
    if not same(dict(bare.model.named_parameters()), dict(run.model.named_parameters())):
        row.wrong.append("other weights than without an observer")
    if not _same_state(bare.optimizer, run.optimizer):
        row.wrong.append("other optimizer state than without an observer")
    row.skipped = {cause: n for cause, n in observer.skipped.items() if n}
    row.errors = account.errors
    row.unavailable = sorted(account.unavailable)
    if observer.reading is not None:
        row.moments = math.isfinite(observer.reading.total.r)
    elif not row.skipped:
        row.wrong.append("no reading, and no step was skipped")
    row.wrong += [f"{q} is off by {row.errors[q]:.1e}" for q in MEASURED if row.errors.get(q, 0.0) > EXACT]


def _same_state(a: Optimizer, b: Optimizer) -> bool:
    try:
        one, other = a.state_dict(), b.state_dict()
    except Exception:
        return True
    return same(one, other)


def _diagnosed(case: Case, row: Row, bare: Run, lr: float | None, steps: int) -> None:
    """Use a default observer, a split, a detector and a diagnosis: nothing is wrong with this run."""

    def attach(model: nn.Module, optimizer: Optimizer) -> tuple[Observer, EntropySplit, CollapseDetector]:
        observer = _attach(model, optimizer)
        split = EntropySplit(model, optimizer, observer)
        return observer, split, CollapseDetector(model, optimizer, observer=observer)

    alarms: set[str] = set()

    def after(run: Run, t: int, loss: Tensor) -> None:
        observer, _, detector = run.extra
        observer.step(loss=loss)
        if detector.is_collapsing:
            alarms.update(detector.collapsing)

    run = case.train(lr, steps, attach=attach, after=after)
    if run.extra[0].steps != steps:
        row.wrong.append(f"{run.extra[0].steps} steps counted of {steps}")
    if not same(dict(bare.model.named_parameters()), dict(run.model.named_parameters())):
        row.wrong.append("other weights than without a diagnosis")
    report = diagnose(*run.extra)
    if not row.trained:
        return
    row.wrong += [f"finding: {f}" for f in report.findings if f.confidence in SURE]
    row.wrong += [f"alarm: {name}" for name in sorted(alarms)]


def _scheduled(case: Case, row: Row, bare: Run, lr: float | None, steps: int) -> None:
    """Use a cosine schedule: the same bits as torch's own.

    torch's continues from the present lr, ours from the base: they differ if the step writes the lr.
    """
    if row.rewrites:
        return
    steps = steps // 10

    def torchs(model: nn.Module, optimizer: Optimizer) -> Any:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def after(run: Run, t: int, loss: Tensor) -> None:
        run.extra.step()

    try:
        reference = case.train(lr, steps, attach=torchs, after=after)
    except Exception:
        return
    run = case.train(lr, steps, attach=lambda m, o: ThermoScheduler(o, steps, shape="cosine"), after=after)
    row.scheduled = same(dict(reference.model.named_parameters()), dict(run.model.named_parameters()))
    if not row.scheduled:
        row.wrong.append("ThermoScheduler gave other weights than torch's CosineAnnealingLR")
