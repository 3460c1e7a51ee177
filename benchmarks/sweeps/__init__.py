"""Sweeps at equal tuning budgets: the protocol, its studies and the command that runs them."""
