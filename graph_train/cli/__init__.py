"""The commands: each reads its flags and calls what does the work."""
