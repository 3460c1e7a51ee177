"""``python -m thermoopt.benchmarks.irreversibility``: measures of irreversibility."""

from thermoopt.benchmarks.irreversibility.command import main

if __name__ == "__main__":  # worker processes import it
    main()
