"""``python -m thermoopt.benchmarks.laws``: the neural thermodynamic laws."""

from thermoopt.benchmarks.laws.command import main

if __name__ == "__main__":  # worker processes import it
    main()
