"""One training step, eager or as one compiled graph; the state it changes and the numbers that steer it."""
