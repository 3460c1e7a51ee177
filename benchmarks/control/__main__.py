"""``python -m thermoopt.benchmarks.control``: control laws against tuned AdamW."""

from thermoopt.benchmarks.control.runs import main

if __name__ == "__main__":  # worker processes import it
    main()
