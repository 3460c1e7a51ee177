"""``python -m thermoopt.benchmarks.others``."""

from thermoopt.benchmarks.others.command import main

main()
