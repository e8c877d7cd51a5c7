"""What all benchmarks share: workers, turns, points, result files, tables, plots."""
