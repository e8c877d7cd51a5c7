"""Benchmarks of whole trainings: speed and final accuracy."""
