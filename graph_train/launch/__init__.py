"""Start a new run, resume a saved one, or start an evolution."""
