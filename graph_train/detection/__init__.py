"""Trained weights at work: the network without a training step, its views, micro-batches and suppression."""
