"""Flags that several benchmarks have; each benchmark adds only the ones it uses."""

import argparse

DEFAULT_REPEATS = 7


def add_repeats(parser: argparse.ArgumentParser) -> None:
    """Add `--repeats`, for benchmarks whose sides are measured in turn."""
    parser.add_argument("--repeats", type=int, default=DEFAULT_REPEATS, help="measurements per side")


def add_quick(parser: argparse.ArgumentParser) -> None:
    """Add `--quick`, for benchmarks with a short version."""
    parser.add_argument("--quick", action="store_true", help="measure less, to finish within minutes")
