"""``python -m thermoopt.benchmarks.others``."""

from thermoopt.benchmarks.others.command import main

if __name__ == "__main__":  # worker processes import it
    main()
