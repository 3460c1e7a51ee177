"""Compare methods and control laws on workloads of many families.

Every run is a row; runs that have a row are not repeated, so a stopped command resumes where it stopped.

    python -m thermoopt.benchmarks.families methods       # run everything, then write the tables
    python -m thermoopt.benchmarks.families law mine 'lambda steps: autotune(steps)'  # run a law, one seed
    python -m thermoopt.benchmarks.families choose a b c  # choose among laws that were run
    python -m thermoopt.benchmarks.families schedulers    # autotune over other optimizers or without a length
    python -m thermoopt.benchmarks.families report        # write the tables only
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from thermoopt.benchmarks.families.cases import (
    CHOSEN_ON,
    DEVELOPMENT,
    LONG,
    LRS,
    SEEDS,
    TUNED,
    Case,
    cells,
)
from thermoopt.benchmarks.families.laws import law
from thermoopt.benchmarks.families.ratios import chosen_lrs, ratios, reference_rows, reported, whole_grids
from thermoopt.benchmarks.families.report import choice_table, law_table, write_report
from thermoopt.benchmarks.families.runs import run_all
from thermoopt.benchmarks.families.schedulers import SIX, run_comparisons, write_comparisons
from thermoopt.benchmarks.harness.rows import read_rows
from thermoopt.benchmarks.methods import METHODS
from thermoopt.benchmarks.workloads import FURTHER, HELD_OUT, WORKLOADS

__all__ = ["main"]

RESULTS = Path("benchmarks/results/families")
LAWS = Path("runs/families")
COMPARED = (
    *TUNED,
    "adamw fixed",
    "nadamw fixed",
    "prodigy",
    "schedule-free",
    "schedule-free+",
    "dadapt-adam",
    "momo-adam",
    "autotune",
)
"""Methods of the tables."""

BOTH = ("autotune",)
"""Methods run both without and with a reported loss; the others ignore it or require it."""


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    args = _parser().parse_args(argv)
    args.act(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m thermoopt.benchmarks.families",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument(
        "--out", type=Path, default=RESULTS, help=f"folder of the methods' rows (default: {RESULTS})"
    )
    where.add_argument("--laws", type=Path, default=LAWS, help=f"folder of the laws' rows (default: {LAWS})")

    methods = actions.add_parser(
        "methods", parents=[_what(SEEDS), where], help="run methods, and tune those that need it"
    )
    methods.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=list(COMPARED),
        metavar="NAME",
        help="default: those of the tables",
    )
    methods.add_argument(
        "--chosen-on", nargs="+", type=int, default=list(CHOSEN_ON), help="seeds to tune on (default: 100)"
    )
    methods.set_defaults(act=_methods)

    one = actions.add_parser("law", parents=[_what(SEEDS[:1]), where], help="run a law and print its ratios")
    one.add_argument("name", help="its name in tables, and that of the file of its rows")
    one.add_argument(
        "source", help="expression or module:function that maps a number of steps to a controller"
    )
    one.add_argument(
        "--told", choices=("no", "yes", "both"), default="both", help="whether training losses are reported"
    )
    one.set_defaults(act=_law)

    choose = actions.add_parser(
        "choose", parents=[where], help="choose among laws, leaving out each family in turn"
    )
    choose.add_argument("names", nargs="+", help="laws that were run, or methods with rows")
    choose.add_argument(
        "--told", choices=("no", "yes"), default="no", help="take runs with losses reported (default: no)"
    )
    choose.set_defaults(act=_choose)

    schedulers = actions.add_parser(
        "schedulers",
        parents=[_what(SEEDS), where],
        help="run autotune over SGD, Lion and Muon, and without a length",
    )
    schedulers.set_defaults(act=_schedulers)

    report = actions.add_parser("report", parents=[where], help="write the tables from the methods' rows")
    report.add_argument("--commit", default="", help="commit of the held-out figures, for the page")
    report.set_defaults(act=_report)
    return parser


def _what(seeds: Sequence[int]) -> argparse.ArgumentParser:
    """Return the arguments that say what to run, new for each parser: shared ones would share defaults."""
    what = argparse.ArgumentParser(add_help=False)
    what.add_argument(
        "--workloads",
        nargs="+",
        choices=WORKLOADS,
        metavar="NAME",
        help="of `thermoopt bench list` (default: the development workloads)",
    )
    what.add_argument(
        "--held-out",
        action="store_true",
        help="run the held-out workloads (once for each version)",
    )
    what.add_argument(
        "--further", action="store_true", help="run the further networks, on which the default was looked at"
    )
    what.add_argument(
        "--long",
        type=int,
        default=1,
        metavar="FACTOR",
        help=f"factor on the horizon; above 1, the default workloads are {', '.join(LONG)}",
    )
    what.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=list(seeds),
        help=f"default: {', '.join(map(str, seeds))}",
    )
    what.add_argument("--workers", type=int, default=2, help="processes with one thread each (default: 2)")
    return what


def _cells(args: argparse.Namespace) -> list[tuple[str, int]]:
    chosen = HELD_OUT * args.held_out + FURTHER * args.further
    default = chosen or (LONG if args.long > 1 else DEVELOPMENT)
    return cells(tuple(args.workloads or default), args.long)


def _methods(args: argparse.Namespace) -> None:
    path = args.out / "rows.jsonl"
    wanted = _cells(args)
    for method in args.methods:
        if method in TUNED:
            grids = whole_grids(list(read_rows(path)), method)
            untuned = [cell for cell in wanted if len(grids.get(cell, ())) < 2]  # else each by the others
            grid = [
                Case(*cell, method, lr, s, True) for s in args.chosen_on for cell in untuned for lr in LRS
            ]
            rows = run_all(path, grid, args.workers)
            todo = [
                Case(*cell, method, lr, seed, True)
                for seed in args.seeds
                for cell, lr in chosen_lrs(rows, method, seed).items()
                if cell in wanted
            ]
        else:
            told = (False, True) if method in BOTH else (True,)
            todo = [
                Case(*cell, method, None, seed, t) for seed in args.seeds for t in told for cell in wanted
            ]
        run_all(path, todo, args.workers)
    _report(args)


def _law(args: argparse.Namespace) -> None:
    try:
        law(args.source)
    except ValueError as error:
        sys.exit(str(error))
    told = {"no": (False,), "yes": (True,), "both": (False, True)}[args.told]
    todo = [
        Case(*cell, args.name, None, seed, t) for seed in args.seeds for t in told for cell in _cells(args)
    ]
    rows = run_all(args.laws / f"{args.name}.jsonl", todo, args.workers, args.source)
    own = [row for row in rows if row["source"] == args.source]
    reference = reference_rows(list(read_rows(args.out / "rows.jsonl")))
    print(law_table({t: ratios(reported(own, args.name, t), reference) for t in told}))


def _choose(args: argparse.Namespace) -> None:
    """Choose by the first seed, report all seeds that were run."""
    known = list(read_rows(args.out / "rows.jsonl"))
    reference, told = reference_rows(known), args.told == "yes"
    first, all_seeds = {}, {}
    for name in args.names:
        rows = known if name in METHODS else list(read_rows(args.laws / f"{name}.jsonl"))
        if not rows:
            sys.exit(f"{args.laws / name}.jsonl has no rows: run `law {name}` first")
        first[name] = ratios(reported(rows, name, told, SEEDS[:1]), reference)
        all_seeds[name] = ratios(reported(rows, name, told), reference)
    print(choice_table(first, all_seeds))


def _schedulers(args: argparse.Namespace) -> None:
    wanted = cells(tuple(args.workloads or SIX), args.long)
    rows = run_comparisons(args.out / "schedulers.jsonl", wanted, args.seeds, args.workers)
    write_comparisons(args.out, rows)


def _report(args: argparse.Namespace) -> None:
    write_report(args.out, list(read_rows(args.out / "rows.jsonl")), getattr(args, "commit", ""))


if __name__ == "__main__":
    main()
