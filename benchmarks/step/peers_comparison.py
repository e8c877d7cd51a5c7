"""`graph-bench peers`: our training step against PyTorch and stock OneFlow, on the same network and loss."""

import argparse

from benchmarks.step import whole_step

VARIANTS = (
    "plugin-graph",
    "pytorch-eager",
    "pytorch-channels-last",
    "pytorch-compile",
    "pytorch-compile-channels-last",
    "plugin-graph-amp",
    "pytorch-amp",
    "pytorch-compile-amp",
    "stock-eager",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `graph-bench step`; the peers are the default variants."""
    whole_step.add_step_arguments(parser, VARIANTS)


run, tables, plot = whole_step.run, whole_step.tables, whole_step.plot
