"""Trained weights at work: the network without a training step, its views and portions, suppression."""
