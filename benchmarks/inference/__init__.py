"""Trained weights at work: validation, prediction, and the network alone."""
