"""The command ``thermoopt``."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from thermoopt.benchmarks.sweeps.command import add_bench, bench
from thermoopt.demo import DEFAULT_STEPS
from thermoopt.inspection import InputError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; None reads the command line's.

    Returns:
        Exit status: 0 for success, 1 if a kernel fails the doctor's test, 130 after an interrupt from the
            keyboard, 141 if the output was closed.

    Raises:
        SystemExit: with status 2 for invalid arguments; with 0 after help or version.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot encode σ shows "?"
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        return {"demo": _demo, "inspect": _inspect, "bench": bench, "doctor": _doctor}[args.command](args)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader has gone, as with `| head`; buffered output must not raise again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _demo(args: argparse.Namespace) -> int:
    from thermoopt.demo import run_demo

    try:
        run_demo(args.steps, getattr(args, "text", None), args.out, args.seed)
    except InputError as e:
        args.parser.error(f"argument --{e.argument}: {str(e.value)!r}: {e.why}")
    return 0


def _inspect(args: argparse.Namespace) -> int:
    from thermoopt.inspection import inspect_run

    try:
        if args.follow:
            _follow(args)
        else:
            run = args.run[0] if len(args.run) == 1 else args.run
            inspect_run(run, args.out, args.html, args.actions, since=args.since, layers=args.layers)
    except InputError as e:
        name = "RUN" if e.argument == "run" else f"--{e.argument}"
        args.parser.error(f"argument {name}: {str(e.value)!r}: {e.why}")
    return 0


def _follow(args: argparse.Namespace) -> None:
    """Follow the given run; pictures and pages are for runs that are over."""
    from thermoopt.inspection import follow_run

    for name in ("out", "html", "actions"):
        if getattr(args, name) is not None:
            args.parser.error(f"argument --follow: cannot be combined with --{name}")
    if len(args.run) > 1 or args.run[0].is_dir():
        args.parser.error("argument --follow: takes one record, not several or a folder")
    size = shutil.get_terminal_size((120, 40))
    follow_run(args.run[0], since=args.since, layers=args.layers, width=size.columns, height=size.lines - 1)


def _doctor(args: argparse.Namespace) -> int:
    from thermoopt.doctor import report

    return 0 if report(say=lambda line: print(line, flush=True)) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="thermoopt",
        description="AdamW that measures the thermodynamics of training and sets its own rates.",
    )
    parser.add_argument("--version", action="version", version=f"thermoopt {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="train a small GPT on real text in three ways and compare them",
        description="Train a small byte-level GPT on real text in three ways side by side (two to four "
        "minutes on two cores): AdamW + cosine at lr 1e-3 and at 1e-2, and ThermoAdamW autotuned, which is "
        "given no lr. Print a comparison and what was measured; write pictures, losses, readings, actions.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument(
        "--steps", type=_steps, default=DEFAULT_STEPS, metavar="N", help="steps to train, at least 1"
    )
    demo.add_argument(
        "--text",
        type=Path,
        metavar="FILE",
        default=argparse.SUPPRESS,  # no default in the help text but the words below
        help="text to train on; its last tenth is for validation (default: Python's own sources and "
        "documentation)",
    )
    demo.add_argument(
        "--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="folder for the results"
    )
    demo.add_argument(
        "--seed", type=_seed, default=0, metavar="N", help="seed of the initial weights and the batches"
    )
    demo.set_defaults(parser=demo)

    inspect = commands.add_parser(
        "inspect",
        help="show saved runs: tables, a diagnosis, pictures, an HTML page",
        description="Show a run saved by JSONLSink, ParquetSink or export_jsonl: tables of its last reading "
        "and of the trend up to it, a diagnosis (what is wrong, and how sure that is), pictures, and with "
        "--html one page with all of it. Several runs, or a folder of them, are shown side by side. For the "
        "demo's history.jsonl, the losses and actions saved beside it are read, too.",
    )
    inspect.add_argument(
        "run", type=Path, nargs="+", metavar="RUN", help="a record (.jsonl, .jsonl.gz, .parquet) or a folder"
    )
    inspect.add_argument("--html", type=Path, metavar="FILE", help="write a self-contained HTML page")
    inspect.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for the pictures (default: NAME_inspect beside the run)",
    )
    inspect.add_argument(
        "--actions",
        type=Path,
        metavar="FILE",
        help="JSONL file of a controller's actions, one Action.to_dict() per line",
    )
    inspect.add_argument("--since", type=_step, metavar="STEP", help="leave out readings before this step")
    inspect.add_argument(
        "--layers",
        metavar="PATTERN",
        help="show only matching layers: * and ? as in a shell, patterns separated by commas",
    )
    inspect.add_argument(
        "--follow", action="store_true", help="follow a run in progress: refresh a view as its record grows"
    )
    inspect.set_defaults(parser=inspect)

    add_bench(commands)
    commands.add_parser(
        "doctor",
        help="print what a bug report needs, and test every kernel that runs here (some seconds)",
        description="Print versions, machine, devices, packages and settings, and which kernels can run on "
        "this machine, or why they cannot. For each kernel that runs, print how far it is from a float64 "
        "reference and how long a step takes compared with torch's fused AdamW. The exit status is 1 if a "
        "kernel is wrong.",
    )
    return parser


def _steps(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number of at least 1")
    return int(text)


def _step(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number of at least 0")
    return int(text)


def _seed(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 2**63):
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number from 0 to 2^63 - 1")
    return int(text)


def _version() -> str:
    try:
        return metadata.version("thermoopt")
    except metadata.PackageNotFoundError:
        return "(not installed: run from its source tree)"


if __name__ == "__main__":
    sys.exit(main())
