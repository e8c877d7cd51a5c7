"""Process-level services: terminal, signals, memory, devices, exit codes."""
