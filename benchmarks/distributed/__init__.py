"""What measuring costs on several ranks, measured and modelled."""
