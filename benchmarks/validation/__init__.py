"""How often the diagnosis errs."""
