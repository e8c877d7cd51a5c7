"""What will be drawn where: random draws, geometry and labels, of letterboxed images too; NumPy, no pixels yet."""
