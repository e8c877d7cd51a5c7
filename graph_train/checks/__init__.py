"""Reports on a data set and on this machine; `graph-check`."""
