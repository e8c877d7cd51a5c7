"""`graph-bench scaling-model`: the model of step time against ranks beside what was measured, and what it predicts."""

import argparse
from pathlib import Path

from benchmarks.scaling_fit import fit, read_points, table
from benchmarks.scaling_prediction import Assumptions, tables
from benchmarks.tables import as_markdown, as_text

RESULTS = Path(__file__).resolve().parent / "results" / "2026-11-28-bfloat16"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which results, and what to assume otherwise."""
    parser.add_argument(
        "--points", metavar="FILE", default=str(RESULTS / "scaling.json"), help="result of graph-bench scaling"
    )
    parser.add_argument(
        "--assume", nargs="+", metavar="NAME=VALUE", default=[], help="of the prediction, such as per_image_ms=2"
    )
    parser.add_argument("--markdown", action="store_true", help="as docs/distributed.md has it")


def run(flags: argparse.Namespace) -> int:
    """Prints the tables."""
    assumed = Assumptions().changed(flags.assume)
    points = read_points(Path(flags.points))
    for one in [table(fit(points), points), *tables(assumed)]:
        print(f"**{one.title}**\n\n{as_markdown(one)}\n" if flags.markdown else f"{as_text(one)}\n")
    return 0
