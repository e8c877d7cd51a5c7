"""Our implementation of the same training step in PyTorch, run by another interpreter that has PyTorch.

Neither OneFlow nor our other packages are imported here, as that interpreter cannot see them: network and settings
arrive as the plain data of `benchmarks.harness.points`.
"""
