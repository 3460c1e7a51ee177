"""Four measures of irreversibility on networks."""
