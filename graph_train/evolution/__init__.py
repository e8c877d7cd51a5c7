"""Hyper-parameter evolution (`--evolve`): many short trainings, of which only the results are kept."""
