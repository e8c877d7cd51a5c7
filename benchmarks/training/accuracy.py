"""`graph-bench accuracy`: does `graph-train` train as well as PyTorch, and as well with `--amp` as without?

Each seed trains once on every side: through the command line in float32 and with `--amp`, and in our own PyTorch
implementation of YOLOv5's training (network, loss, optimizer, schedule, average, mosaic loader on OpenCV), which
starts from the same weights. All are measured by the same validation. Rounding alone makes two trainings part after a
while, as another seed does, so a mean difference is told with its standard error over the seeds.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.tables import Table, number
from benchmarks.harness.work_folder import add_work_argument, work_folder
from benchmarks.step.competitors import NO_TORCH, find_torch
from benchmarks.training.accuracy_trainings import AMP, FLOAT32, PYTORCH, SIDES, Row, Trainings

MEASURES: Mapping[str, str] = {
    "map50": "mAP50",
    "map": "mAP50-95",
    "train_loss": "training loss",
    "val_loss": "validation loss",
}
COMPARISONS: Mapping[str, tuple[str, str]] = {
    "float32 - pytorch": (FLOAT32, PYTORCH),
    "amp - float32": (AMP, FLOAT32),
}
"""Differences that are reported: the first side less the second of the same seed."""
_LAST_SHARE = 0.2
"""Share of the epochs at the end over which a measure is averaged: one epoch alone is mostly chance."""
_FEWEST_PAIRS = 2
_IN_BFLOAT16 = (
    "The side amp computes in bfloat16 even on a CPU where that is slower, and where graph-train --amp takes float32."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is trained, and how often."""
    parser.add_argument("--data", default="shapes", help="dataset yaml, or `shapes`")
    parser.add_argument("--cfg", default="yolov5n.yaml", help="network")
    parser.add_argument("--imgsz", type=int, default=320, help="px")
    parser.add_argument("--batch-size", type=int, default=16, help="images")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument(
        "--resized",
        action="store_const",
        const=True,
        help="train on copies of the images that have --imgsz already: the sides resample differently, see "
        "docs/compatibility.md",
    )
    parser.add_argument("--sides", nargs="+", choices=SIDES, help="what is trained (default: all that can be)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each side; 0 reports what --work holds")
    parser.add_argument("--first-seed", type=int, default=0, help="to add seeds to --work (default: 0)")
    parser.add_argument(
        "--train-flags", default="", metavar="FLAGS", help="more flags of graph-train: --train-flags='--cache ram'"
    )
    parser.add_argument("--torch-python", metavar="PATH", help="interpreter that has PyTorch and OpenCV")
    add_work_argument(parser)


def run(flags: argparse.Namespace) -> dict[str, Any]:
    """Trains what `--work` does not hold yet; reports everything that it holds.

    Raises:
        ValueError: fewer than two seeds, between which nothing spreads; a side that cannot be trained.
        RuntimeError: a training failed.
    """
    if flags.seeds < (0 if flags.work else _FEWEST_PAIRS):
        raise ValueError(f"--seeds {flags.seeds}: must be at least 2 without --work: the spread between seeds counts")
    torch_python = find_torch(flags.torch_python, ("torch", "numpy", "cv2"))
    if torch_python is None and PYTORCH in (flags.sides or ()):
        raise ValueError(NO_TORCH)
    sides = tuple(flags.sides or (side for side in SIDES if side != PYTORCH or torch_python is not None))
    with work_folder(flags.work, exist_ok=True) as folder:
        trainings = Trainings(flags, folder, torch_python)
        trainings.kept()
        trainings.train(sides)
        rows = trainings.kept()
    notes = [_IN_BFLOAT16] if flags.device == "cpu" and any(row["side"] == AMP for row in rows) else []
    return {"rows": rows, "comparisons": comparisons(rows), "notes": notes}


def at_the_end(curve: Sequence[float]) -> float:
    """Mean over the last fifth of the epochs, of one at least."""
    return float(np.mean(curve[-max(round(len(curve) * _LAST_SHARE), 1) :]))


