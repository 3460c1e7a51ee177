"""What measuring costs, as ratios within one run."""
