"""Plots of a run. Plotting libraries are imported on first use; no display and no global state are needed."""
