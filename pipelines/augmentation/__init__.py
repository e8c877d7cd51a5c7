"""What is drawn where: random draws, geometry, colours and labels of augmented samples; pure NumPy, no pixels yet."""
