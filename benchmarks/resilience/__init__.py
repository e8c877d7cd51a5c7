"""Trainings that are killed, saved, and run for long."""
