"""Command lines of `graph-train` for benchmarks and tests."""

import argparse
import sys


def as_flags(**values: object) -> list[str]:
    """Return a command line: `exist_ok=True` becomes `--exist-ok`, False omits it, other values follow the flag."""
    words: list[str] = []
    for name, value in values.items():
        if value is not False:
            words.append(f"--{name.replace('_', '-')}")
            words += [] if value is True else [str(value)]
    return words


def training_command(*more: str, **values: object) -> list[str]:
    """Return the training command with these flags (see `as_flags`), followed by `more`."""
    return [sys.executable, "-m", "graph_train", *as_flags(**values), *more]


def training_flags(flags: argparse.Namespace) -> dict[str, object]:
    """Return the flags that a benchmark shares with `graph-train`; `--threads` becomes `--workers`."""
    shared = {name: getattr(flags, name) for name in ("data", "cfg", "imgsz", "batch_size", "device")}
    return {**shared, "workers": flags.threads}
