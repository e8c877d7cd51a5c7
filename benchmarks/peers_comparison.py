"""`graph-bench peers`: our step against PyTorch, and against OneFlow as it comes, on the same network and loss."""

import argparse

from benchmarks import step

VARIANTS = (
    "plugin-graph", "pytorch-eager", "pytorch-channels-last", "pytorch-compile", "pytorch-compile-channels-last",
    "plugin-graph-amp", "pytorch-amp", "pytorch-compile-amp", "stock-eager",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """As `graph-bench step`, with the peers as default."""
    step.add_step_arguments(parser, VARIANTS)


run, tables, plot = step.run, step.tables, step.plot
