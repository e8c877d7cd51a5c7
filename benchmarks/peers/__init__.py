"""The same training step in PyTorch, our own implementation, run by another interpreter that has PyTorch.

Nothing of OneFlow, nor of our other packages, is imported here (that interpreter cannot even see them): network and
settings arrive as the plain data of `benchmarks.harness.points`.
"""
