"""``python -m thermoopt.benchmarks.validation``: how often the diagnosis errs."""

from thermoopt.benchmarks.validation.command import main

if __name__ == "__main__":  # worker processes import it
    main()