def comparisons(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """By comparison and measure, at the end of training: both means and spreads (standard deviations) and `difference`
    over the seeds that both sides have, `error` its standard error, `difference_spread` that of single differences.

    Raises:
        ValueError: no comparison has two pairs.
    """
    found = {name: _compared(rows, *sides) for name, sides in COMPARISONS.items()}
    if not any(found.values()):
        raise ValueError(
            f"{len(rows)} trainings are finished, but no comparison ({', '.join(COMPARISONS)}) has two seeds of both "
            "sides; train more seeds"
        )
    return {name: measures for name, measures in found.items() if measures}


def _compared(rows: Sequence[Row], first: str, second: str) -> dict[str, dict[str, float]]:
    by_side = {side: {row["seed"]: row for row in rows if row["side"] == side} for side in (first, second)}
    seeds = sorted(by_side[first].keys() & by_side[second].keys())
    if len(seeds) < _FEWEST_PAIRS:
        return {}
    found = {}
    for measure in MEASURES:
        ends = {side: np.asarray([at_the_end(by_side[side][seed][measure]) for seed in seeds]) for side in by_side}
        difference = ends[first] - ends[second]
        spread = float(difference.std(ddof=1))
        found[measure] = {
            "pairs": len(seeds),
            **{f"{side}_mean": float(values.mean()) for side, values in ends.items()},
            **{f"{side}_spread": float(values.std(ddof=1)) for side, values in ends.items()},
            "difference": float(difference.mean()),
            "difference_spread": spread,
            "error": spread / float(np.sqrt(len(seeds))),
        }
    return found


def tables(body: Mapping[str, Any]) -> list[Table]:
    """Each comparison by measure; then each training."""
    rows = body["rows"]
    epochs = len(rows[0]["map"])
    compared = [_comparison(name, found, epochs) for name, found in comparisons(rows).items()]
    trainings = tuple(
        (
            str(row["seed"]),
            row["side"],
            *(_rounded(at_the_end(row[measure])) for measure in MEASURES),
            number(row["seconds"]),
        )
        for row in sorted(rows, key=lambda row: (row["seed"], SIDES.index(row["side"])))
    )
    columns = ("seed", "side", *MEASURES.values(), "seconds")
    return [*compared, Table("Trainings", columns, trainings, tuple(body.get("notes", ())))]


def _comparison(name: str, found: Mapping[str, Mapping[str, float]], epochs: int) -> Table:
    sides = COMPARISONS[name]
    cells = tuple(
        (
            MEASURES[measure],
            *(f"{_rounded(values[f'{side}_mean'])} ± {_rounded(values[f'{side}_spread'])}" for side in sides),
            f"{_rounded(values['difference'], sign=True)} ± {_rounded(values['error'])}",
            _rounded(values["difference_spread"]),
        )
        for measure, values in found.items()
    )
    note = (
        f"Means over the last fifth of {epochs} epochs. ± of a side: standard deviation between "
        f"{found['map']['pairs']:.0f} seeds; of the difference ({sides[0]} less {sides[1]} of the same seed): standard "
        "error of its mean."
    )
    return Table(name, ("measure", *sides, "difference", "its spread"), cells, (note,))


def _rounded(value: float, *, sign: bool = False) -> str:
    return f"{value:+.4f}" if sign else f"{value:.4f}"


def plot(body: Mapping[str, Any], path: Path) -> None:
    """Each measure over the epochs: a thin line per training, a thick one for the mean over the seeds."""
    from benchmarks.harness.plots import families

    rows = body["rows"]
    sides = [side for side in SIDES if any(row["side"] == side for row in rows)]
    panels = {
        title: {side: [row[measure] for row in rows if row["side"] == side] for side in sides}
        for measure, title in MEASURES.items()
    }
    families(panels, path, title=f"{', '.join(sides)} (thin: each seed; thick: their mean)", x="epoch")
