"""Callbacks, and the experiment loggers based on them."""
