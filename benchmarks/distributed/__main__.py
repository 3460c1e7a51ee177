"""``python -m thermoopt.benchmarks.distributed``: what measuring costs on several ranks."""

from thermoopt.benchmarks.distributed.command import main

if __name__ == "__main__":  # worker processes import it
    main()
