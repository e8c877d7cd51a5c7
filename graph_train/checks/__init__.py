"""Checks of data sets and of the environment; `graph-check`."""
