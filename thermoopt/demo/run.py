"""Train the small GPT with ThermoAdamW, say what was measured, and write it down."""

from __future__ import annotations

import csv
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from thermoopt.adamw import ThermoAdamW
from thermoopt.demo.corpus import Corpus, batches, load_corpus, unigram_entropy, windows
from thermoopt.demo.gpt import GPT, GPTConfig
from thermoopt.plotting import HistoryLike, LossCurve, plot_dashboard

__all__ = ["DEFAULT_STEPS", "DemoResult", "InputError", "run_demo"]

DEFAULT_STEPS = 2000  # about two minutes on two cores
BATCH = 16
LR = 3e-3  # the best of a grid by factors of about 3 for a GPT of this kind and length
WEIGHT_DECAY = 0.1
WARMUP = 0.05  # share of the run
FLOOR = 0.1  # the cosine ends at this share of the peak, so that the last reading still means something
CLIP = 1.0
EVALUATIONS = 20
FEW_STEPS = 200  # a shorter run measures and records every step, or its pictures would hold few points
REFRESH = 10  # steps between two looks at the reading
PLAIN_SECONDS = 5.0  # between progress lines where there is no terminal

Say = Callable[[str], None]


class InputError(ValueError):
    """An argument of the demo that cannot be used.

    Attributes:
        argument: its name.
        value: what was given.
        why: what is wrong and what is allowed.
    """

    def __init__(self, argument: str, value: object, why: str) -> None:
        """Keep the parts for a caller with its own way to name arguments.

        Args:
            argument: its name.
            value: what was given.
            why: what is wrong and what is allowed.
        """
        super().__init__(f"{argument}={str(value)!r}: {why}")
        self.argument, self.value, self.why = argument, value, why


@dataclass(frozen=True)
class DemoResult:
    """What a demo run leaves behind.

    Attributes:
        out: folder with all files.
        losses: the loss curve.
        valid_loss: final validation loss in nats a byte.
        unigram: entropy of the validation bytes without context.
        summary: what ``summary.json`` holds.
    """

    out: Path
    losses: LossCurve
    valid_loss: float
    unigram: float
    summary: dict[str, Any]


