"""The arguments of the command ``thermoopt bench``. Its actions are imported only when they run."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

__all__ = ["add_bench", "bench"]

EXTRA = {"optuna", "sqlalchemy", "scipy", "rich", "mnist1d", "sklearn", "tomli"}
"""Modules of the extra ``bench`` that a sweep needs."""


def add_bench(commands: argparse._SubParsersAction) -> None:
    """Add the command to those of ``thermoopt``."""
    parser = commands.add_parser(
        "bench",
        help="compare optimizers and schedules at equal tuning budgets, on one machine or many",
        description="Compare optimizers, schedules and control laws at equal tuning budgets: sweeps that can "
        "be stopped and resumed at any moment, on one machine or many, and a report of them.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    run = actions.add_parser("run", help="start a sweep", description="Start a sweep.")
    run.add_argument(
        "--tier", required=True, metavar="NAME", help="tier of the protocol; `list` shows the names"
    )
    _add_protocol(run)
    run.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for everything (default: runs/bench/TIER)"
    )
    _add_work(run)

    resume = actions.add_parser(
        "resume", help="resume a sweep", description="Resume a sweep, however it was stopped."
    )
    resume.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the sweep")
    resume.add_argument(
        "--retry-failed", action="store_true", help="also rerun trials that raised an error or died twice"
    )
    _add_work(resume)

    status = actions.add_parser(
        "status", help="show the progress of a sweep", description="Show the progress of a sweep."
    )
    report = actions.add_parser(
        "report",
        help="write tables and figures of what is finished",
        description="Write tables and figures of what is finished.",
    )
    for action in (status, report):
        action.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the sweep")
        _add_storage(action)
    report.add_argument(
        "--to", type=Path, metavar="DIR", help="folder for the report (default: report in --out)"
    )

    listed = actions.add_parser(
        "list", help="show tiers, workloads and methods", description="Show tiers, workloads and methods."
    )
    _add_protocol(listed)
    for name, action in actions.choices.items():
        action.set_defaults(parser=action, action=name)


def _add_work(parser: argparse.ArgumentParser) -> None:
    _add_storage(parser)
    parser.add_argument(
        "--workers",
        type=_workers,
        default=os.cpu_count(),
        metavar="N",
        help="number of processes (default: one per core)",
    )
    parser.add_argument(
        "--workloads", nargs="+", metavar="NAME", help="run only these of the tier's workloads"
    )
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="run only these of the tier's methods")


def _add_protocol(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--protocol",
        type=Path,
        metavar="FILE",
        help="file that defines the tiers (default: the one that comes with thermoopt)",
    )


def _add_storage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--storage",
        metavar="URL",
        help="SQLAlchemy URL of the database (default: a SQLite file in the sweep's folder)",
    )


def _workers(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number of at least 1")
    return int(text)


def bench(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        Exit status: 0 all done, 1 something failed or is left, 130 stopped by the keyboard.

    Raises:
        SystemExit: with status 2, for arguments that cannot be used.
    """
    try:
        from thermoopt.benchmarks.sweeps import actions
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        refused = f"{error.name} is missing: pip install 'thermoopt[bench]'"
    else:
        try:
            return actions.ACTIONS[args.action](args)
        except actions.REFUSED as error:
            refused = str(error)
    parser: argparse.ArgumentParser = args.parser
    parser.error(refused)
