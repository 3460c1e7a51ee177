"""``python -m thermoopt.benchmarks.control``: control laws against tuned AdamW."""

from thermoopt.benchmarks.control.runs import main

main()
