"""The actions of ``thermoopt bench``."""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
import textwrap
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import sqlalchemy
from optuna.exceptions import StorageInternalError

from thermoopt.benchmarks.harness.environment import read_environment, record_environment
from thermoopt.benchmarks.harness.folder import Folder, FolderError
from thermoopt.benchmarks.harness.room import DiskFull, disk_full
from thermoopt.benchmarks.methods import METHODS
from thermoopt.benchmarks.report.table import append_row, read_rows, read_table, row_key, rows_file
from thermoopt.benchmarks.report.tally import Tally, duration
from thermoopt.benchmarks.sweeps.progress import Display
from thermoopt.benchmarks.sweeps.protocol import Cell, Protocol, ProtocolError, read_tiers, unknown
from thermoopt.benchmarks.sweeps.storage import GRACE, HEARTBEAT, StorageError, masked, opened
from thermoopt.benchmarks.sweeps.studies import Studies
from thermoopt.benchmarks.sweeps.sweep import Sweep
from thermoopt.benchmarks.sweeps.worker import reason
from thermoopt.benchmarks.workloads import WORKLOADS
from thermoopt.inspection import Table

__all__ = ["ACTIONS", "REFUSED", "work"]

REFUSED = (DiskFull, FolderError, ProtocolError, StorageError)
"""Errors whose message says what is wrong with the arguments and what to do."""


def run(args: argparse.Namespace) -> int:
    """Start a sweep."""
    protocol = Protocol.load(args.tier, args.protocol)
    cells = _chosen(protocol, args.workloads, args.methods)
    _check_packages(cells)
    out = args.out or Path("runs/bench") / protocol.tier
    Folder.check(out)
    if args.storage is not None:  # before anything is made
        with opened(args.storage) as storage:
            Studies(storage, protocol, args.storage).check()
    return work(Folder.make(out, protocol, args.storage), cells, args.workers)


def resume(args: argparse.Namespace) -> int:
    """Resume a sweep."""
    folder = Folder.open(args.out, args.storage)
    cells = _chosen(folder.protocol, args.workloads, args.methods)
    _check_packages(cells)
    return work(folder, cells, args.workers, again=args.retry_failed)


def work(
    folder: Folder,
    cells: list[Cell],
    workers: int,
    *,
    again: bool = False,
    heartbeat: int = HEARTBEAT,
    grace: int = GRACE,
    live: bool | None = None,
) -> int:
    """Run the remaining trials of a sweep.

    Args:
        folder: folder of the sweep.
        cells: studies to work on.
        workers: number of processes.
        again: whether to repeat failed trials.
        heartbeat, grace: as in :func:`open_storage`.
        live: as in :class:`Display`.

    Returns:
        Exit status: 0 if all is done, 1 if trials failed or remain, 130 after an interrupt from the keyboard.

    Raises:
        StorageError: if the storage cannot be used.
    """
    with opened(folder.storage, heartbeat=heartbeat, grace=grace) as storage:
        studies = Studies(storage, folder.protocol, folder.storage, cells)
        studies.check()
        try:
            trouble = _sweep(folder, studies, workers, again, heartbeat, grace, live)
        except KeyboardInterrupt:
            print(f"stopped; resume with: thermoopt bench resume --out {folder.out}", file=sys.stderr)
            return 130
        except (OSError, StorageInternalError) as error:
            if not (disk_full(error) or isinstance(error, StorageInternalError)):
                raise
            trouble = [reason(error)]
        return _conclude(folder, studies, trouble)


def _sweep(
    folder: Folder, studies: Studies, workers: int, again: bool, heartbeat: int, grace: int, live: bool | None
) -> list[str]:
    """Set up and run the sweep; return why workers had to stop."""
    record_environment(folder.out / "environment.json", workers)
    print(f"setting up {len(studies.cells)} studies in {masked(folder.storage)}", flush=True)
    studies.make(read_rows(rows_file(folder.out), print), again=again)
    _complete_file(folder)
    tally = Tally.of(studies)
    if tally.total.done:
        print(f"{tally.total.done} of {tally.total.total} trials are done", flush=True)
    with Display(tally, workers, live) as display:
        sweep = Sweep(studies, folder.storage, folder.out, workers, display, heartbeat, grace)
        sweep.run()
    return sweep.trouble


def _conclude(folder: Folder, studies: Studies, trouble: list[str]) -> int:
    """Print how a sweep ended."""
    for why in dict.fromkeys(trouble):
        print(f"the sweep had to stop: {why}", file=sys.stderr)
    try:
        tally = Tally.of(studies)
    except (DiskFull, StorageInternalError) as error:
        if reason(error) not in trouble:
            print(f"the storage cannot be read: {reason(error)}", file=sys.stderr)
        print(f"resume with: thermoopt bench resume --out {folder.out}", file=sys.stderr)
        return 1
    _failures(tally)
    total = tally.total
    left = total.waiting + total.running
    print(f"{total.done} of {total.total} trials are done, {total.failed} failed, {left} are left")
    if tally.peak_mb:
        print(f"peak memory of a worker: {tally.peak_mb:.0f} MB")
    if left:
        print(f"resume with: thermoopt bench resume --out {folder.out}", file=sys.stderr)
    else:
        print(f"tables and figures: thermoopt bench report --out {folder.out}")
    return 1 if left or total.failed else 0


def _complete_file(folder: Folder) -> None:
    """Add rows to the file that only the storage has, from a worker that was stopped between the two."""
    path = rows_file(folder.out)
    there = {row_key(row) for row in read_rows(path, lambda line: None)}
    for row in read_table(folder.storage, None, folder.protocol.hash):
        if row_key(row) not in there:
            append_row(path, row)


