"""Cost of measuring on several ranks, measured and modelled."""
