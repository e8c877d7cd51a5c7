"""Planning of augmented and letterboxed images: random draws, geometry and labels, in NumPy and without pixels."""
