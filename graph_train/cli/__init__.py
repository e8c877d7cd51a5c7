"""The commands: each parses its flags and calls the function that does the work."""
