"""The GPU test kit: `python -m tests.gpu`."""
