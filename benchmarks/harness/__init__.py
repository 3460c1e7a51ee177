"""Shared by all benchmarks: rows, folders, workers, and the environment they ran in."""
