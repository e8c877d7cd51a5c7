"""Benchmarks of killing, saving and long trainings."""
