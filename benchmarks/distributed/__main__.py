"""``python -m thermoopt.benchmarks.distributed``: what measuring costs on several ranks."""

from thermoopt.benchmarks.distributed.command import main

main()
