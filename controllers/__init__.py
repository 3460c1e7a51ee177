"""Controllers close the loop from readings to scales."""
