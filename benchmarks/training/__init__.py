"""Whole trainings: epochs per second, and what they end with."""
