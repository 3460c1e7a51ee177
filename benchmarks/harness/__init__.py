"""What all benchmarks share: rows, folders, workers, the environment they ran in."""