def status(args: argparse.Namespace) -> int:
    """Show the progress of a sweep."""
    folder = Folder.open(args.out, args.storage)
    if not _there(folder.storage):
        raise FolderError(
            f"{masked(folder.storage)} is missing; `resume` makes it again, with the rows of "
            f"{rows_file(args.out)}"
        )
    with opened(folder.storage) as storage:
        studies = Studies(storage, folder.protocol, folder.storage)
        studies.check()
        tally = Tally.of(studies)
    total = tally.total
    protocol = folder.protocol
    title = (
        f"tier {protocol.tier}, protocol {protocol.hash[:12]}: {total.done} done, {total.running} running, "
        f"{total.waiting} waiting, {total.failed} failed"
    )
    _show(tally.table(title))
    environment = read_environment(folder.out / "environment.json") or {}
    latest = [environment, *environment.get("resumed", [])]
    workers = next((e["workers"] for e in reversed(latest) if "workers" in e), 1)
    seconds = tally.seconds_left(workers)
    if seconds:
        print(f"about {duration(seconds)} left with {workers} workers")
    _failures(tally)
    if tally.peak_mb:
        print(f"peak memory of a worker: {tally.peak_mb:.0f} MB")
    return 0


def report(args: argparse.Namespace) -> int:
    """Write tables and figures."""
    from thermoopt.benchmarks.report.sweep import write_report

    folder = Folder.open(args.out, args.storage)
    storage = folder.storage if _there(folder.storage) else None
    if storage is None:
        _warn(f"{masked(folder.storage)} is missing: rows are those of {rows_file(args.out)}")
    rows = read_table(storage, args.out, folder.protocol.hash, _warn)
    if not rows:
        raise FolderError(f"{args.out} has no finished trials yet")
    planned = {(c.workload, c.steps, c.method, c.seed) for c in folder.protocol.cells()}
    environment = read_environment(folder.out / "environment.json")
    try:
        path = write_report(rows, args.to or args.out / "report", environment=environment, planned=planned)
    except OSError as error:
        raise FolderError(f"{args.to or args.out / 'report'} cannot be written: {error.strerror}") from error
    print(f"report of {len(rows)} trials: {path}")
    return 0


def catalogue(args: argparse.Namespace) -> int:
    """Show tiers, workloads and methods."""
    width = min(110, shutil.get_terminal_size().columns)

    def entry(name: str, facts: str, about: str) -> None:
        print(f"  {name}: {facts}")
        print(textwrap.fill(about, width, initial_indent=6 * " ", subsequent_indent=6 * " "))

    print("tiers")
    for name, table in read_tiers(args.protocol).items():
        tier = Protocol.of(name, table)
        trials = sum(tier.points(cell.method) for cell in tier.cells())
        points = f"{tier.budget} points per method and seed, {len(tier.seeds)} seeds"
        entry(name, f"{trials} trials, {points}, protocol {tier.hash[:12]}", tier.about)
        entry("workloads", ", ".join(tier.workloads), "methods: " + ", ".join(tier.methods))
    print("workloads, with the steps of the short and the long horizon and the metric")
    for w in WORKLOADS.values():
        needs = f", needs {w.optional}" if w.optional else ""
        entry(w.name, f"{' or '.join(map(str, w.horizons))} steps, {w.metric}{needs}", w.about)
    print("methods, with what is tuned")
    for m in METHODS.values():
        needs = f", needs {m.needs}" if m.needs else ""
        entry(m.name, (", ".join(m.tunables) or "nothing") + needs, m.about)
    return 0


ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": run,
    "resume": resume,
    "status": status,
    "report": report,
    "list": catalogue,
}
"""What each action calls."""


def _chosen(protocol: Protocol, workloads: list[str] | None, methods: list[str] | None) -> list[Cell]:
    """Return the tier's cells for the given workloads and methods."""
    for given, known, what in (
        (workloads, protocol.workloads, "workload"),
        (methods, protocol.methods, "method"),
    ):
        for name in given or ():
            if name not in known:
                raise ProtocolError(f"{unknown(what, name, known)} (in tier {protocol.tier!r})")
    return [
        c
        for c in protocol.cells()
        if (workloads is None or c.workload in workloads) and (methods is None or c.method in methods)
    ]


def _check_packages(cells: list[Cell]) -> None:
    """Raise if a workload or method needs a package that is not installed."""
    missing = {}
    for name in dict.fromkeys(c.method for c in cells):
        needs = METHODS[name].needs
        if needs is not None and importlib.util.find_spec(needs) is None:
            missing[f"method {name!r}"] = needs
    for name in dict.fromkeys(c.workload for c in cells):
        package = WORKLOADS[name].optional
        if package is not None and not _installed(package):
            missing[f"workload {name!r}"] = package
    if missing:
        which = "; ".join(f"{what} needs {package}" for what, package in missing.items())
        packages = " ".join(dict.fromkeys(missing.values()))
        raise ProtocolError(
            f"{which}: not installed. pip install {packages}, or choose others with --workloads and --methods"
        )


def _installed(package: str) -> bool:
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _there(url: str) -> bool:
    """Whether a storage may exist: False only for a missing SQLite file."""
    parts = sqlalchemy.make_url(url)
    return parts.get_backend_name() != "sqlite" or not parts.database or Path(parts.database).exists()


def _failures(tally: Tally) -> None:
    for failure in tally.failures:
        print(f"failed: {failure.cell.name}, k {failure.k}: {failure.why}", file=sys.stderr)


def _show(table: Table) -> None:
    print("\n".join(table.lines(shutil.get_terminal_size().columns if sys.stdout.isatty() else 1000)))


def _warn(line: str) -> None:
    print(line, file=sys.stderr)
