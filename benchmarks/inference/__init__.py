"""Benchmarks of inference: validation, prediction, and the network alone."""
