"""The cost of measuring, as ratios within one run."""
