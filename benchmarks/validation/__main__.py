"""``python -m thermoopt.benchmarks.validation``: how often the diagnosis errs."""

from thermoopt.benchmarks.validation.command import main

main()
