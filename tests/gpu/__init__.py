"""What is to be run on the day that a GPU is there: `python -m tests.gpu`."""
