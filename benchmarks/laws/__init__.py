"""The neural thermodynamic laws, measured."""
