"""``python -m thermoopt.benchmarks.laws``: the neural thermodynamic laws."""

from thermoopt.benchmarks.laws.command import main

main()
