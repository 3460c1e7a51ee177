"""``python -m thermoopt.benchmarks.overhead``: what measuring costs on CPU."""

from thermoopt.benchmarks.overhead.cpu import main

if __name__ == "__main__":  # worker processes import it
    main()
