"""``python -m thermoopt.benchmarks.overhead``: what measuring costs on CPU."""

from thermoopt.benchmarks.overhead.cpu import main

main()
