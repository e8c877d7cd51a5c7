"""The command-line entry points: each parses its flags and calls the function that does the work."""
