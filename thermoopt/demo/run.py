"""Run the demo: train three ways, say what was measured, and write it down."""

from __future__ import annotations

import csv
import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thermoopt.controllers import Action
from thermoopt.demo.account import account, compared, figures
from thermoopt.demo.corpus import Corpus, load_corpus, unigram_entropy
from thermoopt.demo.defaults import DEFAULT_STEPS
from thermoopt.demo.gpt import GPT, GPTConfig
from thermoopt.demo.progress import progress
from thermoopt.demo.ways import CLIP, WARMUP, WEIGHT_DECAY, Way, three_ways, train
from thermoopt.inspection import InputError, actions_in_words
from thermoopt.plots import ComparedRun, LossCurve, plot_comparison, plot_dashboard

__all__ = ["DemoResult", "run_demo"]

BATCH = 16
"""Windows a step; the default run then reads a third of its text."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class DemoResult:
    """What a demo run leaves behind.

    Attributes:
        out: folder with all files.
        losses: the loss curve of the autotuned way.
        valid_loss: its final validation loss in nats a byte.
        unigram: entropy of the validation bytes without context.
        summary: what ``summary.json`` holds.
        curves: loss curves of all ways, by folder.
    """

    out: Path
    losses: LossCurve
    valid_loss: float
    unigram: float
    summary: dict[str, Any]
    curves: dict[str, LossCurve]


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
    """Train a GPT on real text three ways side by side and report on them.

    The three ways are AdamW + cosine at lr 1e-3 and at ten times that, both measured, and ThermoAdamW
    autotuned, which is given no lr. They share initial weights and batches.

    Writes ``compare.png``, ``dashboard.png`` (of the autotuned way) and ``summary.json`` to ``out``. A
    subfolder for each way holds ``loss.csv``, ``history.jsonl``, ``history.csv`` and, with a controller,
    ``actions.jsonl``. Nothing is written elsewhere. Torch's global generator is left as it was.

    Args:
        steps: optimizer steps of each way, at least 1.
        text: a file to learn instead of Python's own sources and documentation.
        out: folder for the results, created if missing.
        seed: seed of the initial weights and of the batches.
        config: shape of the model; the default has 0.86 M parameters.
        batch: windows per step.
        say: called with every line of the report.

    Returns:
        The :class:`DemoResult`.

    Raises:
        InputError: if ``steps``, ``text`` or ``out`` cannot be used; nothing was trained.
        KeyboardInterrupt: when stopped; what all ways had done by then has been written.
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
    ways = three_ways(model, steps)
    given = ", ".join(f"{way.lr:g}" for way in ways if way.lr is not None)
    say(f"ways        AdamW + cosine at lr {given}, and ThermoAdamW autotuned without one; same weights,")
    say(f"            same batches, weight decay {WEIGHT_DECAY:g}, gradients clipped at {CLIP:g}")

    start = time.perf_counter()
    try:
        with progress([way.name for way in ways], steps, say) as advance:
            train(ways, corpus, steps, batch, seed, advance)
    except KeyboardInterrupt:
        _write_records(folder, ways)
        say(f"stopped after {len(ways[0].losses.train)} steps of each way; losses, readings and actions "
            f"are in {folder}/")  # fmt: skip
        raise
    seconds = time.perf_counter() - start
    unigram = unigram_entropy(corpus.valid)
    for way in ways:
        way.losses.unigram = unigram

    summary = {
        "text": {"description": corpus.description, "sha256": corpus.sha256}
        | {part: {"bytes": len(getattr(corpus, part)), "files": getattr(corpus, f"{part}_files")}
           for part in ("train", "valid")},
        "model": asdict(config) | {"parameters": size},
        "run": {"steps": steps, "batch": batch, "seed": seed, "weight_decay": WEIGHT_DECAY,
                "warmup": WARMUP, "clip": CLIP},
        "ways": {way.folder: figures(way, steps) for way in ways},
        "unigram": unigram,
        "seconds": round(seconds, 2),
        "threads": torch.get_num_threads(),
        "versions": _versions(),
    }  # fmt: skip
    auto = ways[-1]
    for line in (
        "",
        f"After {steps} steps; losses in nats per byte ({unigram:.3f} without context: unigram entropy)",
        *compared(ways, steps),
        "",
        "The autotuned way",
        *account(auto),
        "",
        *actions_in_words(auto.actions),
        "",
        f"time        {seconds:.1f} s for {len(ways)} × {steps} steps",
    ):
        say(line)
    _write(folder, ways, summary, say)
    say(f"results     {folder}/")
    return DemoResult(
        folder, auto.losses, auto.losses.valid[-1], unigram, summary, {way.folder: way.losses for way in ways}
    )


def _write_records(folder: Path, ways: Sequence[Way]) -> None:
    for way in ways:
        own = folder / way.folder
        own.mkdir(exist_ok=True)
        way.optimizer.history.export_jsonl(own / "history.jsonl")
        way.optimizer.history.export_csv(own / "history.csv")
        valid = dict(zip(way.losses.valid_steps, way.losses.valid, strict=True))
        with (own / "loss.csv").open("w", newline="") as f:
            table = csv.writer(f)
            table.writerow(["step", "train", "valid"])
            for step, loss in zip(way.losses.train_steps, way.losses.train, strict=True):
                table.writerow([step, loss, valid.get(step, "")])
        if way.optimizer.controller is not None:
            with (own / "actions.jsonl").open("w") as f:
                for action in way.actions:
                    f.write(json.dumps(_plain(action), allow_nan=False) + "\n")


def _plain(action: Action) -> dict[str, Any]:
    """Return an action as JSON holds it: an error that is not known becomes null, as in the history."""
    evidence = {k: [x if math.isfinite(x) else None for x in v] for k, v in action.evidence.items()}
    return {**action.to_dict(), "evidence": evidence}


def _write(folder: Path, ways: Sequence[Way], summary: dict[str, Any], say: Say) -> None:
    _write_records(folder, ways)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")
    where = Path(summary["text"]["description"]).name[:40]
    what = f"GPT, {summary['model']['parameters'] / 1e6:.2f} M parameters, on {where}"
    steps = summary["run"]["steps"]
    auto = ways[-1]
    runs = [
        ComparedRun(way.name, way.optimizer.history, way.losses, way.actions, way.group_names) for way in ways
    ]
    title = f"{what}: autotuned, validation {auto.losses.valid[-1]:.3f} nats/byte after {steps} steps"
    try:
        plot_comparison(runs, path=folder / "compare.png", title=f"{what}: {steps} steps three ways")
        plot_dashboard(auto.optimizer.history, auto.losses, path=folder / "dashboard.png", title=title)
    except (ImportError, ValueError) as e:
        say(f"no pictures: {e}")


def _read(text: str | Path | None) -> Corpus:
    try:
        return load_corpus(None if text is None else Path(text))
    except ValueError as e:
        raise InputError("text", text, str(e).removeprefix(f"{text}: ")) from e
    except OSError as e:
        why = e.strerror or str(e).removeprefix(f"{text}: ")
        raise InputError("text", text, f"{why}; must be a readable text file") from e


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as e:
        raise InputError("out", folder, f"{e.strerror}; must be a writable folder") from e
    return folder


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}
    try:
        return versions | {"thermoopt": metadata.version("thermoopt")}
    except metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return versions
