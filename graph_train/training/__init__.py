"""The driver of a run, and what it is put together from."""
