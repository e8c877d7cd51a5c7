"""The machine under a run: terminal, signals, memory, devices; and how a command ends."""
