"""Command lines of `graph-train`, as benchmarks and tests start it."""

import argparse
import sys


def as_flags(**values: object) -> list[str]:
    """Return a command line: `exist_ok=True` becomes `--exist-ok`, False is left out, others follow their flag."""
    words: list[str] = []
    for name, value in values.items():
        if value is not False:
            words.append(f"--{name.replace('_', '-')}")
            words += [] if value is True else [str(value)]
    return words


def training_command(*more: str, **values: object) -> list[str]:
    """Return the command that trains with these flags (see `as_flags`), and with the words of `more` after them."""
    return [sys.executable, "-m", "graph_train", *as_flags(**values), *more]


def training_flags(flags: argparse.Namespace) -> dict[str, object]:
    """Return the flags of `graph-train` that a benchmark has, too; its threads become the workers."""
    same = {name: getattr(flags, name) for name in ("data", "cfg", "imgsz", "batch_size", "device")}
    return {**same, "workers": flags.threads}
