"""What a run leaves in its folder, and what it needs to go on from there: checkpoints, results, its place."""
