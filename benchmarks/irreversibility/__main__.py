"""``python -m thermoopt.benchmarks.irreversibility``: measures of irreversibility."""

from thermoopt.benchmarks.irreversibility.command import main

main()
