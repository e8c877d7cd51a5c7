"""Benchmarks of one training step: against PyTorch and stock OneFlow, per op, and over ranks."""
