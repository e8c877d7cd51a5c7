"""The training step (eager or as one compiled graph), the state it updates and its schedule."""
