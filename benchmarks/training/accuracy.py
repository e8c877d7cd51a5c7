"""`graph-bench accuracy`: final accuracy of `graph-train` against PyTorch, and of `--amp` against float32.

Each seed is trained once per side: by the command line in float32, by the command line with `--amp`, and by our PyTorch
implementation of YOLOv5's training (network, loss, optimizer, schedule, EMA, OpenCV mosaic loader), which starts from
the same weights. All are evaluated by the same validation. Rounding alone makes two trainings diverge after a while, as
another seed would, so mean differences are reported with their standard error over the seeds.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.flags import add_train_flags, add_training, add_work, work_folder
from benchmarks.harness.tables import Table, number
from benchmarks.step.competitors import NO_TORCH, find_torch
from benchmarks.training.accuracy_trainings import AMP, FLOAT32, PYTORCH, SIDES, Row, Trainings
from graph_train.metrics.average_precision import best_row

CURVES: Mapping[str, str] = {
    "map50": "mAP50",
    "map": "mAP50-95",
    "train_loss": "training loss",
    "val_loss": "validation loss",
}
"""Metrics recorded in each epoch."""
MEASURES: Mapping[str, str] = {
    "best_map50": "mAP50 of the best epoch",
    "best_map": "mAP50-95 of the best epoch",
    **{name: f"{title} at the end" for name, title in CURVES.items()},
}
"""Measures with one number per training. The best epoch, that of `best.safetensors`, has the highest fitness."""
COMPARISONS: Mapping[str, tuple[str, str]] = {"float32 - pytorch": (FLOAT32, PYTORCH), "amp - float32": (AMP, FLOAT32)}
"""Reported differences: the first side minus the second, for the same seed."""
_LAST_SHARE = 0.2
"""Fraction of the epochs, at the end, over which a metric is averaged, as single epochs are noisy."""
_MIN_SEEDS = 2
_IN_BFLOAT16 = (
    "The side amp computes in bfloat16 even on a CPU where that is slower, and where graph-train --amp takes float32."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the training, the sides and the seeds."""
    add_training(parser, cfg="yolov5n.yaml", image_px=320, batch_size=16)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument(
        "--resized",
        action="store_const",
        const=True,
        help="train on copies of the images that are resized to --imgsz, because the sides resample differently (see "
        "docs/compatibility.md)",
    )
    parser.add_argument("--sides", nargs="+", choices=SIDES, help="sides to train (default: all that can run)")
    parser.add_argument(
        "--seeds", type=int, default=3, help="trainings per side (default: 3); 0 only reports those in --work"
    )
    parser.add_argument(
        "--first-seed", type=int, default=0, help="first seed, to add more seeds to --work (default: 0)"
    )
    add_train_flags(parser)
    parser.add_argument("--torch-python", metavar="PATH", help="Python interpreter with PyTorch and OpenCV")
    add_work(parser)


def run(flags: argparse.Namespace) -> dict[str, Any]:
    """Run the trainings that `--work` lacks and report all trainings in it.

    Raises:
        ValueError: fewer than two seeds, so that there is no spread, or a side that cannot run.
        RuntimeError: a training failed.
    """
    if flags.seeds < (0 if flags.work else _MIN_SEEDS):
        raise ValueError(f"--seeds {flags.seeds}: must be at least 2 without --work, to measure the spread")
    torch_python = find_torch(flags.torch_python, ("torch", "numpy", "cv2"))
    if torch_python is None and PYTORCH in (flags.sides or ()):
        raise ValueError(NO_TORCH)
    sides = tuple(flags.sides or (side for side in SIDES if side != PYTORCH or torch_python is not None))
    with work_folder(flags.work, exist_ok=True) as folder:
        trainings = Trainings(flags, folder, torch_python)
        trainings.finished()
        trainings.train(sides)
        rows = trainings.finished()
    notes = [_IN_BFLOAT16] if flags.device == "cpu" and any(row["side"] == AMP for row in rows) else []
    return {"rows": rows, "comparisons": comparisons(rows), "notes": notes}


def measured(row: Row, measure: str) -> float:
    """Return one of `MEASURES` of a training."""
    if not measure.startswith("best_"):
        return mean_of_last_fifth(row[measure])
    metrics = np.zeros((len(row["map"]), 4))
    metrics[:, 2], metrics[:, 3] = row["map50"], row["map"]
    return float(row[measure.removeprefix("best_")][best_row(metrics)])


def mean_of_last_fifth(curve: Sequence[float]) -> float:
    """Return the mean over the last fifth of the epochs, at least one."""
    return float(np.mean(curve[-max(round(len(curve) * _LAST_SHARE), 1) :]))


def comparisons(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """Return the figures of each comparison and metric at the end of training, over the seeds that both sides have.

    They are the means and standard deviations ("spread") of both sides, the mean `difference`, its standard error
    `error` and the standard deviation `difference_spread` of single differences.

    Raises:
        ValueError: no comparison has two seeds of both sides.
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
    if len(seeds) < _MIN_SEEDS:
        return {}
    found = {}
    for measure in MEASURES:
        ends = {side: np.asarray([measured(by_side[side][seed], measure) for seed in seeds]) for side in by_side}
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
    """Return a table per comparison, and one of all trainings."""
    rows = body["rows"]
    epochs = len(rows[0]["map"])
    notes = body.get("notes", ())
    compared = [_comparison(name, found, epochs, notes) for name, found in comparisons(rows).items()]
    trainings = tuple(
        (
            str(row["seed"]),
            row["side"],
            *(_rounded(measured(row, measure)) for measure in MEASURES),
            number(row["seconds"]),
        )
        for row in sorted(rows, key=lambda row: (row["seed"], SIDES.index(row["side"])))
    )
    columns = ("seed", "side", *MEASURES.values(), "seconds")
    return [*compared, Table("Trainings", columns, trainings, detail=True)]


def _comparison(name: str, found: Mapping[str, Mapping[str, float]], epochs: int, notes: Sequence[str]) -> Table:
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
        f"At the end: means over the last fifth of {epochs} epochs. ± of a side: standard deviation between "
        f"{found['map']['pairs']:.0f} seeds; of the difference ({sides[0]} less {sides[1]} of the same seed): standard "
        "error of its mean."
    )
    return Table(name, ("measure", *sides, "difference", "its spread"), cells, (note, *notes))


def _rounded(value: float, *, sign: bool = False) -> str:
    return f"{value:+.4f}" if sign else f"{value:.4f}"


def plot(body: Mapping[str, Any], path: Path) -> None:
    """Plot each metric over the epochs: a thin line per training and a thick one for the mean over the seeds."""
    from benchmarks.harness.plots import families

    rows = body["rows"]
    sides = [side for side in SIDES if any(row["side"] == side for row in rows)]
    panels = {
        title: {side: [row[measure] for row in rows if row["side"] == side] for side in sides}
        for measure, title in CURVES.items()
    }
    families(panels, path, title=f"{', '.join(sides)} (thin: each seed; thick: their mean)", x="epoch")
