"""Benchmarks, imported as ``thermoopt.benchmarks``: workloads, methods, sweeps, and measurements of cost."""