def run_demo(
    steps: int = DEFAULT_STEPS,
    text: str | Path | None = None,
    out: str | Path = "runs/demo",
    seed: int = 0,
    *,
    config: GPTConfig | None = None,
    batch: int = BATCH,
    say: Say = print,
) -> DemoResult:
    """Train a GPT on real text with a monitoring optimizer and report on it.

    Writes ``dashboard.png``, ``loss.csv``, ``history.jsonl``, ``history.csv`` and ``summary.json`` to
    ``out`` and nothing anywhere else. Torch's global generator is left as it was.

    Args:
        steps: optimizer steps, at least 1.
        text: a file to learn in place of Python's own sources and documentation.
        out: folder for the results, made if missing.
        seed: of the initial weights and of the batches.
        config: shape of the model; the default has 0.86 M parameters.
        batch: windows a step.
        say: takes every line of the report.

    Returns:
        The :class:`DemoResult`.

    Raises:
        InputError: ``steps``, ``text`` or ``out`` cannot be used; nothing was trained.
    """
    if steps < 1:
        raise InputError("steps", steps, "must be a whole number of at least 1")
    config = config or GPTConfig()
    corpus = _read(text)
    folder = _writable(Path(out))
    say(f"text        {corpus.description}")
    say(f"            {len(corpus.train):,} training bytes in {corpus.train_files} file(s), "
        f"{len(corpus.valid):,} validation bytes in {corpus.valid_files}")  # fmt: skip
    say(f"            sha256 {corpus.sha256}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT(config)
    size = sum(p.numel() for p in model.parameters())
    say(f"model       GPT, {size:,} parameters, context {config.context}, batch {batch}, {steps} steps, "
        f"{torch.get_num_threads()} thread(s)")  # fmt: skip

    opt = ThermoAdamW(
        model.named_parameters(),
        lr=LR,
        weight_decay=WEIGHT_DECAY,
        measure_every=1 if steps < FEW_STEPS else None,
        ema_steps=5 if steps < FEW_STEPS else 50,
    )
    start = time.perf_counter()
    unigram = unigram_entropy(corpus.valid)
    losses = LossCurve()
    try:
        _train(model, opt, corpus, steps, batch, seed, say, losses)
    except KeyboardInterrupt:
        _write_curves(folder, opt.history, losses)
        say(f"stopped after {len(losses.train)} steps; losses and readings lie in {folder}/")
        raise
    seconds = time.perf_counter() - start
    losses.unigram, valid_loss = unigram, losses.valid[-1]

    summary = {
        "text": {"description": corpus.description, "sha256": corpus.sha256}
        | {part: {"bytes": len(getattr(corpus, part)), "files": getattr(corpus, f"{part}_files")}
           for part in ("train", "valid")},
        "model": asdict(config) | {"parameters": size},
        "run": {"steps": steps, "batch": batch, "seed": seed, "lr": LR, "weight_decay": WEIGHT_DECAY},
        "loss": {"train": _tail(losses.train), "valid": valid_loss, "unigram": unigram},
        "seconds": round(seconds, 2),
        "threads": torch.get_num_threads(),
        "backend": opt.backend,
        "versions": _versions(),
    }  # fmt: skip
    _tell(opt, losses, valid_loss, unigram, say)
    say(f"time        {seconds:.1f} s for {steps} steps")
    _write(folder, opt.history, losses, summary, say)
    say(f"results lie in {folder}/")
    return DemoResult(folder, losses, valid_loss, unigram, summary)


def _train(
    model: GPT,
    opt: ThermoAdamW,
    corpus: Corpus,
    steps: int,
    batch: int,
    seed: int,
    say: Say,
    losses: LossCurve,
) -> None:
    context = model.config.context
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: _cosine(step, steps))
    draws = batches(corpus.train, batch, context, seed)
    # as many windows as do not overlap, up to 256: 16,384 bytes
    judges = windows(corpus.valid, max(1, min(256, len(corpus.valid) // context)), context)
    every = max(1, steps // EVALUATIONS)
    with _progress(steps, say) as advance:
        for step in range(1, steps + 1):
            inputs, targets = next(draws)
            loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
            opt.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            opt.step()
            schedule.step()
            losses.train_steps.append(step)
            losses.train.append(loss.item())
            if step % every == 0 or step == steps:
                losses.valid_steps.append(step)
                losses.valid.append(_evaluate(model, judges))
            if step % REFRESH == 0 or step == steps:
                reading = opt.reading
                advance(step, losses.train[-1], reading.total.sigma if reading else math.nan)


def _cosine(step: int, steps: int) -> float:
    """Warm up linearly, then half a cosine from 1 to the floor."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * done)) / 2


@torch.no_grad()
def _evaluate(model: GPT, pairs: tuple[Tensor, Tensor]) -> float:
    total = 0.0
    for inputs, targets in zip(pairs[0].split(128), pairs[1].split(128), strict=True):
        total += F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction="sum").item()
    return total / pairs[1].numel()


@contextmanager
def _progress(steps: int, say: Say) -> Iterator[Callable[[int, float, float], None]]:
    """Show a bar on a terminal, a line every few seconds elsewhere."""
    bar = _rich_bar() if sys.stdout.isatty() else None
    if bar is not None:
        with bar:
            task = bar.add_task("training", total=steps, loss=math.nan, sigma=math.nan)
            yield lambda step, loss, sigma: bar.update(task, completed=step, loss=loss, sigma=sigma)
        return
    start = last = time.perf_counter()

    def line(step: int, loss: float, sigma: float) -> None:
        nonlocal last
        now = time.perf_counter()
        if now - last >= PLAIN_SECONDS or step == steps:
            last = now
            left = (now - start) / step * (steps - step)
            say(f"step {step:>5}/{steps}   loss {loss:.3f}   σ {sigma:+.4f}   "
                f"{now - start:4.0f} s, {left:.0f} s left")  # fmt: skip

    yield line


def _rich_bar() -> Any | None:
    try:
        from rich import progress
    except ImportError:
        return None
    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("loss {task.fields[loss]:.3f}   σ {task.fields[sigma]:+.4f}"),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )


def _tell(opt: ThermoAdamW, losses: LossCurve, valid: float, unigram: float, say: Say) -> None:
    say("")
    reading = opt.reading
    if reading is None:
        say("no reading was completed: train for more steps")
    else:
        say(f"Five layers furthest from equilibrium (r = 1), at step {reading.step}")
        for row in _furthest(reading, 5):
            say(row)
        say("")
        for row in _split(opt.history, losses.train[0] - _tail(losses.train)):
            say(row)
        skipped = {cause: count for cause, count in reading.skipped.items() if count}
        if skipped:
            say(
                "measurements skipped: " + ", ".join(f"{count} × {cause}" for cause, count in skipped.items())
            )
    say("")
    say(f"loss        training {_tail(losses.train):.3f}, validation {valid:.3f} nats per byte; "
        f"without context (unigram entropy) {unigram:.3f}")  # fmt: skip


def _furthest(reading: Any, count: int) -> list[str]:
    """Lay out the layers of largest |log r| as a table."""
    total = reading.total.sigma
    layers = {name: x for name, x in reading.layers.items() if x.r > 0 and math.isfinite(x.r)}
    names = sorted(layers, key=lambda name: -abs(math.log(layers[name].r)))[:count]
    head = ("layer", "r", "", "σ", "share of σ", "gaussianity", "R_wd", "angular step")
    rows = [head]
    for name in names:
        x = layers[name]
        word = "coherent drift" if x.r > 1 else "intermittent"
        share = f"{x.sigma / total:+.1%}" if total else "-"
        cells = (f"{x.r:.2f}", word, f"{x.sigma:+.2e}", share)
        balance = "∞" if x.wd_balance == math.inf else f"{x.wd_balance:.2f}"
        rows.append((name, *cells, f"{x.gaussianity:.3f}", balance, f"{x.angular_step:.1e}"))
    return _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            c.ljust(w) if i in (0, 2) else c.rjust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    lines.insert(1, "  " + "  ".join("─" * w for w in widths))
    return lines


def _split(history: HistoryLike, fall: float) -> list[str]:
    """Say where the run's entropy production went, summed over its steps."""
    names = ("sigma", "d_eS", "d_iS", "d_iS_noise", "d_iS_momentum", "d_iS_wd")
    sigma, work, heat, noise, momentum, decay = (_integral(history, name) for name in names)
    return [
        f"Entropy production over the run: Σσ = {sigma:+.3g} nats per byte, first-order descent of every",
        f"step on its own batch; the training loss fell by {fall:.3g}",
        f"  productive work (d_eS)  {work:+9.3g}   fresh gradients agreeing with the way the weights move",
        f"  heat (d_iS)             {heat:+9.3g}   the rest, made of",
        f"    gradient noise        {noise:+9.3g}   steps that only this batch asked for",
        f"    momentum              {momentum:+9.3g}   motion that fresh gradients oppose: overshooting",
        f"    weight decay          {decay:+9.3g}   work of decay against the gradient",
    ]


def _integral(history: HistoryLike, name: str) -> float:
    """Sum over steps; a reading stands for the steps since the one before it."""
    y = np.nan_to_num(np.asarray(history.total(name), dtype=float))
    return float((y * np.diff(history.steps, prepend=0)).sum())


def _write_curves(folder: Path, history: Any, losses: LossCurve) -> None:
    history.export_jsonl(folder / "history.jsonl")
    history.export_csv(folder / "history.csv")
    valid = dict(zip(losses.valid_steps, losses.valid, strict=True))
    with (folder / "loss.csv").open("w", newline="") as f:
        table = csv.writer(f)
        table.writerow(["step", "train", "valid"])
        for step, loss in zip(losses.train_steps, losses.train, strict=True):
            table.writerow([step, loss, valid.get(step, "")])


def _write(folder: Path, history: Any, losses: LossCurve, summary: dict[str, Any], say: Say) -> None:
    _write_curves(folder, history, losses)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    where = Path(summary["text"]["description"]).name[:40]
    title = (
        f"GPT, {summary['model']['parameters'] / 1e6:.2f} M parameters, on {where}: validation "
        f"{summary['loss']['valid']:.3f} nats/byte after {summary['run']['steps']} steps"
    )
    try:
        plot_dashboard(history, losses, path=folder / "dashboard.png", title=title)
    except (ImportError, ValueError) as e:
        say(f"no dashboard: {e}")


def _read(text: str | Path | None) -> Corpus:
    try:
        return load_corpus(None if text is None else Path(text))
    except ValueError as e:
        raise InputError("text", text, str(e).removeprefix(f"{text}: ")) from e
    except OSError as e:
        why = e.strerror or str(e).removeprefix(f"{text}: ")
        raise InputError("text", text, f"{why}; must be a readable file of text") from e


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as e:
        raise InputError("out", folder, f"{e.strerror}; must be a folder that can be made and written") from e
    return folder


def _tail(train: list[float]) -> float:
    last = train[-50:]
    return sum(last) / len(last)


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}
    try:
        return versions | {"thermoopt": metadata.version("thermoopt")}
    except metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return versions
