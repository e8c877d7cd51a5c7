"""`--evolve`: hyper-parameter evolution, many short trainings of which only the results are kept."""
