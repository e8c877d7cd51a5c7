"""Export of trained weights to other formats; `graph-export`."""
