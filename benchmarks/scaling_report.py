"""`graph-bench scaling-model`: the model of step time against ranks beside what was measured, and what it predicts."""

import argparse
from pathlib import Path

from benchmarks.scaling_fit import fit, read_compute, read_points, table
from benchmarks.scaling_prediction import Assumptions, tables
from benchmarks.tables import as_markdown, as_text

RESULTS = Path(__file__).resolve().parent / "results" / "2026-11-28-two-cores"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which results, and what to assume otherwise."""
    given = {
        "compute": ("graph-vs-eager.json", "result of graph-bench graph-vs-eager: compute of one process"),
        "points": ("scaling.json", "result of graph-bench scaling: steps to compare with"),
    }
    for name, (file, told) in given.items():
        parser.add_argument(f"--{name}", metavar="FILE", default=str(RESULTS / file), help=told)
    parser.add_argument(
        "--assume", nargs="+", metavar="NAME=VALUE", default=[], help="of the prediction, such as per_image_ms=2"
    )
    parser.add_argument("--markdown", action="store_true", help="as docs/distributed.md has it")


def run(flags: argparse.Namespace) -> int:
    """Prints the tables."""
    assumed = Assumptions().changed(flags.assume)
    points = read_points(Path(flags.points))
    found = fit(read_compute(Path(flags.compute)), points)
    for one in [table(found, points), *tables(assumed)]:
        print(f"**{one.title}**\n\n{as_markdown(one)}\n" if flags.markdown else f"{as_text(one)}\n")
    return 0
