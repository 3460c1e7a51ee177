"""Check every optimizer under Observer, diagnose and ThermoScheduler: one line each, then the counts."""

from __future__ import annotations

import argparse
import functools
import json
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from thermoopt.benchmarks.others.catalogue import PACKAGES, cases
from thermoopt.benchmarks.others.checks import STEPS, Case, Row, check, tuned

__all__ = ["main"]

RESULTS = Path(__file__).parents[1] / "results" / "others"


def main(argv: Sequence[str] | None = None) -> int:
    """Check them, update ``rows.jsonl`` and ``others.md``; return 1 if anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m thermoopt.benchmarks.others", description=__doc__)
    parser.add_argument("--package", nargs="*", choices=sorted(PACKAGES), help="check only these packages")
    parser.add_argument("--name", nargs="*", help="check only optimizers of these names")
    parser.add_argument("--missing", action="store_true", help="check only what is not in rows.jsonl yet")
    parser.add_argument(
        "--processes", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="(default: half the cores)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for rows.jsonl and others.md")
    args = parser.parse_args(argv)
    asked = tuple(args.package) if args.package else None
    names = [(c.package, c.name) for c in cases(asked) if not args.name or c.name in args.name]
    args.out.mkdir(parents=True, exist_ok=True)
    rows = _known(args.out)
    if args.missing:
        names = [name for name in names if name not in rows]
    with ProcessPoolExecutor(args.processes) as pool:
        for row in pool.map(_one, names):
            print(_line(row), flush=True)
            rows[row.package, row.name] = row
            _write(args.out, list(rows.values()))
    print(summary(list(rows.values())))
    return int(any(rows[name].wrong for name in names))


def _known(out: Path) -> dict[tuple[str, str], Row]:
    """Return the rows of an earlier run that is resumed."""
    file = out / "rows.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return {(row.package, row.name): row for row in (Row(**json.loads(line)) for line in lines)}


def _write(out: Path, rows: Sequence[Row]) -> None:
    text = "".join(json.dumps(row.to_dict()) + "\n" for row in rows)
    (out / "rows.jsonl").write_text(text, encoding="utf-8")
    (out / "others.md").write_text(page(rows), encoding="utf-8")


def _one(name: tuple[str, str]) -> Row:
    torch.set_num_threads(1)
    case = _cases(name[0])[name[1]]
    if case.distributed and not torch.distributed.is_initialized():
        torch.distributed.init_process_group(
            "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
        )
    try:
        lrs = tuned(case)
    except Exception as error:
        return Row(*name, unusable=f"{type(error).__name__}: {error}".split("\n")[0])
    return check(case, lrs)


@functools.cache
def _cases(package: str) -> dict[str, Case]:
    """Optimizers of a package by name, imported once per process."""
    return {case.name: case for case in cases((package,))}


def _line(row: Row) -> str:
    state = (
        f"refused: {row.refused}" if row.refused else f"unusable: {row.unusable}" if row.unusable else "ok"
    )
    if row.wrong:
        state = "WRONG " + "; ".join(row.wrong)
    return f"{row.package}.{row.name} lr {row.lr} loss {row.loss[0]:.3g} -> {row.loss[1]:.3g}: {state}"


def summary(rows: Sequence[Row]) -> str:
    """Return the count by package, and of all."""
    lines = []
    for package in dict.fromkeys(row.package for row in rows):
        lines.append(f"{package}: {_count([r for r in rows if r.package == package])}")
    return "\n".join([*lines, f"all: {_count(rows)}"])


def _count(rows: Sequence[Row]) -> str:
    kinds = Counter(kind_of(row) for row in rows)
    return f"{len(rows)} {'optimizer' if len(rows) == 1 else 'optimizers'}, " + ", ".join(
        f"{kinds[kind]} {kind}" for kind in ("clean", "untrained", "wrong", "refused", "unusable")
    )


def kind_of(row: Row) -> str:
    """The result for an optimizer in one word."""
    if row.wrong:
        return "wrong"
    if row.refused:
        return "refused"
    if row.unusable:
        return "unusable"
    return "clean" if row.trained else "untrained"


def page(rows: Sequence[Row]) -> str:
    """Return the results as Markdown."""
    packages = {row.package for row in rows}
    lines = [
        "# Every optimizer under Observer, diagnose and ThermoScheduler",
        "",
        f"Each optimizer takes {STEPS} steps of a small classifier, at the learning rate that is best after "
        "a quarter of them: its default, 3e-4, 3e-3, 3e-2 or 0.3. If that run ends above three quarters of "
        "its first loss, the next best rate is taken. `python -m thermoopt.benchmarks.others` makes this "
        "page.",
        "",
        "- *clean*: nothing crashes and every step is counted once. Weights and optimizer state have the "
        "same bits as without thermoopt, and the schedule has the bits of torch's. Sigma, norms and distance "
        "agree with a float64 account. There is no finding of HIGH or MEDIUM confidence.",
        "- *untrained*: clean, but no learning rate gives a healthy run, so findings are not judged.",
        "- *wrong*: one of these fails.",
        "- *refused*: the observer says why it cannot measure it.",
        "- *unusable*: the optimizer fails by itself.",
        "",
        ", ".join(f"{p} {_version(p)}" for p in sorted(packages)) + ".",
        "",
        "```",
        summary(rows),
        "```",
    ]
    others = [row for row in rows if kind_of(row) != "clean"]
    if others:
        lines += ["", "| optimizer | result | reason |", "| --- | --- | --- |"]
    for row in others:
        loss = f"loss {row.loss[0]:.3g} to {row.loss[1]:.3g} at lr {row.lr}"
        text = "; ".join(row.wrong) or row.refused or row.unusable or loss
        lines.append(f"| {row.package}.{row.name} | {kind_of(row)} | {text.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def _version(package: str) -> str:
    for name in (package, {"optimi": "torch-optimi"}.get(package, package)):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "(unknown)"
