"""Common parts of the benchmarks: workers, timing, points, result files, tables, plots."""
