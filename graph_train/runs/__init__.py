"""The run folder: checkpoints, results, settings, and resuming from them."""
