"""Flags that several benchmarks have; each takes those that it uses, so that no flag is accepted in vain."""

import argparse

DEFAULT_REPEATS = 7


def add_repeats(parser: argparse.ArgumentParser) -> None:
    """Add `--repeats`, of benchmarks whose sides take turns."""
    parser.add_argument("--repeats", type=int, default=DEFAULT_REPEATS, help="turns that each side gets")


def add_quick(parser: argparse.ArgumentParser) -> None:
    """Add `--quick`, of benchmarks that have a smaller form."""
    parser.add_argument("--quick", action="store_true", help="a small part of it, in a minute or a few")
