"""From rows of results to tables, statistics and figures."""
