"""Progress of the demo: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = ["PLAIN_SECONDS", "progress"]

PLAIN_SECONDS = 5.0
"""Between progress lines where there is no terminal: a run of minutes then fills one screen."""


@contextmanager
def progress(
    names: Sequence[str], steps: int, say: Callable[[str], None]
) -> Iterator[Callable[[int, Sequence[float]], None]]:
    """Show steps, time and one loss per name.

    Args:
        names: names of the models being trained.
        steps: length of the run.
        say: receives the lines.

    Yields:
        A function to call with the step and the losses, in the order of ``names``.
    """

    def words(losses: Sequence[float]) -> str:
        return "loss  " + "   ".join(f"{n} {x:.3f}" for n, x in zip(names, losses, strict=True))

    bar = _rich_bar() if sys.stdout.isatty() else None
    if bar is not None:
        with bar:
            task = bar.add_task("training", total=steps, words="")
            yield lambda step, losses: bar.update(task, completed=step, words=words(losses))
        return
    start = last = time.perf_counter()

    def line(step: int, losses: Sequence[float]) -> None:
        nonlocal last
        now = time.perf_counter()
        if now - last >= PLAIN_SECONDS or step == steps:
            last = now
            left = (now - start) / step * (steps - step)
            say(f"step {step:>5}/{steps}   {words(losses)}   {now - start:4.0f} s, {left:.0f} s left")

    yield line


def _rich_bar() -> Any | None:
    try:
        from rich import progress as rich
    except ImportError:
        return None
    return rich.Progress(
        rich.BarColumn(bar_width=20),
        rich.MofNCompleteColumn(),
        rich.TextColumn("{task.fields[words]}"),
        rich.TimeElapsedColumn(),
        rich.TimeRemainingColumn(),
    )
